"""What a resumed run has to know of its past beyond its state; the log has it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdet.training import log_lines, processes
from jaxdet.training.checkpoint import Checkpoints

RATE_FACTOR = "rate_factor"  # In the log, at the step that a run went back to.


class History(NamedTuple):
    """The past of a run.

    Attributes:
        scores: what the best is chosen by, of each evaluation, by step, in order; NaN
            where there was nothing to judge by.
        rate: factor of the learning rate: half of it for each time that the run went
            back.
        evaluated: the steps behind which there was an evaluation, by whatever the best
            was chosen then.
        logged: whether there is any line.
    """

    scores: dict[int, float]
    rate: float = 1.0
    evaluated: frozenset[int] = frozenset()
    logged: bool = False

    def has_evaluated(self, step: int, checkpoints: Checkpoints) -> bool:
        """Whether the evaluation behind a step was made and written; all processes must ask.

        The number in a checkpoint says so only where there is no log, as of checkpoints
        that were copied: it may be written before the log's line, with a kill in between.
        """
        return step in self.evaluated or (not self.logged and checkpoints.is_judged(step))

    def until(self, step: int) -> "History":
        """Without what was evaluated later."""
        return self._replace(
            scores={k: v for k, v in self.scores.items() if k <= step},
            evaluated=frozenset(k for k in self.evaluated if k <= step),
        )


NO_HISTORY = History({})


def read(lines: Path, metric: str, last_step: int) -> History:
    """The past of a run up to a step, alike on all processes.

    Args:
        lines: its metrics.jsonl; without it there is no past.
        metric: what the best is chosen by.
        last_step: later lines do not count.

    Raises:
        UserError: if a line is damaged, but for the last.
    """
    # A shared disk may show the others an older file.
    first = jax.process_index() == 0
    return processes.gather(lambda: _look(lines, metric, last_step) if first else NO_HISTORY)[0]


def as_score(value: Any) -> float:
    """A number of an evaluation; NaN where it has none, as where there is no object to find."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _look(lines: Path, metric: str, last_step: int) -> History:
    scores, rate, evaluated, logged = {}, 1.0, set(), False
    for line in log_lines.read(lines):
        if line["step"] > last_step:
            continue
        logged = True
        if any(name.startswith("eval/") for name in line):
            evaluated.add(line["step"])
        if f"eval/{metric}" in line:
            scores[line["step"]] = as_score(line[f"eval/{metric}"])
        rate = line.get(RATE_FACTOR) or rate
    return History(scores, rate, frozenset(evaluated), logged)
