"""Steps whose loss is far above that of the steps before them."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.training.window import Step

KEPT = 100  # Losses that the median is of,
FEWEST = 20  # or so many at the beginning; before, nothing is a spike.


class Spike(NamedTuple):
    """A step, from 1 on, its loss, and that over the median of the losses before."""

    step: int
    loss: float
    ratio: float


class Spikes:
    """Finds them in the windows of the log."""

    def __init__(self, factor: float, draw: Callable[[int], Any]):
        """Takes what draws them.

        Args:
            factor: a loss above so many medians is a spike, and one that is not finite.
            draw: `steps done before -> pictures` of the batch of the next one, as
                `Writer.pictures` takes them.
        """
        self.draw, self._factor = draw, factor
        self._losses: deque[float] = deque(maxlen=KEPT)

    def find(self, done: int, steps: Sequence[Step]) -> Spike | None:
        """The worst one of a window, None where there is none.

        Args:
            done: number of the window's last step.
            steps: of the window, in order.
        """
        worst = None
        for number, step in enumerate(steps, done - len(steps) + 1):
            loss = float(step.means["loss"])
            known = len(self._losses) >= FEWEST
            ratio = loss / max(np.median(self._losses), 1e-12) if known else 0.0
            if not math.isfinite(loss):
                ratio = math.inf
            else:
                self._losses.append(loss)
            if ratio > max(self._factor, worst.ratio if worst else 0):
                worst = Spike(number, loss, ratio)
        return worst
