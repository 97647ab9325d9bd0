"""What a config may say: its keys, their defaults and the numbers that make sense.

The keys of the sections are keyword arguments, so their names and defaults are
read from the signatures and written down nowhere else.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxdet.data import mosaic, pipeline, sources, transforms
from jaxdet.detectors import DETECTORS
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training.multiscale import check_heights
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import UserError

REQUIRED = inspect.Parameter.empty

KEYS = {
    "batch_size": REQUIRED,  # Images of a step, over all devices.
    "checkpoint_every": REQUIRED,  # Steps; 0 saves after evaluations only.
    "data": REQUIRED,  # Section: the source, and keyword arguments of the pipeline.
    "detector": REQUIRED,  # Name of the method.
    # Averages of parameters and statistics are kept, and evaluated instead of them; 0 for none.
    "ema_decay": 0.0,
    "ema_ramp": 2000,  # Steps in which the decay grows to about 63 % of `ema_decay`.
    "eval_batch_size": REQUIRED,
    "eval_every": REQUIRED,  # Steps; 0 evaluates at the end only.
    "eval_images": REQUIRED,  # At most so many images are evaluated; 0 for all.
    "evaluation": REQUIRED,  # Section: the name of the metrics, and their keyword arguments.
    "final_eval_every": 0,  # Steps between evaluations in the final steps; 0 for `eval_every`.
    # In the last so many steps there are no mosaics (with what moves and mixes them), a detector
    # that knows an L1 loss of raw boxes has it, and "warmup_cosine" stays at its lowest rate.
    "final_steps": 0,
    "init_from": REQUIRED,  # File of pretrained weights, or "".
    "log_every": REQUIRED,  # Steps.
    "model": REQUIRED,  # Section: keyword arguments of the detector.
    "multiscale_every": 10,  # Steps for which a drawn height stays.
    # Heights of the canvas, one of which is drawn; batches are resized to it on the device.
    "multiscale_heights": (),
    "num_pictures": REQUIRED,  # Pictures drawn at a time.
    "num_steps": REQUIRED,
    "optimizer": REQUIRED,  # Section: keyword arguments of the optimizer.
    "picture_score": REQUIRED,  # Lowest score that is drawn.
    "pictures_every": 0,  # Steps; 0 draws after evaluations only.
    # Whether the best parameters so far come back at each of optimizer.milestones.
    "reload_best_at_milestones": False,
    "seed": REQUIRED,
}
DATA_KEYS = {
    **dict.fromkeys(
        ("classes", "eval_split", "options", "root", "source", "train_split"), REQUIRED
    ),
    "proposals": "",  # File of given proposals; "{split}" stands for the name of the split.
}
DEFAULT_EVALUATION = "coco"

# Arguments that a config does not choose in the section.
EVALUATION_OWN = ("class_names", "detections", "examples")
MODEL_OWN = ("num_classes",)
OPTIMIZER_OWN = ("batch_size", "final_steps", "num_steps")
PIPELINE_OWN = (
    "augmentation",
    "batch_size",
    "final_start",
    "keep_images",
    "max_images",
    "process_count",
    "process_index",
    "seed",
    "source",
    "start_step",
)

LOWEST = {
    "batch_size": 1,
    "checkpoint_every": 0,
    "data.max_proposals": 0,
    "eval_batch_size": 1,
    "eval_every": 0,
    "eval_images": 0,
    "ema_decay": 0,
    "ema_ramp": 1,
    "final_eval_every": 0,
    "final_steps": 0,
    "log_every": 1,
    "multiscale_every": 1,
    "num_pictures": 0,
    "num_steps": 1,
    "optimizer.base_batch_size": 1,
    "optimizer.bias_rate": 0,
    "optimizer.clip_norm": 0,
    "optimizer.decay_factor": 0,
    "optimizer.learning_rate": 0,
    "optimizer.momentum": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "pictures_every": 0,
    "seed": 0,
}

# Of those, what need not be whole.
FRACTIONS = (
    "ema_decay",
    "optimizer.bias_rate",
    "optimizer.clip_norm",
    "optimizer.decay_factor",
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.weight_decay",
)


def complete(config: ConfigDict, *, detector: str, evaluation: str = "", source: str = "") -> None:
    """Checks all keys of a config and writes the defaults that it leaves out into it.

    Args:
        config: changed in place.
        detector: whose settings "model" holds; an unknown name leaves that
            section as it is.
        evaluation: where it is another one than the config's, it starts from
            its own defaults.
        source: likewise, with "data.options".

    Raises:
        UserError: for the first key that is unknown, with the known ones, or
            that is missing, and for an evaluation or a source that is unknown.
    """
    _choose_evaluation(config, evaluation)
    _complete_section("config", config, KEYS)
    for section, wanted in _sections(detector, config.evaluation.name).items():
        given = config[section]
        if not isinstance(given, ConfigDict):
            raise UserError(f"config.{section} wants to be a ConfigDict, found {given!r}")
        _complete_section(f"config.{section}", given, wanted)
    _choose_source(config.data, source)


def check_numbers(config: ConfigDict) -> None:
    """Checks the numbers that nothing else looks at before the data is made.

    Raises:
        UserError: for the first one out of its range.
    """
    for key, lowest in LOWEST.items():
        section, _, name = key.rpartition(".")
        value = (config[section] if section else config)[name]
        if not isinstance(value, int | float) or not value >= lowest:
            raise UserError(f"config.{key} wants at least {lowest}, found {value!r}")
        if key not in FRACTIONS and type(value) is not int:
            raise UserError(f"config.{key} wants a whole number, found {value!r}")
    check_heights(config.multiscale_heights)
    if config.final_steps > config.num_steps:
        raise UserError(
            f"config.final_steps wants at most num_steps {config.num_steps}, found "
            f"{config.final_steps}"
        )
    if not config.ema_decay < 1:
        raise UserError(f"config.ema_decay wants less than 1, found {config.ema_decay}")
    if bool(config.data.proposals) != bool(config.data.max_proposals):
        raise UserError(
            "config.data.proposals and config.data.max_proposals are set both or neither, found "
            f"{config.data.proposals!r} and {config.data.max_proposals}"
        )
    for key in ("canvas", "resize"):
        if len(config.data[key]) != 2:
            raise UserError(f"config.data.{key} wants two numbers, found {config.data[key]}")
    for key, value in (("canvas", min(config.data.canvas)), ("max_boxes", config.data.max_boxes)):
        if value < 1:
            raise UserError(f"config.data.{key} wants at least 1, found {config.data[key]}")


def train_keywords(config: ConfigDict) -> dict[str, Any]:
    """The part of the section "data" that the batches of a training take."""
    return {key: value for key, value in config.data.items() if key not in DATA_KEYS}


def eval_keywords(config: ConfigDict) -> dict[str, Any]:
    """The part of the section "data" that the batches of an evaluation take."""
    known = _keywords(pipeline.eval_batches, PIPELINE_OWN)
    return {key: value for key, value in config.data.items() if key in known}


def unknown_key(section: str, key: str, known: Iterable[str]) -> UserError:
    """The error for a key that does not exist, with the nearest that does."""
    return UserError(f"{section} has no key {key!r}; {_hint(key, sorted(known))}")


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def _choose_evaluation(config: ConfigDict, name: str) -> None:
    """Sees that the section "evaluation" has a name; the settings of another one are dropped."""
    given = config.get("evaluation", ConfigDict())
    if not isinstance(given, ConfigDict):
        raise UserError(f"config.evaluation wants to be a ConfigDict, found {given!r}")
    was = given.get("name", DEFAULT_EVALUATION)
    name = name or was
    if name not in EVALUATIONS:
        raise UserError(f"unknown evaluation.name {name!r}; {_hint(str(name), list(EVALUATIONS))}")
    with config.unlocked(), given.unlocked():
        config.evaluation = ConfigDict({"name": name, **(given if name == was else {})})


def _choose_source(data: ConfigDict, name: str) -> None:
    """Completes the options of the data source; those of another one are dropped."""
    name = name or data.source
    if not isinstance(data.options, ConfigDict):
        raise UserError(f"config.data.options wants to be a ConfigDict, found {data.options!r}")
    with data.unlocked():
        if name != data.source:
            data.source, data.options = name, ConfigDict()
    _complete_section("config.data.options", data.options, sources.options(name))


def _sections(detector: str, evaluation: str) -> dict[str, dict[str, Any]]:
    """The keys of each section with their defaults, or REQUIRED."""
    sections = {
        "data": {
            **DATA_KEYS,
            **_keywords(pipeline.train_batches, PIPELINE_OWN),
            **transforms.Augmentation._field_defaults,
            **mosaic.Composition._field_defaults,
        },
        "evaluation": {
            "name": evaluation,
            **_keywords(EVALUATIONS[evaluation].evaluate, EVALUATION_OWN),
        },
        "optimizer": _keywords(build_optimizer, OPTIMIZER_OWN),
    }
    if detector in DETECTORS:
        sections["model"] = _keywords(DETECTORS[detector][1], MODEL_OWN)
    return sections


def _keywords(function: Callable, but: Sequence[str]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name not in but}


def _complete_section(section: str, given: ConfigDict, wanted: Mapping[str, Any]) -> None:
    for key in given:
        if key not in wanted:
            raise unknown_key(section, key, wanted)
    for key, default in wanted.items():
        if default is REQUIRED and key not in given:
            raise UserError(f"{section} lacks the key {key!r}")
    with given.unlocked():
        given.update({key: value for key, value in wanted.items() if key not in given})
