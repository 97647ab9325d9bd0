"""A source of the user's own: a function in a module of a package, or in a file.

`package.module:function`, or `folder/file.py:function`. It is called with `root`, `split`,
`classes` and its own settings, and gives a `jaxdet.types.Source`.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.types import Example, Source, UserError

_GIVEN = ("root", "split", "classes")


def is_own(name: str) -> bool:
    """Whether a name is of a function, and none of `SOURCES`."""
    return ":" in name


def find(name: str) -> Callable[..., Source]:
    """The function of a name; its module is loaded once.

    Raises:
        UserError: if there is no such module or function, it cannot be loaded, or it does
            not take what it is called with.
    """
    place, _, attribute = name.rpartition(":")
    module = _load(place, name)
    function = getattr(module, attribute, None)
    if not inspect.isfunction(function):
        has = [key for key, each in vars(module).items() if inspect.isfunction(each)]
        listed = ", ".join(key for key in has if key[0] != "_") or "none"
        raise UserError(f"data.source {name!r}: no function {attribute!r} there; it has {listed}")
    parameters = inspect.signature(function).parameters.values()
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    lacks = [key for key in _GIVEN if key not in takes]
    if lacks:
        wanted = ", ".join(_GIVEN)
        raise UserError(
            f"data.source {name!r}: wants the arguments {wanted}; no {lacks[0]!r} there"
        )
    return function


def locate(name: str, folder: Path) -> str:
    """The name with the file that it means where that is beside a config; else the name."""
    place, _, attribute = name.rpartition(":")
    relative = place if place.endswith(".py") else f"{place.replace('.', '/')}.py"
    file = folder / relative
    return f"{file.resolve()}:{attribute}" if place and file.is_file() else name


def call(name: str, *, root: str, split: str, classes: tuple[str, ...], **own: Any) -> Source:
    """Opens the source of a function, and looks at what it gives.

    Raises:
        UserError: for whatever goes wrong in it, with the line, and if it gives no source, or one
            of other classes than it was asked for.
    """
    function = find(name)
    try:
        source = function(root=root, split=split, classes=classes, **own)
    except UserError:
        raise
    except Exception as error:
        raise _said(error, name) from error
    said = f"data.source {name!r}"
    if not isinstance(source, Source) or isinstance(source, list | tuple | str):
        found = type(source).__name__
        raise UserError(f"{said} wants to give a source (docs/data.md), found {found}")
    names = source.class_names
    if not names or not all(isinstance(each, str) for each in names):
        raise UserError(f"{said}: class_names wants a tuple of names, found {names!r:.80}")
    if classes and tuple(names) != classes:
        raise UserError(
            f"{said}: class_names wants to be the classes that it is called with, "
            f"{', '.join(classes)}; found {', '.join(names)}"
        )
    if len(source):
        _check_first(source, said)
    return source


def _load(place: str, name: str) -> Any:
    """A module by its name or its file; what is loaded is kept, as imports are."""
    file = Path(place).expanduser().resolve()
    if place.endswith(".py") and str(file) in sys.modules:
        return sys.modules[str(file)]
    if place.endswith(".py") and not file.is_file():
        raise UserError(f"data.source {name!r}: there is no file {file}")
    # Beside a file its own neighbours can be imported; a name is looked for in this folder, too.
    folder = str(file.parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(str(file), file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[str(file)] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[str(file)]
            raise
        return module
    except Exception as error:
        raise _said(error, name) from error
    finally:
        sys.path.remove(folder)


def _said(error: Exception, name: str) -> UserError:
    """What went wrong, with the line of the user's file where it was in one."""
    skipped = (str(Path(__file__).parents[2]), os.path.dirname(importlib.__file__), "<")
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if not frame.filename.startswith(skipped)]
    # What the user's file calls may fail deep in another library.
    frames = [frame for frame in frames if frame.filename == frames[0].filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    reason = " ".join(str(error).split())
    return UserError(f"data.source {name!r}: {type(error).__name__}: {reason}{place}")


def _check_first(source: Source, said: str) -> None:
    """Looks at the first example, where it can be read."""
    try:
        example = source[0]
    except (OSError, ValueError):  # Counted as unreadable when it is needed.
        return
    except Exception as error:
        raise _said(error, said) from error
    if not isinstance(example, Example):
        found = type(example).__name__
        raise UserError(f"{said}: wants jaxdet.types.Example for each image, found {found}")
    count = len(example.labels)
    wanted = {"boxes": (count, 4), "crowd": (count,), "difficult": (count,), "area": (count,)}
    for field, shape in wanted.items():
        if np.shape(getattr(example, field)) != shape:
            found = np.shape(getattr(example, field))
            raise UserError(f"{said}: image {example.id!r}: {field} wants {shape}, found {found}")
    labels = np.asarray(example.labels)
    if count and not (
        labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < len(source.class_names)
    ):
        raise UserError(
            f"{said}: image {example.id!r}: labels want whole numbers below "
            f"{len(source.class_names)}, found {labels.tolist()[:9]}"
        )
