"""How a command ends: with its status, and with one line where something is wrong."""

import argparse
import difflib
import io
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

from jaxdet.types import UserError

TRACEBACK_NAME = "traceback.txt"  # In the command's folder.


class Parser(argparse.ArgumentParser):
    """Shows a usage as it is written, and says what is wrong in one line."""

    def __init__(self, program: str, usage: str, epilog: str | None = None):
        """Takes a command's name as it was called, and what --help says first and last."""
        super().__init__(
            prog=f"python {Path(program).name}" if program else None,
            description=usage,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As usual, but unknown flags are answered with the nearest that is known."""
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                raise UserError(f"unexpected argument {name!r}")
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            raise UserError(f"unknown flag {name}{f'; did you mean {near[0]}?' if near else ''}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        raise UserError(message)


@contextmanager
def in_one_line(argv: Sequence[str]) -> Iterator[SimpleNamespace]:
    """Turns what goes wrong inside into a line and status 1; shows the log meanwhile.

    Of a mistake of the user's or of the disk's there is only the line. Where it
    was found by an error in the code, and for all other errors, the traceback
    is kept in the command's folder; --debug shows it.

    Args:
        argv: the command line.

    Yields:
        A place whose `folder` is the command's, once that is known.
    """
    log, handler = logging.getLogger("jaxdet"), logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # Imported packages may have given the root logger a handler.
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a file is called need be no text; stderr does so by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    debug, place = "--debug" in argv, SimpleNamespace(folder=None)
    try:
        with _quiet_opencv():
            yield place
    except UserError as error:
        _fail(str(error), error if error.__cause__ else None, place.folder, debug)
    except OSError as error:
        line = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(line, error, None, debug)
    except Exception as error:
        # A mistake of ours, about which a line says too little.
        if place.folder is not None:
            with suppress(OSError):
                place.folder.mkdir(parents=True, exist_ok=True)
        line = f"{type(error).__name__}: {error}"
        _fail(line, error, place.folder, debug or place.folder is None)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True


def _quiet_opencv():
    """Keeps OpenCV quiet where a command has loaded it; others do without it."""
    if sys.modules.get("cv2") is None:
        return nullcontext()
    from jaxdet.data.decoding import quiet_opencv

    return quiet_opencv()


def _fail(line: str, error: Exception | None, folder: Path | None, debug: bool) -> NoReturn:
    """Says a line and, of an error in the code, where it is; keeps that in the folder."""
    line = " ".join(line.split())
    text = "".join(traceback.format_exception(error)) if error else ""
    if debug:
        print(text, file=sys.stderr, end="")
    elif error and folder and folder.is_dir():
        try:
            (folder / TRACEBACK_NAME).write_text(text, errors="backslashreplace")
            line += f" (where: {folder / TRACEBACK_NAME}, or --debug)"
        except OSError:  # A full disk may be what is wrong.
            line += " (where: --debug)"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)
