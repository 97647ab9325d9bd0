"""What ends a run before its last step: signals, the clock, and no improvement."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OUT_OF_TIME = -1  # In the place of a signal's number.

_LOADED = time.monotonic()
# What the runtime of jax.distributed is asked with: it knows one number of a process, the last,
# and stops all behind the largest. Not the step, which falls where a run goes back.
_QUESTIONS = itertools.count(1)


class Stopping(NamedTuple):
    """When a run ends before its last step.

    Attributes:
        patience: a run is finished after so many evaluations in a row that are no better
            than the last which was; 0 for never.
        min_delta: an evaluation is better only if it is by more than this, in the metric
            that the best checkpoint is chosen by.
        max_hours: after so many hours since the process began, the run saves and ends, to
            be gone on with by the same command; 0 for no limit.
    """

    patience: int = 0
    min_delta: float = 0.0
    max_hours: float = 0.0

    def out_of_patience(self, scores: Iterable[float]) -> bool:
        """Whether the last of some evaluations, in their order, leave nothing to wait for.

        A score that is not a number is no improvement.
        """
        best, waited = -np.inf, 0
        for score in scores:
            if score > best + self.min_delta:
                best, waited = score, 0
            else:
                waited += 1
        return 0 < self.patience <= waited

    def why(self) -> str:
        """What it means that the patience is out."""
        more = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.patience} evaluations were no better than the best{more} (config.patience)"


NO_LIMIT = Stopping()


class Stop:
    """Turns signals and the end of the time into a request that the loop looks at after each step.

    The second signal ends the process at once. With several processes all must stop
    at the same step: there the runtime of jax.distributed takes SIGTERM, and tells
    it to all. What else stops one of them leads there.
    """

    def __init__(self, max_hours: float = 0.0):
        """Takes no signal yet."""
        self._max_hours, self._received, self._before = max_hours, 0, {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            taken = STOP_SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
            self._before = {s: signal.signal(s, self._receive) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self) -> int:
        """What to stop for after a step: a signal, `OUT_OF_TIME`, or 0 for nothing.

        All processes must ask for it after each step; all get the same answer.
        """
        overdue = self._max_hours and seconds_of_process() > 3600 * self._max_hours
        if overdue and not self._received:
            self._received = OUT_OF_TIME
            self._tell()
        if jax.process_count() == 1:
            return self._received
        if not multihost.reached_preemption(next(_QUESTIONS)):
            return 0
        reasons = set(multihost_utils.process_allgather(np.int32(self._received)).tolist())
        known = [reason for reason in (signal.SIGINT, OUT_OF_TIME) if reason in reasons]
        return int(known[0] if known else signal.SIGTERM)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        self._tell()

    def _tell(self) -> None:
        """Tells the other processes, where there are any."""
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def seconds_of_process() -> float:
    """The age of this process; where the system does not tell it, that of this module."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError):
        return time.monotonic() - _LOADED
