"""metrics.jsonl, the log of a run: an object of JSON a line, each with the step that it is of."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdet import whole_files
from jaxdet.types import UserError

NAME = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines in their order, but for a last one that was not finished.

    Args:
        path: a metrics.jsonl, or nothing.

    Raises:
        UserError: if another line than the last cannot be read.
    """
    return [line for _, line in _parse(path)]


def cut(path: Path, last_step: int) -> None:
    """Removes the lines beyond a step, and a last line that was not finished.

    Args:
        path: a metrics.jsonl, or nothing.
        last_step: the last step to keep.

    Raises:
        UserError: as `read`.
    """
    if path.exists():
        whole_files.replace(
            path, "".join(text for text, line in _parse(path) if line["step"] <= last_step)
        )


def _parse(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as it is, with its end, and what it says."""
    texts = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text.decode())
            line["step"] = int(line["step"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number < len(texts):
                raise UserError(f"{path}: line {number} is damaged; remove it") from error
            return
        if text.endswith(b"\n"):
            yield text.decode(), line
