"""How a command ends, and what it says about the data."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxdet.types import UserError


def run_command(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a command; a mistake of the user's or of the disk's is one line and status 1.

    With --help the docstring of the command's file is all that is printed.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(main.__globals__["__doc__"])
        sys.exit(0)
    log, handler = logging.getLogger("jaxdet"), logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # Imported packages may have given the root logger a handler.
    try:
        sys.exit(main(sys.argv))
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True


def losses_of_data(loader: Any) -> list[str]:
    """Sentences about the images and objects that a run could not use."""
    sentences = []
    if loader.unreadable:
        sentences.append(f"{loader.unreadable} times an unreadable image gave way to the next")
    if loader.left_out:
        sentences.append(f"{loader.left_out} times an object found no slot in data.max_boxes")
    return sentences


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
