"""One run, one folder: who writes into the folder of a run."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from jaxdet.types import UserError

try:
    import fcntl
except ImportError:  # Windows: two starts within a millisecond are not told apart there.
    fcntl = None

NAME = "run.lock"  # In the workdir.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
BEAT = 20.0  # Seconds between two signs of life.
FIELDS = ("host", "pid", "started", "place", "birth")
SILENCE = 300.0  # Seconds without one after which the process of another machine is dead.


@contextlib.contextmanager
def owned(workdir: str | Path, *, active: bool = True) -> Iterator[None]:
    """Owns a folder until the end, made where it is missing.

    The owner stands in `run.lock`: machine, process, start. It is removed at the
    end, also by SIGTERM and SIGHUP. Of a process that was killed it stays, and
    is taken over by the next: on the same machine at once, from another one
    after `SILENCE`.

    Args:
        workdir: folder of a run.
        active: False on all processes of a run but the first; they own nothing.

    Raises:
        UserError: if another process owns the folder.
    """
    if not active:
        yield
        return
    workdir = Path(workdir)
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path, mine = workdir / NAME, _describe_process()
    _take(path, mine)
    ended, beating = threading.Event(), threading.RLock()  # A signal may come within `release`.
    arguments = (path, mine, ended, beating)
    threading.Thread(target=_show_life, args=arguments, daemon=True).start()

    def release() -> None:
        ended.set()
        with beating:
            if _read(path) == mine:
                path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # Not empty.
                workdir.rmdir()

    with _before_signals(release):
        try:
            yield
        finally:
            release()


def _take(path: Path, mine: dict[str, Any]) -> None:
    partial = path.with_name(f"{NAME}.{mine['host']}.{mine['pid']}"[:200])
    with _alone(path.parent):
        try:
            partial.write_text(json.dumps(mine))
            # The file system's clock, as it may be another machine's.
            age = partial.stat().st_mtime - path.stat().st_mtime if path.exists() else 0.0
            owner = _read(path)
            if owner and _lives(owner, mine, age):
                raise UserError(_refusal(path, owner, age))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one start at a time look at the lock, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    """Who owns the folder; None if nobody does, or it cannot be read."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(owner, dict) and owner.keys() >= {*FIELDS}
    return owner if known else None


def _lives(owner: dict[str, Any], mine: dict[str, Any], age: float) -> bool:
    if owner["place"] != mine["place"] or not fcntl:
        return age < SILENCE
    return _birth(owner["pid"]) == owner["birth"]


def _refusal(path: Path, owner: dict[str, Any], age: float) -> str:
    process = f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    return (
        f"{path.parent} belongs to another run: {process}, alive {max(age, 0):.0f} s ago; end it "
        f"first, or name another --workdir ({path} is taken over once it is dead)"
    )


def _show_life(
    path: Path, mine: dict[str, Any], ended: threading.Event, beating: threading.RLock
) -> None:
    while not ended.wait(BEAT):
        with beating:
            if not ended.is_set():  # Else it would come back after its removal.
                _beat(path, mine)


def _beat(path: Path, mine: dict[str, Any]) -> None:
    owner = _read(path)
    if owner and owner != mine:
        # This process was asleep for so long that it was given up.
        print(f"error: {_refusal(path, owner, 0)}; this one ends", file=sys.stderr, flush=True)
        os._exit(1)
    with contextlib.suppress(OSError):  # The next one may work.
        if not owner:
            path.write_text(json.dumps(mine))
        os.utime(path)


@contextlib.contextmanager
def _before_signals(release: Callable[[], None]) -> Iterator[None]:
    """Calls a function before a signal ends the process; leaves what others handle or ignore."""

    def end(number: int, _: FrameType | None) -> None:
        release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # With several processes the runtime of jax.distributed takes SIGTERM, which Python can't see.
    alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    taken = [n for n in SIGNALS if alone and signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _describe_process() -> dict[str, Any]:
    host, space = socket.gethostname(), "/proc/self/ns/pid"
    # Containers may share their machine's name, and count their processes apart.
    space = os.readlink(space) if os.path.exists(space) else ""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    values = (host, os.getpid(), started, f"{host} {space}", _birth(os.getpid()))
    return dict(zip(FIELDS, values, strict=True))


def _birth(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
        return _ask(pid)
    state, *fields = stat.rpartition(")")[2].split()  # The name before may hold anything.
    return None if state in "ZX" else f"{boot} {fields[18]}"


def _ask(pid: int) -> str | None:
    with contextlib.suppress(PermissionError):  # Another user's.
        try:
            if fcntl:  # On Windows this would end it.
                os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return "alive"
