"""From a config to a run: sources, detector, optimizer and batches, each made once."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxdet import detectors, interop, model_file
from jaxdet.commands import lengths, results, schema
from jaxdet.data import mosaic, pipeline, sources, transforms
from jaxdet.data.proposal_files import WithProposals
from jaxdet.data.sources.selection import NonEmpty
from jaxdet.training import steps
from jaxdet.training.multiscale import check_heights
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import Batch, Detector, Images, Source, UserError

# Folded into the run's key for the first parameters; no image of a run has this index.
INIT_INDEX = 2**32 - 1
# What the batches of a training take of the section "data".
TRAIN_KEYS = (
    *("canvas", "resize", "max_boxes", "max_proposals", "use_difficult", "num_threads"),
    *transforms.Augmentation._fields,
    *mosaic.Composition._fields,
)


class Run(NamedTuple):
    """What a config says, opened.

    Attributes:
        config: with all lengths in steps.
        class_names: label 0 first.
        detector: for these classes.
        variables: shapes and types of the detector's variables.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    detector: Detector
    variables: Any


class Training(NamedTuple):
    """What a training needs besides.

    Attributes:
        source: what is learnt, without what has nothing to learn.
        tx: the optimizer.
        schedule: learning rate by step.
    """

    source: Source
    tx: optax.GradientTransformation
    schedule: Callable


def open_run(config: ConfigDict) -> Run:
    """Makes the detector of a run; reads the training data only where the config lacks the classes.

    The detector is traced on blank images, which computes nothing.

    Raises:
        UserError: for what does not work in the config.
    """
    check_settings(config)
    names = tuple(config.data.classes)
    names = names or tuple(open_source(config, config.data.train_split, ()).class_names)
    with mistakes_in("model"):
        model = config.model.to_dict()
        detector = detectors.build(config.detector, num_classes=len(names), **model)
    if not detector.tells_classes and len(names) > 1 and config.evaluation.name != "proposals":
        raise UserError(
            f"the detector {config.detector!r} tells no classes apart: set evaluation.name to "
            f"'proposals', or name one class in data.classes; found {config.evaluation.name!r} "
            f"with {len(names)} classes"
        )
    return Run(config, names, detector, _trace(config, detector))


def open_training(run: Run, *, starts: bool = True) -> tuple[Run, Training]:
    """Reads the training data of a run and makes its optimizer.

    Args:
        run: its lengths may be said in epochs.
        starts: whether it may start, and so need its first weights.

    Returns:
        The run with its lengths in steps, and what a training needs.

    Raises:
        UserError: for what does not work in the config or in the data.
    """
    config = run.config
    if starts:
        _check_first_weights(config, run.detector)
    tree = schema.describe(config.to_dict())
    late = lengths.wants_epochs(config.to_dict(), tree)
    if not late:
        _check_lengths(config)
        _make_optimizer(config, run.detector)  # Finds mistakes before the data is made.
    source = open_source(config, config.data.train_split, run.class_names)
    if not config.data.keep_empty:
        source = NonEmpty(source, use_difficult=config.data.use_difficult)
        if len(source) == 0:
            raise UserError("no image to train on (data.keep_empty is False)")
    if late:
        config = ConfigDict(lengths.resolve(config.to_dict(), tree, len(source)))
        _check_lengths(config)
    tx, schedule = _make_optimizer(config, run.detector)
    return run._replace(config=config), Training(source, tx, schedule)


def open_source(config: ConfigDict, split: str, classes: Sequence[str]) -> Source:
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


def train_batches(config: ConfigDict, source: Source, start_step: int) -> Any:
    """The training batches from a step on, this process's share."""
    return pipeline.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        final_start=final_start(config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **{key: config.data[key] for key in TRAIN_KEYS},
    )


def final_start(config: ConfigDict) -> int | None:
    """The step with which the last part of a run begins; None if it has none."""
    return config.num_steps - config.final_steps if config.final_steps else None


def first_variables(run: Run) -> tuple[Any, str]:
    """The variables before the first step: drawn from the seed, then pretrained ones.

    Returns:
        The variables, and a line that says where they come from.

    Raises:
        UserError: if the file of weights does not fit, or lacks a part of the
            backbone although parts of it are frozen.
    """
    config = run.config
    loaded, origin = _load_weights(config, run.detector, run.variables)
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_INDEX)
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), blank_images(config, 1))
    drawn = run.detector.init(key, blank)
    return jax.tree.map(lambda a, b: a if isinstance(a, np.ndarray) else b, loaded, drawn), origin


def blank_images(config: ConfigDict, batch_size: int) -> Images:
    """Shapes and types of images."""
    return model_file.blank_images(batch_size, config.data.canvas, config.data.max_proposals)


def check_settings(config: ConfigDict) -> None:
    """Finds the mistakes that show before anything is made.

    Raises:
        UserError: for the first one.
    """
    pipeline.check_train_settings(
        keep_empty=config.data.keep_empty, **{key: config.data[key] for key in TRAIN_KEYS}
    )
    check_heights(config.multiscale_heights)
    steps.check_division(config.batch_size, jax.devices(), name="config.batch_size")
    steps.check_division(config.eval_batch_size, name="config.eval_batch_size")
    if bool(config.data.proposals) != bool(config.data.max_proposals):
        raise UserError(
            "config.data.proposals and config.data.max_proposals are set both or neither, found "
            f"{config.data.proposals!r} and {config.data.max_proposals}"
        )
    with mistakes_in("evaluation"):
        results.measure(config, [], [], config.data.classes)


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


def _make_optimizer(config: ConfigDict, detector: Detector) -> tuple[Any, Callable]:
    """Builds the optimizer and its schedule; what is frozen never moves."""
    keywords = config.optimizer.to_dict()
    parts = (path.partition("/") for path in detector.frozen)
    keywords["frozen"] += tuple(path for kind, _, path in parts if kind == "params")
    with mistakes_in("optimizer"):
        return build_optimizer(
            **keywords,
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            final_steps=config.final_steps,
        )


def _trace(config: ConfigDict, detector: Detector) -> Any:
    """Lets the detector meet its settings and shapes; gives the shapes of its variables."""
    images = blank_images(config, 1)
    slots = jax.ShapeDtypeStruct((1, config.data.max_boxes), np.bool_)
    batch = Batch(
        images=images,
        boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
        labels=jax.ShapeDtypeStruct(slots.shape, np.int32),
        valid=slots,
        crowd=slots,
        index=jax.ShapeDtypeStruct((1,), np.uint32),
    )
    key = jax.random.key(0)
    with mistakes_in("model"):
        variables = jax.eval_shape(detector.init, key, images)
        jax.eval_shape(detector.loss, variables, batch, key)
        jax.eval_shape(detector.predict, variables, images)
    return variables


def _check_lengths(config: ConfigDict) -> None:
    """Finds lengths that do not fit one another, and says which come to nothing."""
    num_steps, optimizer = config.num_steps, config.optimizer
    if config.final_steps > num_steps:
        raise UserError(
            f"config.final_steps wants at most num_steps {num_steps}, found {config.final_steps}"
        )
    used = optimizer.milestones if optimizer.schedule == "multistep" else ()
    if config.reload_best_at_milestones and not used:
        raise UserError(
            "config.reload_best_at_milestones wants optimizer.schedule 'multistep' with "
            f"milestones, found {optimizer.schedule!r} with {optimizer.milestones}"
        )
    drops = [milestone for milestone in used if milestone < num_steps]
    if config.reload_best_at_milestones and drops and not 0 < config.eval_every <= min(drops):
        raise UserError(
            f"config.reload_best_at_milestones wants an evaluation up to step {min(drops)}, "
            f"found eval_every {config.eval_every}"
        )
    log = logging.getLogger("jaxdet")
    late = [milestone for milestone in used if milestone >= num_steps]
    if late:
        log.warning(
            "warning: config.optimizer.milestones %s come to nothing: num_steps is %d",
            ", ".join(map(str, late)),
            num_steps,
        )
    if optimizer.warmup_steps > num_steps:
        log.warning(
            "warning: config.optimizer.warmup_steps %d do not end: num_steps is %d",
            optimizer.warmup_steps,
            num_steps,
        )


def _check_first_weights(config: ConfigDict, detector: Detector) -> None:
    if config.init_from and not Path(config.init_from).is_file():
        raise UserError(f"config.init_from: there is no file {config.init_from}")
    if detector.frozen and not config.init_from:
        raise UserError(
            f"{detector.frozen[0]} and what else is frozen in config.model needs pretrained "
            'weights: name their file in config.init_from, or set model.backbone.norm to "batch", '
            '"sync" or "group" and model.backbone.frozen_stages to 0'
        )


def _load_weights(config: ConfigDict, detector: Detector, shapes: Any) -> tuple[Any, str]:
    """The shapes with arrays in the place of all that `init_from` has, and a report."""
    file = config.init_from
    if not file:
        return shapes, "weights are drawn at random"
    variables, report = interop.from_torch(
        interop.load_file(file), shapes, source=file, bgr=detector.bgr_weights
    )
    missing = [name for name in report.missing if "/backbone/" in name]
    if missing and detector.frozen:
        raise UserError(
            f"{file} has nothing for {missing[0]}, which cannot be learnt: "
            f"{detector.frozen[0]} is frozen in config.model"
        )
    return variables, f"weights from {file}: {report}"
