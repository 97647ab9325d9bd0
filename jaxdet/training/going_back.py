"""Going on from the last good checkpoint with half the learning rate."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxdet.training import processes
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.history import RATE_FACTOR
from jaxdet.training.numerics import BrokenRun
from jaxdet.training.state import TrainState
from jaxdet.training.steps import put_state
from jaxdet.training.writer import Writer
from jaxdet.types import UserError

MAX_TIMES = 5  # By then the rate is a 32nd: another rate is not what it needs.


class GoingBack:
    """Knows where to go back to."""

    def __init__(self, state: TrainState, checkpoints: Checkpoints, writer: Writer):
        """Keeps a copy of the state on the host, if it is the first one, which is not saved."""
        self._checkpoints, self._writer = checkpoints, writer
        self._like = jax.eval_shape(lambda state: state, state)
        self._first = None
        if checkpoints.latest is None:
            self._first = jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(state))

    def go_back(self, broken: BrokenRun, rate: float) -> tuple[TrainState, float]:
        """The last good state, and the factor of the learning rate from there on.

        The log forgets what came after it, and notes the factor.

        Args:
            broken: why.
            rate: the factor so far.

        Raises:
            BrokenRun: if that was done `MAX_TIMES` already.
            UserError: if several processes find different ones.
        """
        if rate <= 0.5**MAX_TIMES:
            times = f"config.on_not_finite went back {MAX_TIMES} times already"
            raise BrokenRun(f"{broken}; {times}", broken.step)
        try:
            good = self._checkpoints.restore("latest", like=self._like)
        except UserError:
            if self._first is None:
                raise
            good = self._first  # Nothing is saved yet, or could be.
        step, rate = int(good.step), rate / 2
        # One of several may have left out a checkpoint that only it finds damaged.
        processes.check_alike(went_back_to=step)
        self._writer.go_back(step)
        self._writer.scalars(step, {RATE_FACTOR: rate, "broken_step": broken.step})
        self._writer.say(f"{broken}; going on from step {step} with {rate:g} of the learning rate")
        return put_state(good), rate


class Feed(Iterator):
    """The batches of a run from a step on, which may go back."""

    def __init__(self, open_at: Callable[[int], Any], step: int):
        """Opens them: `open_at(step)` is an iterator with a `close`."""
        self._open_at, self._batches = open_at, open_at(step)

    def __next__(self) -> Any:
        """The next batch."""
        return next(self._batches)

    def go_back(self, step: int) -> None:
        """Goes on with the batch of this step."""
        self.close()
        self._batches = self._open_at(step)

    def close(self) -> None:
        """Ends the iterator."""
        self._batches.close()
