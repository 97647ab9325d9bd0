"""What the folders of runs tell when they are laid side by side."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from jaxdet.commands import config_files, fingerprint, schema
from jaxdet.evaluation import EVALUATIONS, coco
from jaxdet.training import log_lines
from jaxdet.types import UserError

# In the place of a setting that a run does not have: null is the value of some.
ABSENT = object()
# A name, and what each run has under it; None, of settings ABSENT, where it does not say.
Row = tuple[str, list[Any]]

# Of a start: the first start says what a run began with, the others what it went on with.
OF_THE_FIRST = ("variables",)
NO_FINGERPRINT = ("step", "time")
COMMIT_DIGITS = 10


class PastRun(NamedTuple):
    """What a run has left behind.

    Attributes:
        name: of its folder.
        settings: those that it used last, by path, as JSON has them.
        starts: see `fingerprint.keep`; none of an older version.
        lines: of its log, by step.
        metric: the result of which the largest is the best.
    """

    name: str
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    metric: str


def read(folder: Path, name: str) -> PastRun:
    """Reads the files of a run, also of one that goes on, or that an older version made.

    Raises:
        UserError: if the folder is no run's, or a file of it is damaged.
    """
    file = config_files.last_saved(folder)
    if not file.is_file():
        missing = f"it has no {config_files.SAVED_NAME}" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder} is no run: {missing}")
    config = json.loads(json.dumps(config_files.with_defaults(config_files.read_json(file))))
    evaluation = config.get("evaluation")
    measured = evaluation.get("name") if isinstance(evaluation, dict) else None
    return PastRun(
        name=name,
        settings=dict(schema.leaves(config)),
        starts=fingerprint.read(folder / fingerprint.NAME),
        lines=log_lines.read(folder / log_lines.NAME),
        metric=EVALUATIONS.get(str(measured), coco).BEST,
    )


def differing_settings(runs: Sequence[PastRun]) -> list[Row]:
    """The settings that are not the same in all runs; ABSENT for one that a run does not have."""
    paths = sorted({path for run in runs for path in run.settings})
    rows = [(path, [run.settings.get(path, ABSENT) for run in runs]) for path in paths]
    return [row for row in rows if any(value != row[1][0] for value in row[1])]


def differing_prints(runs: Sequence[PastRun]) -> list[Row]:
    """What of the fingerprints is not the same in all runs that have one.

    Where a run was resumed with another, both stand there, the first one first.
    """
    prints = [_print_of(run.starts) for run in runs]
    names = list(dict.fromkeys(name for each in prints for name in each))
    rows = [(name, [each.get(name) for each in prints]) for name in names]
    known = [bool(run.starts) for run in runs]
    return [
        (name, values)
        for name, values in rows
        if len({v for v, has in zip(values, known, strict=True) if has}) > 1
    ]


def results(runs: Sequence[PastRun]) -> list[Row]:
    """Steps, losses, evaluations and speed of each run."""
    rows: list[Row] = [
        ("steps done", [run.lines[-1]["step"] if run.lines else 0 for run in runs]),
        ("steps in all", [run.settings.get("num_steps") for run in runs]),
        ("last loss", [_last(curve(run, "loss")) for run in runs]),
    ]
    for metric in dict.fromkeys(run.metric for run in runs):
        curves = [evaluations(run) if run.metric == metric else [] for run in runs]
        # Of equals the later one, as the best checkpoint is.
        best = [max(found, key=lambda at: at[::-1], default=(None, None)) for found in curves]
        rows += [
            (f"best {metric}", [value for _, value in best]),
            ("  of step", [step for step, _ in best]),
            *_beside(runs, [step for step, _ in best], metric),
            (f"last {metric}", [_last(found) for found in curves]),
        ]
    rates = [[value for _, value in curve(run, "images_per_second")] for run in runs]
    rows += [
        ("images a second", [round(float(np.median(r)), 1) if r else None for r in rates]),
        ("seconds of steps", [_seconds(run) for run in runs]),
        ("starts", [len(run.starts) or None for run in runs]),
    ]
    return [row for row in rows if any(value is not None for value in row[1])]


def curve(run: PastRun, name: str) -> list[tuple[int, float]]:
    """A value of the log, by step, where it is a number."""
    return [(line["step"], line[name]) for line in run.lines if _is_number(line.get(name))]


def evaluations(run: PastRun) -> list[tuple[int, float]]:
    """The run's own measure of each evaluation, by step."""
    return curve(run, f"eval/{run.metric}")


def at_steps(
    points: Sequence[tuple[int, float]], steps: Iterable[int], *, between: bool
) -> list[float | None]:
    """The value at each step, or the last one before where there are some between; else None."""
    if not between:
        return [dict(points).get(step) for step in steps]
    end = points[-1][0] if points else -1
    return [
        next((value for at, value in reversed(points) if at <= step), None) if step <= end else None
        for step in steps
    ]


def _beside(runs: Sequence[PastRun], steps: Sequence[int | None], metric: str) -> list[Row]:
    """The other fractions of an evaluation of each run, but for those of single classes."""
    found = []
    for run, step in zip(runs, steps, strict=True):
        lines = (line for line in run.lines if step is not None and line["step"] == step)
        found.append({k: v for line in lines for k, v in line.items() if k.startswith("eval/")})
    names = dict.fromkeys(name for each in found for name in each)
    fractions = [
        name
        for name in names
        if name.count("/") == 1
        and name != f"eval/{metric}"
        and any(isinstance(each.get(name), float) for each in found)
    ]
    return [(f"  {n.removeprefix('eval/')}", [each.get(n) for each in found]) for n in fractions]


def _print_of(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A run's fingerprint as text, by name."""
    found: dict[str, list[str]] = {}
    for place, start in enumerate(starts):
        for path, value in flatten_dict(start).items():
            if path[0] in NO_FINGERPRINT or (path[0] in OF_THE_FIRST and place):
                continue
            texts = found.setdefault(" ".join(path).replace("_", " "), [])
            text = _as_text(path, value)
            if text not in texts:
                texts.append(text)
    return {name: ", then ".join(texts) for name, texts in found.items()}


def _as_text(path: tuple[str, ...], value: Any) -> str:
    if value is None:
        return "not known"
    if path[-1] == "commit":
        return str(value)[:COMMIT_DIGITS]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "none"


def _seconds(run: PastRun) -> int | None:
    """What the steps took, the first of each start with its compilation; no evaluations."""
    size, total, before = run.settings.get("batch_size"), 0.0, 0
    for line in run.lines:
        first = line.get("first_step_seconds")
        if _is_number(first):
            total, before = total + first, before + 1
        rate = line.get("images_per_second")
        if _is_number(rate) and rate > 0 and _is_number(size):
            total += (line["step"] - before) * size / rate
        before = max(before, line["step"])
    return round(total) if total else None


def _last(points: Sequence[tuple[int, float]]) -> float | None:
    return points[-1][1] if points else None


def _is_number(value: Any) -> bool:
    """Whether it is one that can be counted with and drawn: no infinite one, and no NaN."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
