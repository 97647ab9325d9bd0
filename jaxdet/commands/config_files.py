"""Files of settings: a recipe with `get_config()`, or the config.json that a run has left."""

import difflib
import inspect
import json
import math
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdet.commands import renamed, schema
from jaxdet.data.sources import own
from jaxdet.types import UserError
from jaxdet.whole_files import write_json

SAVED_NAME = "config.json"  # In the workdir.


def read(named: str) -> tuple[dict[str, Any], str]:
    """Reads a file of settings, as they stand there.

    Args:
        named: FILE or FILE:ARGUMENT; the argument goes to its `get_config`.

    Returns:
        Nested settings, and a name for a run of them.

    Raises:
        UserError: for whatever is wrong in the file, with its line.
    """
    name, _, argument = named.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*.py")), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"no config file {path}{hint}")
    if path.suffix == ".json":
        # That of a run is called as its folder is.
        return read_json(path), path.resolve().parent.name if path.name == SAVED_NAME else path.stem
    config = _run(path, argument)
    words = "".join(letter if letter.isalnum() else "-" for letter in argument)
    name = "-".join(filter(None, (path.stem, words)))
    found = config.copy_and_resolve_references().to_dict()
    data = found.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        data["source"] = own.locate(data["source"], path.parent)
    return found, name


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, of this version or of 0.1.

    Raises:
        UserError: if it is something else.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the config of a run: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not the config of a run: it holds {values!r}")
    if isinstance(values.get("model"), dict):
        values["model"] = renamed.upgrade(str(values.get("detector", "")), values["model"])
    return values


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON, which has no infinite numbers: they become text."""
    write_json(path, _with_text(config.to_dict()))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ, by path; None stands for one that is not there."""
    before, now = (dict(schema.leaves(json.loads(json.dumps(c)))) for c in (one, other))
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved settings with all keys that there are by now; as they are, of a version with others."""
    try:
        return schema.complete(saved, schema.describe(saved))
    except UserError:
        return saved


def last_saved(workdir: Path) -> Path:
    """The settings that a run used last.

    That is `config.<step>.json` of the last step that it was resumed at with
    other settings than before, or `config.json`.
    """
    resumed = {step: path for path, step in _resumed(workdir)}
    return resumed[max(resumed)] if resumed else workdir / SAVED_NAME


def keep(config: ConfigDict, workdir: Path, done: int) -> None:
    """Writes the settings of a run that starts after a step; what it began with stays.

    Nothing is written where it goes on with those that it used last.
    """
    for path, step in _resumed(workdir):
        if step > done:  # Of a part of the run that was given up.
            path.unlink()
    last = last_saved(workdir)
    path = workdir / (f"config.{done}.json" if done else SAVED_NAME)
    if not done or not last.exists() or differences(read_json(last), _with_text(config.to_dict())):
        save(config, path)


def describe_differences(config: ConfigDict) -> list[str]:
    """The settings that are not the defaults: a line for each section of the config."""
    defaults = dict(schema.leaves(schema.describe(config.to_dict())))
    sections: dict[str, list[str]] = {}
    for path, value in schema.leaves(config.to_dict()):
        if path not in defaults or defaults[path].default != value:
            section, _, name = path.rpartition(".")
            sections.setdefault(section, []).append(f"{name}={value}")
    return [f"{f'{section}: ' if section else ''}{' '.join(s)}" for section, s in sections.items()]


def with_classes_of_run(config: ConfigDict, workdir: Path) -> ConfigDict:
    """A config whose classes are those of the run in a folder, in the order that it learnt them.

    Raises:
        UserError: if it names others: labels would change their meaning.
    """
    path = last_saved(workdir)
    was = read_json(path).get("data", {}).get("classes", ()) if path.exists() else ()
    wanted = config.data.classes
    if not was or tuple(was) == tuple(wanted):
        return config
    if wanted and set(was) != set(wanted):
        raise UserError(
            f"the run in {workdir} has data.classes {was}, found {list(wanted)}: labels would "
            "change their meaning; name another --workdir"
        )
    return with_classes(config, was)


def with_classes(config: ConfigDict, names: Sequence[str]) -> ConfigDict:
    """A config that names these classes."""
    values = config.to_dict()
    values["data"]["classes"] = tuple(names)
    return ConfigDict(values)


def changes_of_run(config: ConfigDict, path: Path) -> list[str]:
    """What makes another run of a config than the saved one; no file, nothing.

    Left out are those that decide nothing, see `schema.free_settings`, and the classes, see
    `with_classes_of_run`.

    Returns:
        Sentences such as "optimizer.learning_rate was 0.1 and is 0.2".
    """
    if not path.exists():
        return []
    saved, now = with_defaults(read_json(path)), config.to_dict()
    free = schema.free_settings(now) | {"data.classes"}
    lengths = {path for path, key in schema.leaves(schema.describe(now)) if key.is_length}
    return [
        f"{key} was {before} and is {after}"
        for key, (before, after) in differences(saved, now).items()
        # How many steps an epoch has is not known yet.
        if key not in free and not (key in lengths and "epoch" in str(after))
    ]


def _run(file: Path, argument: str) -> ConfigDict:
    """Runs a config file, once; all that goes wrong in it is a UserError with the line.

    It may import another one of its folder and change what that gives.
    """
    folder, known = str(file.resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise UserError(f"{file} has no function get_config()")
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f"{file} takes no argument, found {argument!r}")
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        if isinstance(error, SyntaxError):
            file, lines = error.filename, [error.lineno]
            error = SyntaxError(error.msg)
        place = f"{file}:{lines[-1]}" if lines else file
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - known:  # Another folder may have one of the same name.
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == Path(folder):
                del sys.modules[name]
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {file} gives no ConfigDict, but {config!r}")
    return config


def _resumed(workdir: Path) -> list[tuple[Path, int]]:
    """Each `config.<step>.json`, and its step."""
    paths = [(path, path.name.split(".")[1]) for path in workdir.glob("config.*.json")]
    return [(path, int(step)) for path, step in paths if step.isdecimal()]


def _with_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_text(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_with_text(item) for item in value]
    return "inf" if value == math.inf else value
