"""The process in which one side of a benchmark runs: prepares a work, then times it on demand.

It imports neither JAX nor torch, so that each side has its own environment. The parent
(`harness.py`) starts it with a case as JSON, reads one line of facts once the work is
prepared and warm, and one line of numbers for each line that it writes.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# A timed call lasts at least so long: a clock's and a process switch's share is small then.
LEAST_SECONDS = 0.3


class Work(NamedTuple):
    """What is timed.

    Attributes:
        start: begins the work once; may return before it is done.
        wait: for what `start` returned last.
        facts: known before it runs; numbers and text.
        peak_bytes: the most memory that was in use on the device so far; None
            takes the process's own, on a host.
        flops: of a call, None if unknown; asked for once it is warm, since to count
            them may trace it again.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    facts: Mapping[str, Any] = {}
    peak_bytes: Callable[[], int] | None = None
    flops: Callable[[], float | None] = lambda: None


def serve(works: Mapping[str, Callable[..., Work]]) -> None:
    """Prepares the case of the command line, and times it whenever the parent asks."""
    answers = _keep_answers_apart()
    case = json.loads(sys.argv[1])
    work = works[case.pop("work")](**case)
    first = _time(work, 1)
    # The second call may still fill caches; the third says how often to repeat.
    work.wait(work.start())
    times = max(1, math.ceil(LEAST_SECONDS / max(_time(work, 1), 1e-7)))
    _say(answers, {"first_s": first, "calls": times, "flops": work.flops(), **work.facts})
    for _ in sys.stdin:
        seconds = _time(work, times)
        peak = (work.peak_bytes or _peak_of_process)()
        _say(answers, {"seconds": seconds, "peak_bytes": peak})


def _time(work, times):
    """Seconds of one call among so many, one after the other."""
    began = time.perf_counter()
    for _ in range(times):
        last = work.start()
    work.wait(last)
    return (time.perf_counter() - began) / times


def _keep_answers_apart():
    """The true standard output; what else is printed goes where errors go."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers, found):
    print(json.dumps(found), file=answers, flush=True)


def _peak_of_process():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
