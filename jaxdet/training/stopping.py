"""What ends a run before its last step."""

import signal
import threading
from types import FrameType

import jax

from jaxdet.training.checkpoint import Checkpoints

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Turns SIGINT and SIGTERM into a request that the loop looks at after each step.

    The second signal ends the process at once. With several processes all must
    stop at the same step: there the runtime of jax.distributed takes SIGTERM.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._received, self._before = 0, {}

    def __enter__(self) -> "Stop":
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._receive) for s in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step: int) -> int:
        """The signal to stop for after this step, 0 for none."""
        if jax.process_count() > 1 and self._checkpoints.reached_preemption(step):
            return int(signal.SIGTERM)
        return self._received

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
