"""Finds the mistakes of a config before any data is read or made."""

import logging
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import settings
from jaxdet.commands.build import (
    abstract_variables,
    blank_images,
    build_detector,
    frozen_settings,
    make_optimizer,
    mistakes_in,
)
from jaxdet.commands.predict import measure
from jaxdet.data import pipeline
from jaxdet.detectors import CLASS_BLIND
from jaxdet.training.steps import check_division
from jaxdet.types import Batch, Detector, UserError


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
    pipeline.check_train_settings(**settings.train_keywords(config))
    # Found here and not after the data is made, or at the first evaluation.
    check_division(config.batch_size, jax.devices(), name="config.batch_size")
    check_division(config.eval_batch_size, name="config.eval_batch_size")
    make_optimizer(config)
    detector = build_detector(config, num_classes=len(config.data.classes) or 1)
    if starts:
        _check_milestones(config)
        _check_first_weights(config)
    _trace(config, detector)
    _check_evaluation(config)
    with mistakes_in("evaluation"):
        measure(config, [], [], config.data.classes)


def _check_evaluation(config: ConfigDict) -> None:
    blind = config.detector in CLASS_BLIND and len(config.data.classes) != 1
    if blind and config.evaluation.name != "proposals":
        raise UserError(
            f"the detector {config.detector!r} tells no classes apart: set evaluation.name to "
            f"'proposals', or name one class in data.classes; found {config.evaluation.name!r} "
            f"with {len(config.data.classes) or 'all'} classes"
        )


def _check_milestones(config: ConfigDict) -> None:
    optimizer, num_steps = config.optimizer, config.num_steps
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
    late = [milestone for milestone in used if milestone >= num_steps]
    if late:
        logging.getLogger("jaxdet").warning(
            "warning: config.optimizer.milestones %s come to nothing: num_steps is %d",
            ", ".join(map(str, late)),
            num_steps,
        )


def _check_first_weights(config: ConfigDict) -> None:
    if config.init_from and not Path(config.init_from).is_file():
        raise UserError(f"config.init_from: there is no file {config.init_from}")
    frozen = frozen_settings(config)
    if frozen and not config.init_from:
        raise UserError(
            f"config.model.{frozen[0]} is {config.model[frozen[0]]!r}, which needs pretrained "
            'weights: name their file in config.init_from, or set norm to "batch", "sync" or '
            '"group" and frozen_stages to 0'
        )


def _trace(config: ConfigDict, detector: Detector) -> None:
    """Lets the detector meet its settings and shapes, and computes nothing."""
    variables = abstract_variables(config, detector)
    batch_size, max_boxes = config.batch_size, config.data.max_boxes
    slots = jax.ShapeDtypeStruct((batch_size, max_boxes), np.bool_)
    batch = Batch(
        images=blank_images(config, batch_size),
        boxes=jax.ShapeDtypeStruct((*slots.shape, 4), np.float32),
        labels=jax.ShapeDtypeStruct(slots.shape, np.int32),
        valid=slots,
        crowd=slots,
        index=jax.ShapeDtypeStruct((batch_size,), np.uint32),
    )
    with mistakes_in("model"):
        loss = partial(detector.loss, final=config.final_steps > 0)
        jax.eval_shape(loss, variables, batch, jax.random.key(0))
        jax.eval_shape(detector.predict, variables, batch.images)
