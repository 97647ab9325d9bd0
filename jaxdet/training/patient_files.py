"""Files that a full disk does not end a run with: what it refuses is written later."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import tensorboardX
from tensorboardX.record_writer import register_writer_factory

log = logging.getLogger("jaxdet")


class Refusals:
    """Says once of each file that the disk refuses it, and again once it has recovered."""

    def __init__(self):
        """Nothing is refused."""
        self._refused: set[str] = set()

    def attempt(self, path: Path, write: Callable[[], None]) -> bool:
        """Calls what writes a file; whether that worked."""
        try:
            write()
        except OSError as error:
            if str(path) not in self._refused:
                log.warning("warning: %s is not written: %s; the run goes on", path, error.strerror)
            self._refused.add(str(path))
            return False
        self._refused.discard(str(path))
        return True


class PatientFile:
    """A file that grows; what the disk refuses waits in memory for the next flush."""

    def __init__(self, path: str | Path, mode: str = "ab"):
        """Opens it, or makes it.

        Raises:
            OSError: if that is impossible.
        """
        self._path, self._waiting, self._refusals = Path(path), b"", Refusals()
        self._file = open(path, mode, buffering=0)

    def write(self, data: bytes) -> None:
        """Takes what is to be written."""
        self._waiting += data

    def flush(self) -> None:
        """Writes what it can."""
        self._refusals.attempt(self._path, self._write)

    def close(self) -> None:
        """Writes what it can for the last time."""
        self.flush()
        if self._waiting:
            log.warning("warning: the last %d bytes of %s are lost", len(self._waiting), self._path)
        self._file.close()

    def _write(self) -> None:
        while self._waiting:  # A disk that fills up takes a part.
            self._waiting = self._waiting[self._file.write(self._waiting) :]


class _Factory:
    """Opens TensorBoard's files so; its thread would end at an error, and its queue then block."""

    PREFIX = "patient"

    @classmethod
    def open(cls, path: str) -> PatientFile:
        return PatientFile(path.removeprefix(f"{cls.PREFIX}:"), "wb")

    @classmethod
    def directory_check(cls, path: str) -> None:
        os.makedirs(path.removeprefix(f"{cls.PREFIX}:"), exist_ok=True)


register_writer_factory(_Factory.PREFIX, _Factory)


def open_board(folder: str | Path, *, purge_step: int) -> tensorboardX.SummaryWriter:
    """TensorBoard's file of a run, from a step on."""
    return tensorboardX.SummaryWriter(f"{_Factory.PREFIX}:{folder}", purge_step=purge_step)
