"""Settings as nested dictionaries of plain values: what a config or a file can hold.

    {"backbone": {"name": "resnet", "depth": 18}, "roi": {"sample": {"num_samples": 64}}}

A group is a dictionary of its fields; so is a Linen module, with its `name`
beside them. What a dictionary leaves out stays what it was.
"""

import dataclasses
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from jaxdet.detectors.settings import Group
from jaxdet.models import MODULES
from jaxdet.types import UserError

NO_MODULE = "none"
PLAIN = (bool, int, float, str, tuple, type(None), Group, nn.Module)
# Attributes of modules that the detector sets, from its other settings.
SET_BY_DETECTOR = ("parent", "name", "dtype", "remat", "axis_name", "num_classes", "num_anchors")
# The group that a detector sets in the modules that it has if no others are named.
SHARED = "blocks"


class Leaf(NamedTuple):
    """A setting that is no dictionary.

    Attributes:
        default: its value where nothing is said.
        type: its annotation.
        owner: the function or class whose docstring explains it.
    """

    default: Any
    type: Any
    owner: Any


def describe(builder: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a detector, as nested dictionaries of `Leaf`.

    Args:
        builder: of the detector.
        given: settings that it is to be built with. Of a module that these
            name, the settings are described, at their defaults.

    Raises:
        UserError: for a module that is unknown.
    """
    parameters, shared = _parameters(builder)
    found = {}
    for key, parameter in parameters.items():
        names = _names(given.get(key))
        value = parameter.default
        if names:
            value = _fill(value, names, key, shared, parameter.annotation)
        leaf = Leaf(value, parameter.annotation, builder)
        found[key] = _describe(value, leaf, shared)
    return found


def fill(builder: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a detector's builder: its defaults, changed by dictionaries.

    Args:
        builder: of the detector.
        given: its settings, each as the builder takes it or as a dictionary.

    Raises:
        UserError: for a setting that is unknown, with the nearest that is
            known, one of another type, and a module that is unknown.
    """
    parameters, shared = _parameters(builder)
    check_known(given, parameters, "")
    return {
        key: _fill(parameters[key].default, value, key, shared, parameters[key].annotation)
        for key, value in given.items()
    }


def complete(builder: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a detector, those that are given and the defaults, as plain values.

    Args:
        builder: of the detector.
        given: as for `fill`.

    Raises:
        UserError: as `fill`.
    """
    fill(builder, given)

    def put(tree, part):
        return {
            key: put(leaf, part.get(key, {}))
            if isinstance(leaf, Mapping)
            else part.get(key, leaf.default)
            for key, leaf in tree.items()
        }

    return put(describe(builder, given), given)


def fields_of(
    value: Group | nn.Module, shared: Mapping[type, Sequence[str]] = types.MappingProxyType({})
) -> dict[str, dataclasses.Field]:
    """The fields of a group or a module that a dictionary may set.

    Args:
        value: the group or the module.
        shared: classes of modules, and what the detector sets in them; see `SHARED`.
    """
    hidden = list(SET_BY_DETECTOR) if isinstance(value, nn.Module) else []
    for cls, names in shared.items():
        if isinstance(value, cls):
            hidden += names
    fields = {field.name: field for field in dataclasses.fields(value) if field.name not in hidden}
    # A module of one's own may have functions and such, which no file can hold.
    return {name: f for name, f in fields.items() if isinstance(getattr(value, name), PLAIN)}


def check_known(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuses keys that are not known, and names the nearest that is.

    Raises:
        UserError: for the first one.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            listed = ", ".join(known) or "none"
            place = f" of {where}" if where else ""
            raise UserError(f"no setting {key!r}{place}; {hint}known: {listed}")


def find_module(name: str) -> type[nn.Module] | None:
    """The class of a module by its name.

    Args:
        name: a key of `models.MODULES`, "none", or "package.module:Class" for
            one of one's own.

    Raises:
        UserError: if there is no such module.
    """
    if name == NO_MODULE:
        return None
    if name in MODULES:
        return MODULES[name]
    package, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join((*MODULES, NO_MODULE))
        raise UserError(f"unknown module {name!r}; known: {known}, and package.module:Class")
    try:
        found = getattr(importlib.import_module(package), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"module {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{name!r} wants to be a flax.linen.Module, found {found!r}")
    return found


def with_tuples(value: Any) -> Any:
    """A value with its lists, such as JSON has, as tuples."""
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotated type; an int is a float, too, and a bool is no number."""
    if annotation is Any:
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        kinds = typing.get_args(annotation)
        if not isinstance(value, tuple):
            return False
        if kinds[-1:] == (...,):
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if annotation in (int, float):
        number = (int, float) if annotation is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def written(annotation: Any) -> str:
    """An annotation in words: "float or tuple of float"."""
    if annotation is type(None) or annotation is None:
        return "None"
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(map(written, arguments))
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(repr, arguments))
    if typing.get_origin(annotation) is tuple:
        if arguments[-1:] == (...,):
            return f"tuple of {written(arguments[0])}"
        return f"({', '.join(map(written, arguments))})"
    return getattr(annotation, "__name__", str(annotation))


def _parameters(builder):
    """What a config may set of a builder's parameters, and what its own modules share."""
    parameters = dict(inspect.signature(builder).parameters)
    parameters.pop("num_classes", None)
    names = tuple(vars(parameters[SHARED].default)) if SHARED in parameters else ()
    defaults = [parameter.default for parameter in parameters.values()]
    return parameters, {type(part): names for part in defaults if isinstance(part, nn.Module)}


def _names(given):
    """The names of modules in nested settings, and nothing else of them."""
    if not isinstance(given, Mapping):
        return {}
    parts = {key: _names(value) for key, value in given.items() if isinstance(value, Mapping)}
    own = {"name": given["name"]} if "name" in given else {}
    return own | {key: names for key, names in parts.items() if names}


def _describe(value, leaf, shared):
    if value is None and _is_module(leaf.type):
        return {"name": Leaf(NO_MODULE, str, nn.Module)}
    if not isinstance(value, Group | nn.Module):
        return leaf
    found = {}
    if isinstance(value, nn.Module):
        found["name"] = Leaf(_name(type(value)), str, nn.Module)
    for name, field in fields_of(value, shared).items():
        part = getattr(value, name)
        found[name] = _describe(part, Leaf(part, field.type, type(value)), shared)
    return found


def _fill(value, given, where, shared, annotation=Any):
    if not isinstance(given, Mapping):
        return _check_type(given, annotation, where)
    given, named = dict(given), ()
    if isinstance(value, nn.Module) or _is_module(annotation):
        named = ("name",)
        if "name" in given:
            value = _take_module(given.pop("name"), value, where, annotation)
    fields = fields_of(value, shared) if isinstance(value, Group | nn.Module) else {}
    check_known(given, (*named, *fields), where)
    changes = {
        key: _fill(getattr(value, key), part, f"{where}.{key}", shared, fields[key].type)
        for key, part in given.items()
    }
    if isinstance(value, nn.Module):
        return value.clone(**changes)
    return dataclasses.replace(value, **changes) if changes else value


def _take_module(name, value, where, annotation):
    """The module of a name, with its own defaults; the value, if it is one of these."""
    cls = find_module(_check_type(name, str, f"{where}.name"))
    if cls is None:
        return _check_type(None, annotation, where)
    if type(value) is cls:
        return value
    try:
        return cls()
    except TypeError as error:
        raise UserError(f"{where}: all attributes of {name} want defaults: {error}") from error


def _check_type(value, annotation, where):
    value = with_tuples(value)
    if not fits(value, annotation):
        raise UserError(f"{where} wants {written(annotation)}, found {value!r}")
    return value


def _is_module(annotation):
    return annotation is nn.Module or nn.Module in typing.get_args(annotation)


def _name(cls):
    for name, known in MODULES.items():
        if known is cls:
            return name
    return f"{cls.__module__}:{cls.__qualname__}"
