"""From a config to sources, detector, optimizer and first variables."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import detectors, interop, settings
from jaxdet.data import pipeline, sources
from jaxdet.data.proposals import WithProposals
from jaxdet.detectors import features
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import Detector, Images, Proposals, Source, UserError

# Folded into the run's key for the first parameters; no image of a run has this index.
INIT_INDEX = 2**32 - 1


def build_source(config: ConfigDict, split: str, classes: Sequence[str]) -> Source:
    """Opens one split of the data, with its proposals where the config names their file.

    Raises:
        UserError: for mistakes in the data or its settings, and if it has no image.
    """
    data = config.data
    source = sources.build(
        data.source, root=data.root, split=split, classes=tuple(classes), **data.options
    )
    if len(source) == 0:
        raise UserError(f"there is no image in the split {split!r} of {data.root}")
    if data.proposals:
        source = WithProposals(source, data.proposals.replace("{split}", split))
    return source


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """The names of the classes, label 0 first: the config's, or those of the training data."""
    if config.data.classes:
        return tuple(config.data.classes)
    return tuple(build_source(config, config.data.train_split, ()).class_names)


def build_detector(config: ConfigDict, *, num_classes: int) -> Detector:
    """Builds the detector.

    Raises:
        UserError: if its name or a setting is unknown.
    """
    with mistakes_in("model"):
        return detectors.build(config.detector, num_classes=num_classes, **config.model)


def make_optimizer(config: ConfigDict) -> tuple[Any, Callable]:
    """Builds the optimizer and its schedule; frozen stages of the backbone never move."""
    keywords, model = dict(config.optimizer), config.model
    with mistakes_in("model"):
        frozen = features.frozen_parameters(
            model.get("backbone") or "resnet", model.get("frozen_stages") or 0
        )
    keywords["frozen"] = (*keywords["frozen"], *frozen)
    with mistakes_in("optimizer"):
        return build_optimizer(
            **keywords,
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            final_steps=config.final_steps,
        )


def blank_images(config: ConfigDict, batch_size: int) -> Images:
    """Shapes and types of images."""
    data, proposals = config.data, None
    if data.max_proposals:
        slots = jax.ShapeDtypeStruct((batch_size, data.max_proposals), np.bool_)
        proposals = Proposals(
            boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
            scores=jax.ShapeDtypeStruct(slots.shape, np.float32),
            valid=slots,
        )
    return Images(
        pixels=jax.ShapeDtypeStruct((batch_size, *data.canvas, 3), np.uint8),
        sizes=jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        scales=jax.ShapeDtypeStruct((batch_size,), np.float32),
        proposals=proposals,
    )


def abstract_variables(config: ConfigDict, detector: Detector) -> Any:
    """Shapes and types of the detector's variables; computes nothing."""
    with mistakes_in("model"):
        return jax.eval_shape(detector.init, jax.random.key(0), blank_images(config, 1))


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
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), blank_images(config, 1))
    drawn = detector.init(key, blank)
    return jax.tree.map(lambda a, b: a if isinstance(a, np.ndarray) else b, loaded, drawn), origin


def train_batches(config: ConfigDict, source: Source, start_step: int) -> Any:
    """The training batches from a step on, this process's share."""
    return pipeline.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        final_start=config.num_steps - config.final_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **settings.train_keywords(config),
    )


def frozen_settings(config: ConfigDict) -> list[str]:
    """The settings by which parts of the backbone stay as they start."""
    model = config.model
    frozen = {
        "norm": model.get("norm") == "frozen",
        "frozen_stages": (model.get("frozen_stages") or 0) > 0,
    }
    return [key for key, applies in frozen.items() if applies]


@contextmanager
def mistakes_in(section: str) -> Iterator[None]:
    """What code says about settings that it cannot work with is the user's line."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"config.{section}: {line}") from error


def _load_weights(config: ConfigDict, shapes: Any) -> tuple[Any, str]:
    """The shapes with arrays in the place of all that `init_from` has, and a report."""
    file = config.init_from
    if not file:
        return shapes, "weights are drawn at random"
    # Caffe's weights want BGR: their stem is turned, the images stay RGB.
    bgr = True if config.model.get("style") == "caffe" else None
    variables, report = interop.from_torch(interop.load_file(file), shapes, source=file, bgr=bgr)
    missing = [name for name in report.missing if "/backbone/" in name]
    frozen = frozen_settings(config)
    if missing and frozen:
        raise UserError(
            f"{file} has nothing for {missing[0]}, which config.model.{frozen[0]} "
            f"{config.model[frozen[0]]!r} needs"
        )
    return variables, f"weights from {file}: {report}"
