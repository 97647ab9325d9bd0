"""One setting: its type, default, range and meaning.

What belongs to a function or a class elsewhere is taken from there: its type and
default from the signature, its meaning from the docstring; its range is checked
there, too.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdet.commands import lengths
from jaxdet.detectors import nested
from jaxdet.literals import read_literal
from jaxdet.types import UserError

REQUIRED = inspect.Parameter.empty


class Key(NamedTuple):
    """One setting.

    Attributes:
        default: its value where nothing is said, or REQUIRED.
        type: its annotation.
        meaning: a sentence or two; units and range where they are not plain.
        low: the least number; None for none.
        below: numbers are below this.
        is_length: a number of steps, which may be said as "12 epochs".
        is_path: a file or folder, whose "~" is the user's home.
        decides: what of a training: its "numbers", only which checkpoint is the "best", or
            "nothing", so that a run that is resumed with another value is the same run.
    """

    default: Any
    type: Any
    meaning: str
    low: float | None = None
    below: float = math.inf
    is_length: bool = False
    is_path: bool = False
    decides: Literal["numbers", "best", "nothing"] = "numbers"


def length(default: Any, meaning: str, low: int = 0, decides: str = "numbers") -> Key:
    """A number of steps."""
    return Key(default, int | str, meaning, low=low, is_length=True, decides=decides)


def taken(owner: Callable, *names: str, **ranges: Any) -> dict[str, Key]:
    """Keys that are parameters of a function or fields of a class.

    Args:
        owner: has their types, defaults and, in its docstring, their meanings.
        *names: of the parameters.
        **ranges: more parameters, and the least number of each or other fields of `Key`.
    """
    parameters, meanings = inspect.signature(owner).parameters, meanings_in(owner)
    found = {}
    for name in (*names, *ranges):
        more = ranges.get(name, {})
        key = Key(parameters[name].default, parameters[name].annotation, meanings[name])
        found[name] = key._replace(**(more if isinstance(more, dict) else {"low": more}))
    return found


def meanings_in(owner: Callable) -> dict[str, str]:
    """What a docstring says of each argument or attribute."""
    text = inspect.getdoc(owner) or ""
    section = re.search(r"^(?:Args|Attributes)[^\n]*:\n((?:    .*\n|\n)*)", f"{text}\n", re.M)
    if section is None:
        return {}
    items = re.findall(r"^    \**(\w+): (.*(?:\n        .*)*)", section[1], re.M)
    return {name: " ".join(meaning.split()) for name, meaning in items}


def check(value: Any, key: Key, path: str) -> Any:
    """A value as its key wants it: lists as tuples, whole numbers as floats, "~" as a folder.

    Raises:
        UserError: if it is of another type, or out of the key's range.
    """
    value = nested.with_tuples(value)
    if value == "inf" and key.type is float:
        value = math.inf  # As a file of JSON has it.
    if isinstance(value, Mapping) or not nested.fits(value, key.type):
        raise UserError(f"config.{path} wants {nested.written(key.type)}, found {value!r}")
    if key.type is float:
        value = float(value)
    if key.is_length:
        for each in value if isinstance(value, tuple) else (value,):
            if lengths.in_epochs(each, path) == 0 and key.low:
                raise UserError(f"config.{path} wants at least a step, found {each!r}")
    if key.low is not None and not isinstance(value, str | tuple):
        if not value >= key.low:
            raise UserError(f"config.{path} wants at least {key.low}, found {value!r}")
        if not value < key.below:
            raise UserError(f"config.{path} wants less than {key.below}, found {value!r}")
    return str(Path(value).expanduser()) if key.is_path and value else value


def read_value(text: str | None, key: Key, path: str) -> Any:
    """The value of a command line's --config.PATH=TEXT; None stands for a flag without a value.

    Raises:
        UserError: as `check`.
    """
    if text is None and key.type is not bool:
        raise UserError(f"config.{path} wants a value: {nested.written(key.type)}")
    if text is None:
        return True
    if key.type is str:
        return check(text, key, path)
    value = read_literal({"true": "True", "false": "False"}.get(text, text))
    return check(value, key, path)
