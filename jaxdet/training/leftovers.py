"""Which checkpoints of a run stay, and what kills and failures leave among them."""

import errno
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import path as orbax_path

from jaxdet.types import UserError

VARIABLES = "variables/_METADATA"
METRICS = "metrics/metrics"
# Every complete checkpoint has these, and they are not empty.
FILES = (VARIABLES, "training/_METADATA", METRICS)
# Old steps are moved here in one move, and removed then: no step is ever seen half removed.
REMOVED = "removed"
MAX_REASON = 200  # Characters of another library's message that are shown.
UNFINISHED = ".orbax-checkpoint-tmp"  # In the name of a step that is being written.


class Damaged(UserError):
    """Of a checkpoint that cannot be read."""


class NamesOfComplete(orbax_path.step.NameFormat):
    """Orbax's names of steps, without those that are not complete."""

    def __init__(self, left_out: dict[int, str]):
        """Takes the steps that do not count; they may change later on."""
        self._names, self._left_out = orbax_path.step.standard_name_format(), left_out

    def build_name(self, step: int) -> str:
        """The folder of a step."""
        return self._names.build_name(step)

    def find_all(self, base_path: Any) -> Iterable:
        """The steps that there are."""
        return [each for each in self._names.find_all(base_path) if each.step not in self._left_out]

    def find_step(self, base_path: Any, step: int) -> Any:
        """One of them."""
        return self._names.find_step(base_path, step)


def incomplete(directory: Path) -> dict[int, str]:
    """The steps of which orbax could not tell what they are, and what they lack."""
    # Orbax gives a folder its step's name when all is written.
    folders = [each for each in directory.glob("*") if each.name.isdecimal()]
    lacks = {int(folder.name): _lack(folder) for folder in folders}
    return {step: lack for step, lack in lacks.items() if lack}


def _lack(folder: Path) -> str | None:
    for name in FILES:
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            return f"{name} is missing or empty"
    try:
        results = json.loads((folder / METRICS).read_text())
        readable = results is None or all(isinstance(v, float | int) for v in results.values())
    except (OSError, ValueError, AttributeError, RecursionError):
        readable = False
    return None if readable else f"{METRICS} cannot be read"


def to_keep(scores: Mapping[int, float], latest: int, best: int) -> set[int]:
    """Which steps stay: so many of the latest, and of the best; of equals the later one.

    Args:
        scores: of all steps; what is not finite is never among the best.
        latest: how many, at least 1.
        best: likewise.
    """
    judged = [step for step, score in scores.items() if math.isfinite(score)]
    judged.sort(key=lambda step: (scores[step], step))
    return {*sorted(scores)[-latest:], *judged[-best:]}


def set_aside(directory: Path, steps: Iterable[int]) -> None:
    """Moves checkpoints, each at once, to where `clear` removes them."""
    (directory / REMOVED).mkdir(exist_ok=True)
    for step in steps:
        aside = directory / REMOVED / str(step)
        shutil.rmtree(aside, ignore_errors=True)  # Of a run that was killed while it removed it.
        (directory / str(step)).rename(aside)


def clear(directory: Path, left_out: Iterable[int], latest: int) -> None:
    """Frees the names and the room that leftovers take.

    What was being written or removed goes away, as do steps before the latest without
    the index of their variables, which another version of this began to remove. Others
    were damaged: they may be somebody's best, and stay, as `<step>.damaged`.
    """
    for step in left_out:
        folder = directory / str(step)
        if (folder / VARIABLES).exists() or (step > latest and folder.exists()):
            aside = directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (directory / REMOVED, *directory.glob(f"*{UNFINISHED}*")):
        shutil.rmtree(folder, ignore_errors=True)


def quieten() -> None:
    """Where orbax fails, tensorstore reports to event loops that orbax has closed by then."""
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "_show":
        return

    def _show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = _show


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


# What orbax raises in the background, it prints there, too, in fifty lines.
logging.getLogger("absl").addFilter(_is_news)


def reason(error: Any) -> str:
    """The line of an error that says most."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text:
            return os.strerror(number)  # Somewhere in what tensorstore says.
    return (text.splitlines() or [type(error).__name__])[0][:MAX_REASON]
