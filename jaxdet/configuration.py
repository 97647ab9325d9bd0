"""The command line and the config file: read, check, save, compare.

A config is a file with `get_config(argument="")` that returns a flat
`ml_collections.ConfigDict` with sections. Every mistake in it is a UserError.
"""

import difflib
import json
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxdet.training.writer import write_json
from jaxdet.types import UserError

KEYS = (
    "batch_size",  # Images of a step, over all devices.
    "checkpoint_every",  # Steps; 0 saves after evaluations only.
    "data",  # Section: the source, and keyword arguments of the pipeline.
    "detector",  # Name of the method.
    "eval_batch_size",
    "eval_every",  # Steps; 0 evaluates at the end only.
    "eval_images",  # At most so many images are evaluated; 0 for all.
    "init_from",  # File of pretrained weights, or "".
    "log_every",  # Steps.
    "model",  # Section: keyword arguments of the detector.
    "num_pictures",  # Pictures drawn after each evaluation.
    "num_steps",
    "optimizer",  # Section: keyword arguments of the optimizer.
    "picture_score",  # Lowest score that is drawn.
    "seed",
)
DATA_KEYS = ("classes", "eval_split", "options", "root", "source", "train_split")

# A resumed run with another value of these is another run.
IDENTITY = ("batch_size", "data.classes", "detector", "model", "optimizer", "seed")


class CommandLine(NamedTuple):
    """What the user asked for."""

    config: ConfigDict
    workdir: Path
    flags: flags.FlagValues


def read_command_line(argv: Sequence[str], *, define: Any = None) -> CommandLine:
    """Reads --config=FILE[:ARG], --workdir=DIR and --config.any.thing=VALUE.

    Args:
        argv: the command line; `sys.argv`, where ml_collections looks again.
        define: `(flag_values) -> None`, defines the command's other flags.

    Raises:
        UserError: for unknown flags, files or keys, and values of another type.
    """
    file, argument = _find_config_file(argv)
    original = runpy.run_path(str(file))["get_config"](*filter(None, [argument]))
    _check_keys("config", original, KEYS)
    # ml_collections stumbles over unknown keys, so they are looked for first.
    for override in (a for a in argv if a.startswith("--config.")):
        _check_override(override.removeprefix("--config.").partition("=")[0], original)

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "FILE[:ARG]", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    if define is not None:
        define(values)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")
    _check_tuples("config", values.config, original)
    name = "-".join(filter(None, [file.stem, re.sub(r"\W+", "-", argument)]))
    return CommandLine(values.config, Path(values.workdir or Path("runs", name)), values)


def check_section(
    section: str, given: Iterable[str], *, known: Iterable[str], required: Iterable[str] = ()
) -> None:
    """Checks the keys of a section that are keyword arguments of a function.

    Raises:
        UserError: for the first unknown key, with the known ones, or the first
            one that is missing.
    """
    for key in given:
        if key not in known:
            raise UserError(_unknown(f"config.{section}", key, sorted(known)))
    for key in required:
        if key not in given:
            raise UserError(f"config.{section} lacks the key {key!r}")


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON."""
    write_json(path, config.to_dict())


def differing_keys(config: ConfigDict, path: Path) -> list[str]:
    """The keys that make another run, and differ from a saved config; "" has none.

    Returns:
        Sentences such as "optimizer.learning_rate was 0.1 and is 0.2".
    """
    if not path.exists():
        return []
    before = _flatten(json.loads(path.read_text()))
    now = _flatten(json.loads(json.dumps(config.to_dict())))
    return [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and any(f"{key}.".startswith(f"{prefix}.") for prefix in IDENTITY)
    ]


def _find_config_file(argv: Sequence[str]) -> tuple[Path, str]:
    named = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not named:
        raise UserError("name a config: --config=FILE, such as --config=configs/quickstart.py")
    name, _, argument = named[-1].partition(":")
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*.py")), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"no config file {path}{hint}")
    return path, argument


def _check_keys(section: str, given: ConfigDict, wanted: Sequence[str]) -> None:
    for key in given:
        if key not in wanted:
            raise UserError(_unknown(section, key, wanted))
    for key in wanted:
        if key not in given:
            raise UserError(f"{section} lacks the key {key!r}")


def _check_override(path: str, config: ConfigDict) -> None:
    section = "config"
    for key in path.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"{section} has no keys; it is {config!r}")
        if key not in config:
            raise UserError(_unknown(section, key, sorted(config)))
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


def _unknown(section: str, key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{section} has no key {key!r}; {hint}known: {', '.join(known) or 'none'}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
