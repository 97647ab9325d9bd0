"""Files that are there whole, or not at all."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write, which takes the place of another in one move.

    A reader, or a kill in between, meets the old file or the new one. After an error
    the old one stays, and nothing of the new one.

    Raises:
        OSError: if the move is impossible.
    """
    half = path.with_name(path.name + ".partial")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Writes a file in one move, as `replacing`; text is UTF-8.

    Raises:
        OSError: if that is impossible; the old file stays.
    """
    with replacing(path) as half:
        half.write_bytes(content.encode() if isinstance(content, str) else content)


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
