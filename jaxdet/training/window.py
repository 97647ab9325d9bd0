"""Metrics and clock of the steps between two lines of the log."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet.training.finite import SKIPPED
from jaxdet.types import Metrics

# Steps that may wait on the device. The host runs ahead to keep it busy, but each
# waiting step holds a batch in the device's memory.
MAX_STEPS_IN_FLIGHT = 2


class Step(NamedTuple):
    """What the host keeps of a step until the next line."""

    places: np.ndarray  # Of this process's images in the order of the run.
    means: dict[str, Any]
    counts: dict[str, Any]


class Window:
    """Metrics and clock of the steps since the last line."""

    def __init__(self):
        self._metrics: list[Metrics] = []
        self._places: list[np.ndarray] = []
        self._matrices: dict[str, np.ndarray] = {}
        self._images = 0
        self._first_step_seconds: float | None = None
        self._compiled = False
        self.restart_clock()

    def wait_for(self, batches: Iterator) -> Any:
        """The next batch; the wait counts if the steps before it are done by then."""
        start = time.perf_counter()
        batch = next(batches)
        if not self._metrics or all(x.is_ready() for x in jax.tree.leaves(self._metrics[-1])):
            self._waited += time.perf_counter() - start
        return batch

    def add(self, metrics: Metrics, places: np.ndarray) -> None:
        """Takes a step's metrics without waiting for them, but for the first step's."""
        self._metrics.append(metrics)
        self._places.append(places)
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled, self._first_step_seconds = True, self._seconds()
            self.restart_clock()
            return
        self._images += places.size * jax.process_count()
        if len(self._metrics) > MAX_STEPS_IN_FLIGHT:
            jax.block_until_ready(self._metrics[-1 - MAX_STEPS_IN_FLIGHT])

    def read(self) -> tuple[dict[str, Any], list[Step]]:
        """The values of a line, and the steps that they are of; starts the next window.

        The values are means of the means, sums of the counts and the rate. Means leave
        skipped steps out, unless all are.
        """
        host = jax.device_get(self._metrics)
        steps = [Step(places, *metrics) for places, metrics in zip(self._places, host, strict=True)]
        means = [step.means for step in steps if not step.counts.get(SKIPPED, 0)]
        means = means or [step.means for step in steps]
        values = {k: np.mean([m[k] for m in means], axis=0, dtype=np.float64) for k in means[0]}
        sums = {k: np.sum([step.counts[k] for step in steps], axis=0) for k in steps[0].counts}
        for name, matrix in sums.items():
            if matrix.ndim == 2:
                self._matrices[name] = self._matrices.get(name, 0) + matrix
        values |= sums
        if self._first_step_seconds is not None:
            values["first_step_seconds"] = self._first_step_seconds
        if self._images:
            seconds = self._seconds()
            values |= {
                "images_per_second": self._images / seconds,
                "data_wait": self._waited / seconds,
            }
        self._clear()
        return values, steps

    def drop(self) -> None:
        """Forgets the steps since the last line, and what was counted since the last pictures."""
        self._matrices = {}
        self._clear()

    def take_matrices(self) -> dict[str, np.ndarray]:
        """Sums of the counts of two axes over all lines since they were last taken."""
        taken, self._matrices = self._matrices, {}
        return taken

    def restart_clock(self) -> None:
        """Leaves the time since the last step out of the rate and the wait."""
        self._start, self._waited = time.perf_counter(), 0.0

    def _clear(self) -> None:
        self._metrics, self._places, self._images, self._first_step_seconds = [], [], 0, None
        self.restart_clock()

    def _seconds(self) -> float:
        return time.perf_counter() - self._start
