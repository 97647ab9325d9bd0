"""What a run says of the devices: memory, and a trace of some steps."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxdet.training import leftovers
from jaxdet.types import UserError

log = logging.getLogger("jaxdet")


def device_memory() -> dict[str, float]:
    """The most memory that was in use so far on a local device, in GiB.

    Nothing where that is unknown: CPUs do not tell it.
    """
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in known if "peak_bytes_in_use" in stats]
    return {"device_memory_gib": max(peaks) / 2**30} if peaks else {}


def check_profile_steps(steps: tuple[int, ...]) -> None:
    """Checks the setting.

    Raises:
        UserError: if the steps are no range.
    """
    if steps and not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"config.profile_steps wants (first, last) with 1 <= first <= last, found {steps}"
        )


class Profile:
    """Traces some steps with jax.profiler, for TensorBoard's plugin and xprof."""

    def __init__(self, folder: Path | None = None, steps: tuple[int, ...] = ()):
        """Begins nothing yet.

        Args:
            folder: for the trace.
            steps: the first and the last, from 1 on; () for none.
        """
        self._folder, self._steps = folder, steps
        self._on, self._done = False, not steps

    def before(self, step: int) -> None:
        """Begins the trace if it is due at this step; there is one at most."""
        if not self._done and not self._on and self._steps[0] <= step <= self._steps[1]:
            self._on = self._attempt(partial(jax.profiler.start_trace, self._folder))

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace once the last of its steps is done on the devices."""
        if self._on and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that goes on."""
        if self._on:
            self._on, self._done = False, True
            if self._attempt(jax.profiler.stop_trace):
                log.info("the trace of steps is in %s", self._folder)

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Calls the profiler; a disk that refuses the trace does not end the run."""
        try:
            call()
        except (OSError, RuntimeError) as error:
            self._done = True
            reason = leftovers.reason(error)
            log.warning("warning: steps are not traced: %s: %s", self._folder, reason)
            return False
        return True
