"""What a config may say: every key once; those that are declared, and what its names bring."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from jaxdet import detectors
from jaxdet.commands.declared import DATA, OPTIMIZER, RUN
from jaxdet.commands.keys import REQUIRED, Key, check, meanings_in, taken
from jaxdet.commands.renamed import RENAMED
from jaxdet.data import sources
from jaxdet.detectors import nested
from jaxdet.evaluation import EVALUATIONS
from jaxdet.types import UserError

_EVALUATION = Key("coco", str, f"what is measured: {', '.join(EVALUATIONS)}")
MODULE_NAME = "which module it is: a name of `jaxdet.models.MODULES`, or `package.module:Class`"


class UnknownKey(UserError):
    """A path that does not exist; `unknown_key` says what does."""


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of a config, as nested dictionaries of `Key`.

    Args:
        config: nested settings. What it names (detector, modules, data source,
            evaluation) decides on the keys.

    Raises:
        UserError: for a name that is unknown.
    """
    data, model = _section(config, "data"), _section(config, "model")
    for path, section, key in (("detector", config, RUN), ("data.source", data, DATA)):
        name = path.rpartition(".")[2]
        if not section.get(name):
            raise UserError(f"config.{path} is missing: {key[name].meaning}")
        check(section[name], key[name], path)
    evaluation, source = _section(config, "evaluation").get("name", "coco"), data["source"]
    check(evaluation, _EVALUATION, "evaluation.name")
    if evaluation not in EVALUATIONS:
        raise UserError(f"unknown evaluation.name {evaluation!r}{_hint(evaluation, EVALUATIONS)}")
    builder = detectors.find_builder(config["detector"])
    with_names = {key: value for key, value in model.items() if isinstance(value, Mapping)}
    return {
        **RUN,
        "data": {**DATA, "options": options(source)},
        "evaluation": {
            "name": _EVALUATION,
            **_keyword_only(EVALUATIONS[evaluation].evaluate),
        },
        "model": _from_leaves(nested.describe(builder, with_names)),
        "optimizer": OPTIMIZER,
    }


def options(source: str) -> dict[str, Key]:
    """The settings that only this data source takes.

    Raises:
        UserError: if it is unknown.
    """
    owner, names = sources.options(source)
    return taken(owner, *names) if source in sources.SOURCES else _own_options(owner, names)


def _own_options(owner: Callable, names: Iterable[str]) -> dict[str, Key]:
    """The settings of a function of the user's, which may lack types and meanings."""
    parameters, meanings = inspect.signature(owner).parameters, meanings_in(owner)
    return {
        name: Key(
            parameters[name].default, _type_of(parameters[name], owner), meanings.get(name, "")
        )
        for name in names
    }


def _type_of(parameter: inspect.Parameter, owner: Callable) -> Any:
    """A type that is written as text may name what only type checkers import: it is any then."""
    found = parameter.annotation
    if isinstance(found, str):
        try:
            found = eval(found, inspect.unwrap(owner).__globals__)
        except Exception:
            return Any
    return Any if found is inspect.Parameter.empty else found


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The items of nested dictionaries, with their paths: ("roi.sample.num_samples", 512)."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def free_settings(config: Mapping[str, Any]) -> set[str]:
    """Settings, as "data.root", of which a training comes to the same numbers whatever they are."""
    best_decides = config["reload_best_at_milestones"] or config["patience"]
    free = {"nothing"} if best_decides else {"nothing", "best"}
    found = {path for path, key in leaves(describe(config)) if key.decides in free}
    # There are checkpoints, which are gone back to, where these say so.
    saved_at = {"checkpoint_every", "eval_every", "final_eval_every"}
    return found - saved_at if config["on_not_finite"] == "go_back" else found


def unknown_key(path: str, tree: Mapping[str, Any], detector: str) -> UserError:
    """The error for a path that does not exist, with the nearest that does."""
    said = f"there is no setting config.{path}"
    section, _, name = path.rpartition(".")
    places = RENAMED.get(detector, {}).get(name, ())
    if section == "model" and places:
        return UserError(f"{said}: it is config.model.{places[0]} now")
    beside = _at(tree, section)
    paths = [known for known, _ in leaves(tree)]
    if beside is None:
        # The section is wrong, its name or its place.
        near = [known for known in paths if known.rpartition(".")[2] == name]
        near = difflib.get_close_matches(path, near or paths, n=1, cutoff=0.3 if near else 0.6)
    else:
        near = difflib.get_close_matches(name, beside, n=1)
        near = [".".join(filter(None, (section, each))) for each in near]
        near = near or [known for known in paths if known.rpartition(".")[2] == name][:1]
    if near:
        return UserError(f"{said}; did you mean config.{near[0]}?")
    place = f"config.{section}" if section else "config"
    return UserError(f"{said}; {place} has {', '.join(beside or ())}")


def complete(config: Mapping[str, Any], tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A config with all keys, each of its type.

    Args:
        config: nested settings.
        tree: its keys, from `describe`.
        path: of both in the whole config, with a dot at its end.

    Raises:
        UnknownKey: for the first key that is unknown.
        UserError: for a key that is missing, and a value of another type or out
            of its range.
    """
    for name in config:
        if name not in tree:
            raise UnknownKey(f"{path}{name}")
    found = {}
    for name, key in tree.items():
        place = f"{path}{name}"
        if isinstance(key, Mapping):
            part = config.get(name, {})
            if not isinstance(part, Mapping):
                raise UserError(f"config.{place} wants settings of its own, found {part!r}")
            found[name] = complete(part, key, f"{place}.")
        elif name in config:
            found[name] = check(config[name], key, place)
        elif key.default is REQUIRED:
            raise UserError(f"config.{place} is missing: {key.meaning}")
        else:
            found[name] = key.default
    return found


def _keyword_only(function: Callable) -> dict[str, Key]:
    parameters = inspect.signature(function).parameters.values()
    return taken(function, *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))


def _from_leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            found[name] = _from_leaves(leaf)
        elif leaf.owner is nn.Module:
            found[name] = Key(leaf.default, leaf.type, MODULE_NAME)
        else:
            found[name] = Key(leaf.default, leaf.type, meanings_in(leaf.owner).get(name, ""))
    return found


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, Mapping):
        raise UserError(f"config.{name} wants settings of its own, found {section!r}")
    return section


def _at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The section at a path; None where there is none."""
    for name in filter(None, path.split(".")):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else None


def _hint(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
