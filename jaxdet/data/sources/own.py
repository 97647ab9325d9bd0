"""A source of the user's own: a function in a module of a package, or in a file.

`package.module:function`, or `folder/file.py:function`. It is called with `root`, `split`,
`classes` and its own settings, and gives a `jaxdet.types.Source`.
"""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.sources.checked import Checked, explained
from jaxdet.types import Source, UserError

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


def call(name: str, /, *, root: str, split: str, classes: tuple[str, ...], **own: Any) -> Source:
    """Opens the source of a function; what it gives is looked at, the first example at once.

    Raises:
        UserError: for whatever goes wrong in it, with the line, and if it gives no source, or one
            of other classes than it was asked for.
    """
    function, said = find(name), f"data.source {name!r}"
    with explained(said):
        found = function(root=root, split=split, classes=classes, **own)
    source = Checked(found, said)
    if classes and source.class_names != classes:
        raise UserError(
            f"{said}: class_names wants to be the classes that it is called with, "
            f"{', '.join(classes)}; found {', '.join(source.class_names)}"
        )
    # What cannot be read is counted when it is needed.
    with contextlib.suppress(OSError, UnreadableImage):
        if len(source):
            source[0]
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
        with explained(f"data.source {name!r}"):
            return _load_file(file) if place.endswith(".py") else importlib.import_module(place)
    finally:
        sys.path.remove(folder)


def _load_file(file: Path) -> Any:
    """A file as a module of the package in whose folder it lies, which `from .` imports from."""
    root = file.parent
    while (root / "__init__.py").is_file() and root != root.parent:
        root = root.parent
    # A folder without __init__.py is a package, too, if one that nothing says to be one.
    root = root if root != file.parent else root.parent
    package = ".".join(file.parent.relative_to(root).parts)
    # Not its own name: another module may have that. The last dot ends the name of the package.
    path = f"{package}.{str(file).replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(path, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[str(file)] = sys.modules[path] = module
    sys.path.append(str(root))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(file)], sys.modules[path]
        raise
    finally:
        sys.path.remove(str(root))
    return module
