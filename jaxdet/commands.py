"""What train.py and eval.py share: from a config to sources, detector, variables and results."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import detectors, interop, settings, visualize
from jaxdet.data import pipeline, sources
from jaxdet.evaluation import coco, runner
from jaxdet.models import resnet
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import Batch, Detector, Images, Source, UserError

# Folded into the run's key for the first parameters; no image of a run has this index.
INIT_INDEX = 2**32 - 1


def run_command(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a command; a mistake of the user's or of the disk's is one line and status 1.

    With --help the docstring of the command's file is all that is printed.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(main.__globals__["__doc__"])
        sys.exit(0)
    log, handler = logging.getLogger("jaxdet"), logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # Imported packages may have given the root logger a handler.
    try:
        sys.exit(main(sys.argv))
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True


def check(config: ConfigDict, *, starts: bool = True) -> None:
    """Finds the mistakes of a config that show before any data is read or made.

    The detector is traced on blank images, which computes nothing.

    Args:
        config: with all its keys.
        starts: whether a run may start and so need its first weights.

    Raises:
        UserError: for numbers, names and settings that do not work; where a run
            starts, for a file of weights that is not there, and where frozen
            parts would start at random.
    """
    settings.check_numbers(config)
    # Found here and not after the data is made, or at the first evaluation.
    devices = {"batch_size": jax.device_count(), "eval_batch_size": jax.local_device_count()}
    for key, count in devices.items():
        if config[key] % count:
            raise UserError(f"config.{key} {config[key]} does not divide among {count} devices")
    make_optimizer(config)
    detector = build_detector(config, num_classes=len(config.data.classes) or 1)
    if starts:
        _check_first_weights(config)
    _trace(config, detector)


def build_source(config: ConfigDict, split: str, classes: Sequence[str]) -> Source:
    """Opens one split of the data.

    Raises:
        UserError: for mistakes in the data or its settings, and if it has no image.
    """
    data = config.data
    source = sources.build(
        data.source, root=data.root, split=split, classes=tuple(classes), **data.options
    )
    if len(source) == 0:
        raise UserError(f"there is no image in the split {split!r} of {data.root}")
    return source


def build_detector(config: ConfigDict, *, num_classes: int) -> Detector:
    """Builds the detector.

    Raises:
        UserError: if its name or a setting is unknown.
    """
    with _mistakes_in("model"):
        return detectors.build(config.detector, num_classes=num_classes, **config.model)


def make_optimizer(config: ConfigDict) -> tuple[Any, Callable]:
    """Builds the optimizer and its schedule; frozen stages of the backbone never move."""
    keywords = dict(config.optimizer)
    with _mistakes_in("model"):
        frozen = resnet.frozen_parameters(config.model.get("frozen_stages") or 0)
    keywords["frozen"] = (*keywords["frozen"], *frozen)
    with _mistakes_in("optimizer"):
        return build_optimizer(**keywords, batch_size=config.batch_size, num_steps=config.num_steps)


def abstract_variables(config: ConfigDict, detector: Detector) -> Any:
    """Shapes and types of the detector's variables; computes nothing."""
    with _mistakes_in("model"):
        return jax.eval_shape(detector.init, jax.random.key(0), _blank_images(config, 1))


def first_variables(config: ConfigDict, detector: Detector) -> tuple[Any, str]:
    """The variables before the first step: drawn from the seed, then pretrained ones.

    Returns:
        The variables, and a line that says where they come from.

    Raises:
        UserError: if the file of weights does not fit, or lacks a part of the
            backbone although parts of it are frozen.
    """
    loaded, origin = _load_weights(config, abstract_variables(config, detector))
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_INDEX)
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), _blank_images(config, 1))
    drawn = jax.jit(detector.init)(key, blank)
    return jax.tree.map(lambda a, b: a if isinstance(a, np.ndarray) else b, loaded, drawn), origin


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
        **{key: value for key, value in config.data.items() if key not in settings.DATA_KEYS},
    )


def evaluate(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> dict[str, Any]:
    """The results of the variables on a source, as eval.json has them."""
    with closing(_eval_batches(config, source, config.eval_images)) as batches:
        examples, found = runner.run(lambda images: predict(variables, images), batches)
    wanted = min(config.eval_images or len(source), len(source))
    if len(examples) < wanted:
        log = logging.getLogger("jaxdet")
        log.warning("evaluated %d of %d images", len(examples), wanted)
    return coco.evaluate(examples, found, source.class_names)


def draw(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> list[tuple[str, np.ndarray]]:
    """Pictures of some images, spread over the source: ground truth left, predictions right.

    Images that cannot be read are left out.
    """
    if config.num_pictures == 0:
        return []
    with closing(_eval_batches(config, source, config.num_pictures, keep_images=True)) as batches:
        found = runner.run(lambda images: predict(variables, images), batches)
    return [
        (
            str(example.id),
            visualize.compare(
                example.image,
                example,
                detections,
                source.class_names,
                min_score=config.picture_score,
            ),
        )
        for example, detections in zip(*found, strict=True)
    ]


def losses_of_data(loader: Any) -> list[str]:
    """Sentences about the images and objects that a run could not use."""
    sentences = []
    if loader.unreadable:
        sentences.append(f"{loader.unreadable} times an unreadable image gave way to the next")
    if loader.left_out:
        sentences.append(f"{loader.left_out} times an object found no slot in data.max_boxes")
    return sentences


def _load_weights(config: ConfigDict, shapes: Any) -> tuple[Any, str]:
    """The shapes with arrays in the place of all that `init_from` has, and a report."""
    file = config.init_from
    if not file:
        return shapes, "weights are drawn at random"
    # Caffe's weights want BGR: their stem is turned, the images stay RGB.
    variables, report = interop.from_torch(
        interop.load_file(file), shapes, source=file, bgr=config.model.get("style") == "caffe"
    )
    missing = [name for name in report.missing if "/backbone/" in name]
    frozen = _frozen_settings(config)
    if missing and frozen:
        raise UserError(
            f"{file} has nothing for {missing[0]}, which config.model.{frozen[0]} "
            f"{config.model[frozen[0]]!r} needs"
        )
    return variables, f"weights from {file}: {report}"


def _eval_batches(config: ConfigDict, source: Source, max_images: int, **more: Any) -> Any:
    return pipeline.eval_batches(
        source,
        batch_size=config.eval_batch_size,
        max_images=max_images,
        num_devices=jax.local_device_count(),
        **settings.eval_keywords(config),
        **more,
    )


def _check_first_weights(config: ConfigDict) -> None:
    if config.init_from and not Path(config.init_from).is_file():
        raise UserError(f"config.init_from: there is no file {config.init_from}")
    frozen = _frozen_settings(config)
    if frozen and not config.init_from:
        raise UserError(
            f"config.model.{frozen[0]} is {config.model[frozen[0]]!r}, which needs pretrained "
            'weights: name their file in config.init_from, or set norm to "batch", "sync" or '
            '"group" and frozen_stages to 0'
        )


def _trace(config: ConfigDict, detector: Detector) -> None:
    """Lets the detector meet its settings and shapes, and computes nothing."""
    variables = abstract_variables(config, detector)
    batch_size, max_boxes = config.batch_size // jax.device_count(), config.data.max_boxes
    slots = jax.ShapeDtypeStruct((batch_size, max_boxes), np.bool_)
    batch = Batch(
        images=_blank_images(config, batch_size),
        boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
        labels=jax.ShapeDtypeStruct(slots.shape, np.int32),
        valid=slots,
        crowd=slots,
        index=jax.ShapeDtypeStruct((batch_size,), np.uint32),
    )
    with _mistakes_in("model"):
        jax.eval_shape(detector.loss, variables, batch, jax.random.key(0))
        jax.eval_shape(detector.predict, variables, batch.images)


def _blank_images(config: ConfigDict, batch_size: int) -> Images:
    """Shapes and types of images."""
    return Images(
        pixels=jax.ShapeDtypeStruct((batch_size, *config.data.canvas, 3), np.uint8),
        sizes=jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        scales=jax.ShapeDtypeStruct((batch_size,), np.float32),
    )


def _frozen_settings(config: ConfigDict) -> list[str]:
    """The settings by which parts of the backbone stay as they start."""
    model = config.model
    frozen = {
        "norm": model.get("norm") == "frozen",
        "frozen_stages": (model.get("frozen_stages") or 0) > 0,
    }
    return [key for key, applies in frozen.items() if applies]


@contextmanager
def _mistakes_in(section: str) -> Iterator[None]:
    """What code says about settings that it cannot work with is the user's line."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"config.{section}: {line}") from error


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
