"""The command line and the config file: read, check, save, compare.

A config is a file with `get_config()`, or `get_config(argument="")`, that returns
a flat `ml_collections.ConfigDict` with sections, or the config.json that a run has
left. Every mistake in it is a UserError.
"""

import contextlib
import difflib
import inspect
import json
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from jaxdet import settings
from jaxdet.training.writer import write_json
from jaxdet.types import UserError

SAVED_NAME = "config.json"  # In the workdir.

# A run that is resumed with other values of these is the same run.
FREE_KEYS = (
    "checkpoint_every",
    "data.num_threads",
    "data.root",
    "eval_batch_size",
    "eval_every",
    "eval_images",
    "final_eval_every",
    "log_every",
    "num_pictures",
    "picture_score",
    "pictures_every",
)
# But for these, where the best checkpoint so far is reloaded: they choose it.
CHOOSE_BEST = ("eval_every", "eval_images", "final_eval_every")


class CommandLine(NamedTuple):
    """What the user asked for."""

    config: ConfigDict
    workdir: Path
    flags: flags.FlagValues


def read_command_line(argv: Sequence[str], *, define: Any = None) -> CommandLine:
    """Reads --config=FILE[:ARG], --workdir=DIR and --config.any.thing=VALUE.

    Without --config the config of the run in the workdir is taken. It comes
    with all defaults, so that each of them can be overridden and the saved
    config is the whole run.

    Args:
        argv: the command line, the command's name first.
        define: `(flag_values) -> None`, defines the command's other flags.

    Raises:
        UserError: for mistakes in the file, unknown flags, files or keys, keys
            that are missing, and values of another type.
    """
    file, argument = _find_config_file(argv)
    config = _load_json(file) if file.suffix == ".json" else _load(file, argument)
    # Another method has other settings, so its name is needed before the flags are read.
    settings.complete(
        config,
        detector=_last_value(argv, "config.detector", config.get("detector")),
        evaluation=_last_value(argv, "config.evaluation.name", ""),
        source=_last_value(argv, "config.data.source", ""),
    )
    original = config.copy_and_resolve_references()
    # ml_collections stumbles over unknown keys, so they are looked for first.
    for override in (a for a in argv if a.startswith("--config.")):
        _check_override(override.removeprefix("--config.").partition("=")[0], original)

    values = flags.FlagValues()
    rest = [a for a in argv if not a.startswith("--config=")]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
        if define is not None:
            define(values)
        rest = values(rest)[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")
    _check_tuples("config", values.config, original)
    name = "-".join(filter(None, [file.stem, re.sub(r"\W+", "-", argument)]))
    return CommandLine(values.config, Path(values.workdir or Path("runs", name)), values)


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    write_json(path, config.to_dict())


def differing_keys(config: ConfigDict, path: Path) -> list[str]:
    """The keys that differ from a saved config; no file differs in none.

    Left out are `FREE_KEYS`, but for `CHOOSE_BEST` where they matter.

    Returns:
        Sentences such as "optimizer.learning_rate was 0.1 and is 0.2".

    Raises:
        UserError: if the classes differ: labels would change their meaning.
    """
    if not path.exists():
        return []
    saved = _load_json(path)
    with contextlib.suppress(UserError):  # Of a version that knew other keys.
        settings.complete(saved, detector=saved.get("detector", ""))
    before = flatten_dict(json.loads(json.dumps(saved.to_dict())), sep=".")
    now = flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")
    was, wanted = before.get("data.classes"), now["data.classes"]
    if was != wanted:
        raise UserError(f"the run in {path.parent} has data.classes {was}, found {wanted}")
    free = set(FREE_KEYS)
    if config.reload_best_at_milestones:
        free -= set(CHOOSE_BEST)
    return [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in free
    ]


def _find_config_file(argv: Sequence[str]) -> tuple[Path, str]:
    named, workdir = _last_value(argv, "config", ""), _last_value(argv, "workdir", "")
    if not named and workdir and Path(workdir, SAVED_NAME).is_file():
        return Path(workdir, SAVED_NAME), ""
    if not named:
        found = f"; {workdir} has no {SAVED_NAME}" if workdir else ""
        raise UserError(
            f"name a config: --config=FILE, such as --config=configs/quickstart.py{found}"
        )
    name, _, argument = named.partition(":")
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*.py")), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"no config file {path}{hint}")
    return path, argument


def _last_value(argv: Sequence[str], flag: str, default: str) -> str:
    values = [a.partition("=")[2] for a in argv if a.startswith(f"--{flag}=")]
    return values[-1] if values else default


def _load(file: Path, argument: str) -> ConfigDict:
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


def _load_json(file: Path) -> ConfigDict:
    """Reads what `save` wrote, but for its lists, which were tuples."""
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not the config of a run: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not the config of a run: it holds {values!r}")
    return ConfigDict(_with_tuples(values))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _check_override(path: str, config: ConfigDict) -> None:
    section = "config"
    for key in path.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"{section} has no keys; it is {config!r}")
        if key not in config:
            raise settings.unknown_key(section, key, config)
        section, config = f"{section}.{key}", config[key]


def _check_tuples(section: str, given: ConfigDict, original: ConfigDict) -> None:
    for key, value in given.items():
        if isinstance(value, ConfigDict):
            _check_tuples(f"{section}.{key}", value, original[key])
        elif isinstance(value, tuple) and original.get(key):
            kinds = {type(item) for item in original[key]}
            kinds |= {int} if float in kinds else set()
            for item in value:
                if type(item) not in kinds:
                    names = " or ".join(sorted(kind.__name__ for kind in kinds))
                    raise UserError(f"{section}.{key} wants items of type {names}, found {item!r}")
