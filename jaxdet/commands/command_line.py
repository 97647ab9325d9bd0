"""The command line of every command that takes a config.

    --config.SETTING VALUE
                        changes a setting of the config; docs/settings.md lists them

A flag and its value may also have a "=" between them. Without --config the
settings are those of the run in the workdir.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from jaxdet.commands import config_files, ending, keys, schema
from jaxdet.data.sources import own
from jaxdet.detectors import nested
from jaxdet.types import UserError

# The settings that decide which others there are.
_CHOICES = re.compile(r"detector|data\.source|evaluation\.name|model\.(.+\.)?name")


class Arguments(NamedTuple):
    """What the user asked for."""

    config: ConfigDict
    workdir: Path
    flags: argparse.Namespace


def run(
    command: Callable[[Arguments], int],
    argv: Sequence[str],
    *,
    usage: str,
    define: Callable[[argparse.ArgumentParser], None],
) -> NoReturn:
    """Runs a command and ends the process with its status.

    What goes wrong is said as `ending.in_one_line` does.

    Args:
        command: gives the exit status.
        argv: the command line, the command's name first.
        usage: what --help says first.
        define: adds the command's own flags.
    """
    with ending.in_one_line(argv) as place:
        arguments = read(argv, usage=usage, define=define)
        place.folder = arguments.workdir
        status = command(arguments)
        # Of a run before, which ended otherwise.
        (arguments.workdir / ending.TRACEBACK_NAME).unlink(missing_ok=True)
        sys.exit(status)


def read(
    argv: Sequence[str], *, usage: str = "", define: Callable[[Any], None] = lambda parser: None
) -> Arguments:
    """Reads a command line; the config comes with all its keys.

    Args:
        argv: the command line, the command's name first.
        usage: what --help says first.
        define: adds the command's own flags.

    Raises:
        UserError: for mistakes in the file, unknown flags, files or keys, keys
            that are missing, and values of another type or out of range.
    """
    changes, rest = split(argv[1:])
    parser = ending.Parser(argv[0], usage, epilog=__doc__.partition("\n\n")[2])
    add = parser.add_argument
    add("--config", metavar="FILE[:ARGUMENT]", help="a recipe, or the config.json of a run")
    add("--workdir", metavar="FOLDER", help="of the run; runs/<name of the recipe>")
    add("--debug", action="store_true", help="show where an error comes from")
    define(parser)
    flags = parser.parse_args(rest)
    workdir = _folder(flags.workdir) if flags.workdir else None
    config, name = _read_config(flags.config, workdir)
    return Arguments(finish(config, changes), workdir or Path("runs", name), flags)


def finish(config: Mapping[str, Any], changes: Sequence[tuple[str, str | None]] = ()) -> ConfigDict:
    """A config with all keys, changed by paths and texts of their values.

    Raises:
        UserError: for keys that are unknown or missing, and values of another
            type or out of their range.
    """
    config, changes = _copy(config), dict(changes)  # The last one of a path counts.
    _let_follow(config, changes)
    for path in filter(_CHOICES.fullmatch, changes):
        _choose(config, path, changes[path])
    tree = schema.describe(config)
    for path, text in changes.items():
        if not _CHOICES.fullmatch(path):
            _put(config, path, keys.read_value(text, _key(tree, path, config), path))
    try:
        found = schema.complete(config, tree)
    except schema.UnknownKey as error:
        raise schema.unknown_key(str(error), tree, config["detector"]) from None
    data = found["data"]
    data["resize"] = data["resize"] or _sides(data)
    found["eval_batch_size"] = found["eval_batch_size"] or found["batch_size"]
    return ConfigDict(found)


def _let_follow(config: dict[str, Any], changes: Mapping[str, str | None]) -> None:
    """Lets what was as another setting is be so still where that is changed.

    The config that a run has saved says both.
    """
    data = config.get("data", {})
    if "data.canvas" in changes and tuple(data.get("resize", ())) == _sides(data):
        data["resize"] = ()
    if "batch_size" in changes and config.get("eval_batch_size") == config.get("batch_size"):
        config["eval_batch_size"] = 0


def _sides(data: Mapping[str, Any]) -> tuple[int, ...]:
    """What images are resized to where nothing else is said: the sides of the canvas."""
    return tuple(sorted(data.get("canvas", ())))


def split(arguments: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The changes of settings, and all other arguments."""
    changes, rest, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        path, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            text = waiting.pop(0) if waiting and not waiting[0].startswith("--") else None
        changes.append((path, text))
    return changes, rest


def _read_config(named: str | None, workdir: Path | None) -> tuple[dict[str, Any], str]:
    if named:
        return config_files.read(named)
    if workdir and config_files.last_saved(workdir).is_file():
        return config_files.read_json(config_files.last_saved(workdir)), ""
    found = f"; {workdir} has no {config_files.SAVED_NAME}" if workdir else ""
    raise UserError(f"name a config: --config=FILE, such as --config=configs/quickstart.py{found}")


def _folder(text: str) -> Path:
    if "://" in text:
        raise UserError(f"--workdir wants a folder of this machine, found the URL {text}")
    return Path(text).expanduser()


def _choose(config: dict[str, Any], path: str, name: str | None) -> None:
    """Names another detector, source, evaluation or module; what it does not know is dropped."""
    if not name:
        raise UserError(f"config.{path} wants a name")
    if path == "data.source":  # Of a file of one's own the whole path is kept: it may be resumed.
        name = own.locate(name, Path())
    before, key = schema.describe(config), path.rpartition(".")[2]
    if path == "detector":
        if name != config[path]:
            _keep_known(config, before["model"], name)
        return
    section = _section(config, path.rpartition(".")[0])
    now = section.get(key, _key(before, path, config).default)
    if name != now and path == "data.source":
        section["options"] = {}
    elif name != now:
        section.clear()
    section[key] = name


def _keep_known(config: dict[str, Any], before: Mapping[str, Any], detector: str) -> None:
    """Keeps what is said of the model where another detector knows it, too.

    Values that are the old detector's defaults are nobody's wish: the config of
    a run has all of them.
    """
    was, defaults = config["detector"], dict(schema.leaves(before))
    said = dict(schema.leaves(config.get("model", {})))
    config["detector"], config["model"] = detector, {}
    dropped = set()
    for path, value in sorted(said.items(), key=lambda item: not item[0].endswith("name")):
        if path in defaults and defaults[path].default == nested.with_tuples(value):
            continue
        known = dict(schema.leaves(schema.describe(config)["model"]))
        if path in known:
            _put(config, f"model.{path}", value)
        else:
            dropped.add(path.partition(".")[0])
    if dropped:
        logging.getLogger("jaxdet").warning(
            "warning: settings of %s in config.model.%s are not for %s and left out",
            was,
            ", ".join(sorted(dropped)),
            detector,
        )


def _key(tree: Mapping[str, Any], path: str, config: Mapping[str, Any]) -> keys.Key:
    key: Any = tree
    for name in path.split("."):
        if not isinstance(key, Mapping) or name not in key:
            raise schema.unknown_key(path, tree, config["detector"])
        key = key[name]
    if isinstance(key, Mapping):
        raise UserError(f"config.{path} has settings of its own: {', '.join(key)}")
    return key


def _section(config: dict[str, Any], path: str) -> dict[str, Any]:
    for name in filter(None, path.split(".")):
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise UserError(f"config.{path} has no settings of its own")
    return config


def _put(config: dict[str, Any], path: str, value: Any) -> None:
    section, _, name = path.rpartition(".")
    _section(config, section)[name] = value


def _copy(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in config.items()}
