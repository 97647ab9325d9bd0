"""What train.py and eval.py share: from a config to sources, detector, variables and results."""

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import detectors, visualize
from jaxdet.configuration import DATA_KEYS, check_section
from jaxdet.data import pipeline, sources, transforms
from jaxdet.evaluation import coco, runner
from jaxdet.interop import torch_names
from jaxdet.models import resnet
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import Detector, Images, Source, UserError

# Arguments of the pipeline that a config does not choose in its section "data".
PIPELINE_OWN = (
    "augmentation",
    "batch_size",
    "max_images",
    "num_devices",
    "process_count",
    "process_index",
    "seed",
    "source",
    "start_step",
)
OPTIMIZER_OWN = ("batch_size", "num_steps")

LOWEST = {
    "batch_size": 1,
    "checkpoint_every": 0,
    "eval_batch_size": 1,
    "eval_every": 0,
    "eval_images": 0,
    "log_every": 0,
    "num_pictures": 0,
    "num_steps": 1,
    "seed": 0,
}

# Folded into the run's key for the first parameters; no image of a run has this index.
INIT_INDEX = 2**32 - 1


def run_command(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a command; a user's mistake becomes one line on stderr and status 1."""
    try:
        sys.exit(main(sys.argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def check(config: ConfigDict) -> None:
    """Finds the mistakes of a config that show before any data is read.

    Raises:
        UserError: for unknown keys and names, and where frozen parts would
            start at random.
    """
    check_section(
        "data",
        config.data,
        known=(*DATA_KEYS, *_train_keywords()),
        required=(*DATA_KEYS, *_keywords(pipeline.train_batches, PIPELINE_OWN, required=True)),
    )
    check_section(
        "optimizer",
        config.optimizer,
        known=_keywords(build_optimizer, OPTIMIZER_OWN),
        required=_keywords(build_optimizer, OPTIMIZER_OWN, required=True),
    )
    _check_numbers(config)
    build_detector(config, num_classes=1)
    make_optimizer(config)
    for key, free in (("norm", ("batch", "group", "sync")), ("frozen_stages", (0,))):
        value = _model_setting(config, key)
        if value is not None and value not in free and not config.init_from:
            raise UserError(
                f"config.model.{key} is {value!r}, which needs pretrained weights: name their "
                f"file in config.init_from, or set {key} to {' or '.join(map(repr, free))}"
            )


def build_source(config: ConfigDict, split: str, classes: Sequence[str]) -> Source:
    """Opens one split of the data."""
    data = config.data
    return sources.build(
        data.source, root=data.root, split=split, classes=tuple(classes), **data.options
    )


def build_detector(config: ConfigDict, *, num_classes: int) -> Detector:
    """Builds the detector.

    Raises:
        UserError: if its name or a setting is unknown.
    """
    if "num_classes" in config.model:
        raise UserError(
            "config.model has no key 'num_classes'; it follows from config.data.classes"
        )
    return detectors.build(config.detector, num_classes=num_classes, **config.model)


def make_optimizer(config: ConfigDict) -> tuple[Any, Callable]:
    """Builds the optimizer and its schedule; frozen stages of the backbone never move."""
    settings = dict(config.optimizer)
    frozen = resnet.frozen_parameters(_model_setting(config, "frozen_stages") or 0)
    settings["frozen"] = (*settings.get("frozen", ()), *frozen)
    return build_optimizer(**settings, batch_size=config.batch_size, num_steps=config.num_steps)


def abstract_variables(config: ConfigDict, detector: Detector) -> Any:
    """Shapes and types of the detector's variables; computes nothing."""
    return jax.eval_shape(detector.init, jax.random.key(0), _blank_images(config))


def first_variables(config: ConfigDict, detector: Detector) -> tuple[Any, str]:
    """The variables before the first step: drawn from the seed, then pretrained ones.

    Returns:
        The variables, and a line that says where they come from.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_INDEX)
    variables = jax.jit(detector.init)(key, _blank_images(config))
    if not config.init_from:
        return variables, "weights are drawn at random"
    tensors = torch_names.load_file(config.init_from)
    variables, report = torch_names.from_torch(tensors, variables, source=config.init_from)
    return variables, f"weights from {config.init_from}: {report}"


def train_batches(config: ConfigDict, source: Source, start_step: int) -> Any:
    """The training batches from a step on, this process's share."""
    return pipeline.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_devices=jax.local_device_count(),
        **{key: value for key, value in config.data.items() if key not in DATA_KEYS},
    )


def evaluate(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> dict[str, Any]:
    """The results of the variables on a source, as eval.json has them."""
    with closing(_eval_batches(config, source, config.eval_images)) as batches:
        found = runner.run(lambda images: predict(variables, images), batches)
    return coco.evaluate(*found, source.class_names)


def draw(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> list[tuple[str, np.ndarray]]:
    """Pictures of some images, spread over the source: ground truth left, predictions right."""
    if config.num_pictures == 0:
        return []
    with closing(_eval_batches(config, source, config.num_pictures)) as batches:
        examples, detections = runner.run(lambda images: predict(variables, images), batches)
    wanted = {example.id: found for example, found in zip(examples, detections, strict=True)}
    count = min(config.num_pictures, len(source))
    pictures = []
    for i in range(count):
        example = source[i * len(source) // count]
        if example.id in wanted:
            example = transforms.decode(example)
            picture = visualize.compare(
                example.image,
                example,
                wanted[example.id],
                source.class_names,
                min_score=config.picture_score,
            )
            pictures.append((str(example.id), picture))
    return pictures


def _eval_batches(config: ConfigDict, source: Source, max_images: int) -> Any:
    known = _keywords(pipeline.eval_batches, PIPELINE_OWN)
    return pipeline.eval_batches(
        source,
        batch_size=config.eval_batch_size,
        max_images=max_images,
        num_devices=jax.local_device_count(),
        **{key: value for key, value in config.data.items() if key in known},
    )


def _train_keywords() -> tuple[str, ...]:
    return _keywords(pipeline.train_batches, PIPELINE_OWN) + transforms.Augmentation._fields


def _keywords(function: Callable, but: Sequence[str], *, required: bool = False) -> tuple[str, ...]:
    """The keyword arguments of a function, or those of them that have no default."""
    return tuple(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in but and (not required or parameter.default is parameter.empty)
    )


def _check_numbers(config: ConfigDict) -> None:
    for key, lowest in LOWEST.items():
        if config[key] < lowest:
            raise UserError(f"config.{key} wants at least {lowest}, found {config[key]}")
    for key in ("canvas", "resize"):
        if len(config.data[key]) != 2:
            raise UserError(f"config.data.{key} wants two numbers, found {config.data[key]}")
    # Found here and not after the data is made, or at the first evaluation.
    devices = {"batch_size": jax.device_count(), "eval_batch_size": jax.local_device_count()}
    for key, count in devices.items():
        if config[key] % count:
            raise UserError(f"config.{key} {config[key]} does not divide among {count} devices")


def _model_setting(config: ConfigDict, key: str) -> Any:
    """A setting of the detector: the config's, else its default; None where it has none."""
    if key in config.model or config.detector not in detectors.DETECTORS:
        return config.model.get(key)
    _, settings = detectors.DETECTORS[config.detector]
    parameter = inspect.signature(settings).parameters.get(key)
    return None if parameter is None else parameter.default


def _blank_images(config: ConfigDict) -> Images:
    height, width = config.data.canvas
    return Images(
        pixels=np.zeros((1, height, width, 3), np.uint8),
        sizes=np.array([[height, width]], np.int32),
        scales=np.ones(1, np.float32),
    )
