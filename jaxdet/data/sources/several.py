"""Many things read, so that all mistakes in them are known at once."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxdet.types import UserError

MOST = 1000  # Mistakes that are kept: of a file of another kind each line is one.


class SeveralMistakes(UserError):
    """Mistakes in one data set: the message is the first and how many others there are.

    Attributes:
        lines: the message of each.
    """

    def __init__(self, lines: list[str]):
        """Takes the messages, one at least."""
        others = "others or more" if len(lines) == MOST else "more mistakes"
        more = f" (and {len(lines) - 1} {others}: see `jaxdet check`)"
        super().__init__(lines[0] + more * (len(lines) > 1))
        self.lines = lines


def read_all(read: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What `read` gives of each item.

    Raises:
        SeveralMistakes: for all that it raises as UserErrors, `MOST` at most.
    """
    found, lines = [], []
    for item in items:
        try:
            found.append(read(item))
        except UserError as error:
            lines += getattr(error, "lines", [str(error)])
            if len(lines) >= MOST:
                break
    if lines:
        raise SeveralMistakes(lines[:MOST])
    return found
