"""What a resumed run has to know of its past beyond its state; the log has it."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

RATE_FACTOR = "rate_factor"  # In the log, at the step that a run went back to.


class History(NamedTuple):
    """The past of a run.

    Attributes:
        scores: what the best is chosen by, of each evaluation, by step, in order.
        rate: factor of the learning rate: half of it for each time that the run went
            back.
    """

    scores: dict[int, float]
    rate: float = 1.0

    def until(self, step: int) -> "History":
        """Without what was evaluated later."""
        return self._replace(scores={k: v for k, v in self.scores.items() if k <= step})


NO_HISTORY = History({})


def read(lines: Path, metric: str, last_step: int) -> History:
    """The past of a run up to a step, alike on all processes.

    Args:
        lines: its metrics.jsonl; without it there is no past.
        metric: what the best is chosen by.
        last_step: later lines do not count, nor do lines that can't be read.
    """
    scores, rate = {}, 1.0
    for line in lines.read_bytes().splitlines() if lines.is_file() else ():
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError):
            continue  # Half a line at the end, or one that the writer will complain of.
        if step > last_step:
            continue
        if f"eval/{metric}" in values:
            score = values[f"eval/{metric}"]
            scores[step] = math.nan if score is None else float(score)
        rate = values.get(RATE_FACTOR, rate)
    found = _of_first_process(np.array([rate, *scores, *scores.values()], np.float64))
    steps, values = np.split(found[1:], 2)
    return History(dict(zip(map(int, steps), values.tolist(), strict=True)), float(found[0]))


def _of_first_process(numbers: np.ndarray) -> np.ndarray:
    """A row of numbers as process 0 has it: a shared disk may show others an older file."""
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    numbers = np.resize(numbers, count)  # Of the others only the length counts.
    # As bytes, because JAX would round float64.
    return multihost_utils.broadcast_one_to_all(numbers.view(np.uint8)).view(np.float64)
