"""Files that are there whole, or not at all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def replace(path: Path, text: str) -> None:
    """Writes a file in one move: a reader, or a kill in between, meets the old one or the new one.

    Raises:
        OSError: if that is impossible; the old file stays.
    """
    half = path.with_name(path.name + ".partial")
    try:
        half.write_text(text)
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a file of JSON in one move.

    Raises:
        OSError: as `replace`.
    """
    replace(path, json.dumps(as_json(value), indent=2) + "\n")


def as_json(value: Any) -> Any:
    """A value of what JSON has: lists for arrays; null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
