"""The processes of one run: they join, tell each other what they found, and end together.

The runtime of `jax.distributed` is the engine: its heartbeat finds a process that died or
hangs, and its collectives carry what is told.
"""

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from jaxdet.training import steps
from jaxdet.types import UserError

Value = TypeVar("Value")

# Seconds that a process which is done waits for the others, such as for the report that the
# first one writes. What became of them is for the heartbeat to find.
_PATIENCE = 7 * 24 * 3600
_AGAIN = "the same command, given to all processes again, resumes at the last checkpoint"
# Says its first line once the process that holds the other end of its pipe is gone, unless
# that has said a second one. It takes no orders that are meant for the whole group.
_WATCH = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lines = sys.stdin.readlines()
if len(lines) == 1:
    sys.stderr.write("\\n" + lines[0])
"""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
) -> Iterator[None]:
    """Joins the other processes of a run, before any device is used; leaves them at the end.

    Whoever is done waits for the others. Whoever fails ends without waiting, so that
    the others fail soon. The runtime aborts a process whose coordinator is lost, or
    that has a peer which the heartbeat found dead, with a text of its own and the
    signal SIGABRT; a line that says how to go on comes behind it, as also after a
    kill. It comes from a small process of its own, as nothing else outlives an abort.

    Args:
        coordinator: HOST:PORT of process 0; None where JAX finds it by itself, and
            likewise the next two.
        num_processes: of the run.
        process_id: which of them this is.
        heartbeat_seconds: a process that gives no sign of life for so long is dead.

    Raises:
        UserError: if they cannot be joined; inside, if a collective fails, as
            happens where a process has ended and its connections with it.
    """
    with _watched() as say:
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=_PATIENCE,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--distributed: {str(error).splitlines()[0]}") from error
        _connect()
        name = f"process {jax.process_index()} of {jax.process_count()}"
        say(
            f"error: {name} ended abruptly: it was killed, or another one died, hung or was out "
            f"of reach for {heartbeat_seconds} s (heartbeat_seconds), which the lines above say; "
            f"{_AGAIN}"
        )
        try:
            yield
            jax.distributed.shutdown()
        except BaseException as error:
            # Behind the line about the error, and before JAX waits for the others.
            atexit.register(_end, say)
            if isinstance(error, jax.errors.JaxRuntimeError):
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{name} failed: {reason}; if another one ended before, its own line says "
                    f"why; {_AGAIN}"
                ) from error
            raise
        say("ended")


def gather(make: Callable[[], Value]) -> list[Value]:
    """Calls a function on every process, and gives each of them all the values, in order.

    All processes must call it. Values are pickled, so every number keeps its bits.

    Raises:
        Exception: what the function raised here.
        UserError: if it failed on another process.
    """
    if jax.process_count() == 1:
        return [make()]
    value, failure = None, None
    try:
        value = make()
    except Exception as error:  # The others would wait for this one.
        failure = error
    told = _gather_bytes(pickle.dumps((value, failure and f"{type(failure).__name__}: {failure}")))
    if failure:
        raise failure
    values = [pickle.loads(each) for each in told]
    for index, (_, reason) in enumerate(values):
        if reason:
            raise UserError(f"process {index} failed: {reason}")
    return [value for value, _ in values]


def check_alike(**facts: Any) -> None:
    """Checks that the processes of a run agree, as otherwise they would silently part.

    Args:
        **facts: by name; mappings are compared item by item.

    Raises:
        UserError: on all processes, for the first fact in which two differ.
    """
    first, *others = gather(lambda: flatten_dict(facts, sep="."))
    for index, other in enumerate(others, 1):
        for name in first | other:
            wanted, found = first.get(name), other.get(name)
            if wanted != found:
                raise UserError(
                    f"the processes of a run want the same command, data and folder: {name} is "
                    f"{wanted!r} on process 0, and {found!r} on process {index}"
                )


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[str], None]]:
    """Starts `_WATCH`; gives what says a line to it."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is not for it.
    )

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # It may have been killed.
            watcher.stdin.write(f"{line}\n")
            watcher.stdin.flush()

    yield say
    watcher.stdin.close()
    watcher.wait()


def _end(say: Callable[[str], None]) -> None:
    """Ends this process without a word to the others."""
    say("ended")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _connect() -> None:
    """Opens the connections of collectives while all processes are here.

    On CPUs JAX opens them at the first use, and waits for others no longer than 30 s: one
    that takes so much longer to read its data or to compile would end the run.
    """
    steps.connect()
    multihost_utils.process_allgather(np.ones(1))


def _gather_bytes(data: bytes) -> list[bytes]:
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    # In powers of two, so that few programs are compiled.
    rows = np.zeros(1 << int(max(sizes) - 1).bit_length(), np.uint8)
    rows[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(rows)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
