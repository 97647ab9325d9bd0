"""Lists of names as people's programs write them."""

import logging
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TypeVar

from jaxdet.text_files import read_text
from jaxdet.types import UserError

T = TypeVar("T")
# Behind a name in the lists that VOC's devkit has for each class: 1 for images that show it,
# 0 for those that show difficult ones only, -1 for the others.
_FLAGS = ("1", "0", "-1")
_SHOWN = ("1", "0")


def read_list(path: Path, known: Container[str], suffixes: Iterable[str]) -> list[str]:
    """The image names of a split list, one a line, each once.

    A line is a name; it may have a folder before it, an ending, or behind it a
    flag of VOC's lists of one class, which leaves out images with -1.

    Args:
        path: of the list.
        known: names of images, without folder and ending: a line that is one is taken as it is.
        suffixes: endings of images, in lower case.

    Raises:
        UserError: if it is no text, or lists nothing.
        OSError: if it cannot be read.
    """
    names, hidden = [], 0
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        *name, flag = line.rsplit(maxsplit=1)
        if line in known or not name or flag not in _FLAGS:
            name, flag = [line], "1"
        hidden += flag not in _SHOWN
        if flag in _SHOWN:
            names.append(_stem(name[0], known, tuple(suffixes)))
    if not names:
        found = f"{hidden} with the flag -1" if hidden else "an empty file"
        raise UserError(f"{path}: wanted names of images, one a line; found {found}")
    return take_once(zip(names, names, strict=True), path)


def take_once(named: Iterable[tuple[str, T]], where: object) -> list[T]:
    """What is behind each name that is listed, in the order of their first times.

    How many names are there again is logged.

    Args:
        named: the names, and what is behind them.
        where: the list, for the message.
    """
    named = list(named)
    found = dict(reversed(named))  # The first of each counts.
    if len(found) < len(named):
        twice = Counter(name for name, _ in named).most_common(1)[0][0]
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d names are listed more than once, such as %r: each is taken once",
            *(where, len(named) - len(found), len(named), twice),
        )
    return [found[name] for name in dict.fromkeys(name for name, _ in named)]


def _stem(name: str, known: Container[str], suffixes: tuple[str, ...]) -> str:
    if name in known:
        return name
    name = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in suffixes and name not in known else name
