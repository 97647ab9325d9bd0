"""From a config to a run: sources, detector, optimizer and batches, each made once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxdet import detectors, interop, loading, model_file
from jaxdet.commands import config_files, lengths, mistakes, schema, splits
from jaxdet.data import canvases, inventory, pipeline
from jaxdet.data.order import Order
from jaxdet.interop import LoadReport
from jaxdet.training import steps
from jaxdet.training.optimizer import build_optimizer
from jaxdet.types import Batch, Detector, Images, Source, UserError

# Folded into the run's key for the first parameters; no image of a run has this index.
INIT_INDEX = 2**32 - 1
# An epoch of so many is longer than any number of steps that a config says.
UNKNOWN_IMAGES = 10**9


class Run(NamedTuple):
    """What a config says, opened.

    Attributes:
        config: with the classes as they were found; of a training with all lengths in steps.
        class_names: label 0 first.
        detector: for these classes.
        variables: shapes and types of the detector's variables.
        source: what is learnt; None where nothing of it was needed.
        to_learn: what that holds, and what of it is left out; None where it is not known.
        tx: the optimizer of a training.
        schedule: its learning rate by step.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    detector: Detector
    variables: Any
    source: Source | None = None
    to_learn: inventory.Inventory | None = None
    tx: optax.GradientTransformation | None = None
    schedule: Callable | None = None


class FirstVariables(NamedTuple):
    """The variables before the first step.

    Attributes:
        variables: drawn from the seed, then pretrained ones.
        origin: a line that says where they come from.
        lines: one for each array of `init_from`; see `interop.LoadReport`.
    """

    variables: Any
    origin: str
    lines: tuple[str, ...] = ()


def open_run(config: ConfigDict) -> Run:
    """Makes the detector of a run; reads the training data only where the config lacks the classes.

    The detector is traced on blank images, which computes nothing.

    Raises:
        UserError: for what does not work in the config.
    """
    mistakes.check_settings(config)
    names, source = tuple(config.data.classes), None
    if not names:
        source = splits.open_source(config, config.data.train_split, ())
        names = splits.class_names(config, config.data.train_split, source)
    with mistakes.mistakes_in("model"):
        model = config.model.to_dict()
        detector = detectors.build(config.detector, num_classes=len(names), **model)
    if not detector.tells_classes and len(names) > 1 and config.evaluation.name != "proposals":
        raise UserError(
            f"the detector {config.detector!r} tells no classes apart: set evaluation.name to "
            f"'proposals', or name one class in data.classes; found {config.evaluation.name!r} "
            f"with {len(names)} classes"
        )
    # What is saved of the config says the classes as they were found.
    found = config_files.with_classes(config, names)
    return Run(found, names, detector, _trace(config, detector), source)


def open_training(config: ConfigDict, *, begins: bool = True) -> Run:
    """Makes the detector of a run and its optimizer, and reads the training data.

    Args:
        config: of the run.
        begins: whether it has no checkpoint yet, so that the weights that it begins with are read.

    Raises:
        UserError: for what does not work in the config or in the data.
    """
    for name, accumulate in (("batch_size", config.accumulate), ("eval_batch_size", 1)):
        steps.check_division(
            config[name], name=f"config.{name}", everywhere=True, accumulate=accumulate
        )
    if begins:
        mistakes.check_file(config)
    # Found before the data is made: what does not work however many images an epoch has.
    _make_optimizer(in_likely_steps(config), ())
    run = open_run(config)
    if begins:
        mistakes.check_first_weights(config, run.detector)
    if not lengths.wants_epochs(config.to_dict(), schema.describe(config.to_dict())):
        mistakes.check_lengths(config)
    run = open_training_data(run)
    config = run.config
    mistakes.check_lengths(config, warn=True)
    return with_optimizer(run)


def with_optimizer(run: Run) -> Run:
    """The run with its optimizer; all lengths are in steps."""
    tx, schedule = _make_optimizer(run.config, frozen_parameters(run.detector))
    return run._replace(tx=tx, schedule=schedule)


def frozen_parameters(detector: Detector) -> tuple[str, ...]:
    """The detector's frozen paths, below "params"."""
    frozen = (path.partition("/") for path in detector.frozen)
    return tuple(path for kind, _, path in frozen if kind == "params")


def open_training_data(run: Run) -> Run:
    """The run with what it learns as its source, and with all lengths in steps.

    Raises:
        UserError: for mistakes in the data, and if no image of it can be learnt.
    """
    config = run.config
    source = run.source or splits.open_source(config, config.data.train_split, run.class_names)
    found = splits.take_inventory(config, source)
    if found and (nothing := inventory.why_nothing(found)):
        raise UserError(f"{config.data.root} ({config.data.train_split}): {nothing}")
    source = pipeline.trainable(
        source, keep_empty=config.data.keep_empty, use_difficult=config.data.use_difficult
    )
    return run._replace(config=in_steps(config, len(source)), source=source, to_learn=found)


def train_batches(
    config: ConfigDict, source: Source, start_step: int, share: tuple[int, int] | None = None
) -> Any:
    """The training batches from a step on.

    Args:
        config: of the run, with all lengths in steps.
        source: what is learnt.
        start_step: the first.
        share: which share of each batch, of how many; by default this process's.
    """
    index, count = share or (jax.process_index(), jax.process_count())
    return pipeline.train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        final_start=final_start(config),
        process_index=index,
        process_count=count,
        **{key: config.data[key] for key in mistakes.TRAIN_KEYS},
    )


def order_of_run(config: ConfigDict, source: Source) -> Order:
    """The places in the source of the images of `train_batches`."""
    sides = {key: config.data[key] for key in ("canvas", "more_canvases", "resize")}
    return pipeline.order_of_run(source, batch_size=config.batch_size, seed=config.seed, **sides)


def final_start(config: ConfigDict) -> int | None:
    """The step with which the last part of a run begins; None if it has none."""
    return config.num_steps - config.final_steps if config.final_steps else None


def first_variables(run: Run) -> FirstVariables:
    """The variables before the first step: drawn from the seed, then pretrained ones.

    Raises:
        UserError: if the file of weights does not fit, or lacks a part of the
            backbone although parts of it are frozen.
    """
    config = run.config
    loaded, report, names = _load_weights(config, run.detector, run.variables)
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_INDEX)
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), blank_images(config, 1))
    # On a CPU half of the time before the first step goes into optimising a program that runs
    # once; less of that gives the same bits.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    drawn = jax.jit(run.detector.init, compiler_options=options)(key, blank)
    variables = jax.tree.map(lambda a, b: a if isinstance(a, np.ndarray) else b, loaded, drawn)
    if report is None:
        return FirstVariables(variables, "weights are drawn at random")
    origin = f"weights from {config.init_from}: {report}"
    same_number = len(names) == len(run.class_names) and run.detector.tells_classes
    if same_number and names != run.class_names:
        origin += f"; those of its classes {names} are taken for {run.class_names}"
    return FirstVariables(variables, origin, report.lines)


def blank_images(
    config: ConfigDict, batch_size: int, canvas: tuple[int, int] | None = None
) -> Images:
    """Shapes and types of images on a canvas, by default the first."""
    data = config.data
    canvas = canvas or data.canvas
    return model_file.blank_images(batch_size, canvas, data.max_proposals, data.resize_rule)


def blank_batch(
    config: ConfigDict, batch_size: int, canvas: tuple[int, int] | None = None
) -> Batch:
    """Shapes and types of a batch on a canvas, by default the first."""
    slots = jax.ShapeDtypeStruct((batch_size, config.data.max_boxes), np.bool_)
    return Batch(
        images=blank_images(config, batch_size, canvas),
        boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
        labels=jax.ShapeDtypeStruct(slots.shape, np.int32),
        valid=slots,
        crowd=slots,
        index=jax.ShapeDtypeStruct((batch_size,), np.uint32),
    )


def in_likely_steps(config: ConfigDict, num_images: int = UNKNOWN_IMAGES) -> ConfigDict:
    """A config with all lengths in steps, before it is known how many an epoch has.

    Parts of the run come out no longer, in proportion, than they can be: an epoch has
    `num_images` where the run is said in epochs, and is a step where it is said in steps.
    """
    return in_steps(config, num_images if isinstance(config.num_steps, str) else 1)


def in_steps(config: ConfigDict, num_images: int) -> ConfigDict:
    """A config with all lengths in steps; an epoch has so many images."""
    tree = schema.describe(config.to_dict())
    return ConfigDict(lengths.resolve(config.to_dict(), tree, num_images))


def _make_optimizer(config: ConfigDict, frozen: tuple[str, ...]) -> tuple[Any, Callable]:
    """Builds the optimizer and its schedule; the frozen parameters never move."""
    keywords = config.optimizer.to_dict()
    keywords["frozen"] += frozen
    with mistakes.mistakes_in("optimizer"):
        return build_optimizer(
            **keywords,
            batch_size=config.batch_size,
            num_steps=config.num_steps,
            final_steps=config.final_steps,
        )


def _trace(config: ConfigDict, detector: Detector) -> Any:
    """Lets the detector meet its settings and shapes; gives the shapes of its variables."""
    batch, key = blank_batch(config, 1), jax.random.key(0)
    with mistakes.mistakes_in("model"):
        variables = jax.eval_shape(detector.init, key, batch.images)
        loss = partial(detector.loss, final=bool(config.final_steps))
        jax.eval_shape(loss, variables, batch, key)
        for canvas in canvases.every(config.data.canvas, config.data.more_canvases):
            jax.eval_shape(detector.predict, variables, blank_images(config, 1, canvas))
    return variables


def _load_weights(
    config: ConfigDict, detector: Detector, shapes: Any
) -> tuple[Any, LoadReport | None, tuple[str, ...]]:
    """The shapes with arrays in the place of all that `init_from` has.

    Also gives what became of each array, and the classes of the file if it names them.
    """
    file, names = config.init_from, ()
    if not file:
        return shapes, None, names
    if Path(file).is_dir() or model_file.is_model(file):
        contents, _ = loading.read(file)
        names, leaves = contents.class_names, flatten_dict(contents.variables, sep="/")
        variables, report = interop.from_own(leaves, shapes, source=file)
    else:
        variables, report = interop.from_torch(
            interop.load_file(file), shapes, source=file, bgr=detector.bgr_weights
        )
    # The rest of a backbone that is frozen in part was trained with it.
    needed = [n for n in report.missing if "/backbone/" in n or detector.is_frozen(n)]
    missing = needed if detector.frozen else []
    if missing:
        raise UserError(
            f"{file} has nothing for {missing[0]}, which cannot be learnt: "
            f"{detector.frozen[0]} is frozen in config.model"
        )
    return variables, report, names
