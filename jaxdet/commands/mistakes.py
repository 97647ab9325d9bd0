"""Finds the mistakes of a config, before anything is read or made where they show then."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from jaxdet.commands import results
from jaxdet.data import mosaic, ranges, transforms
from jaxdet.detectors import views
from jaxdet.training.multiscale import check_heights
from jaxdet.types import Detector, UserError

# What the batches of a training take of the section "data".
TRAIN_KEYS = (
    *("canvas", "more_canvases", "resize", "resize_rule", "max_boxes", "max_proposals"),
    *("use_difficult", "num_threads", "exif", "reduced_decoding"),
    *transforms.Augmentation._fields,
    *mosaic.Composition._fields,
)


def check_settings(config: ConfigDict) -> None:
    """Finds the mistakes that show before anything is made.

    Raises:
        UserError: for the first one.
    """
    ranges.check_train_settings(
        keep_empty=config.data.keep_empty, **{key: config.data[key] for key in TRAIN_KEYS}
    )
    check_heights(config.multiscale_heights)
    if config.multiscale_heights and config.data.more_canvases:
        raise UserError(
            "config.multiscale_heights wants one canvas, as a height fits no two alike; found "
            f"config.data.more_canvases {config.data.more_canvases}"
        )
    try:
        views.check_scales(config.eval_scales)
    except UserError as error:
        raise UserError(f"config.eval_scales: {error}") from None
    if bool(config.data.proposals) != bool(config.data.max_proposals):
        raise UserError(
            "config.data.proposals and config.data.max_proposals are set both or neither, found "
            f"{config.data.proposals!r} and {config.data.max_proposals}"
        )
    with mistakes_in("evaluation"):
        results.measure(config, [], [], config.data.classes)


def check_lengths(config: ConfigDict, *, warn: bool = False) -> None:
    """Finds lengths that do not fit one another, and may say which come to nothing.

    Raises:
        UserError: for the first one.
    """
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
    if not warn:
        return
    log = logging.getLogger("jaxdet")
    behind = [milestone for milestone in used if milestone >= num_steps]
    if behind:
        log.warning(
            "warning: config.optimizer.milestones %s come to nothing: num_steps is %d",
            ", ".join(map(str, behind)),
            num_steps,
        )
    if optimizer.warmup_steps > num_steps:
        log.warning(
            "warning: config.optimizer.warmup_steps %d do not end: num_steps is %d",
            optimizer.warmup_steps,
            num_steps,
        )


def check_first_weights(config: ConfigDict, detector: Detector) -> None:
    """Finds what a run lacks to start.

    Raises:
        UserError: if parts would be frozen as they are drawn.
    """
    if detector.frozen and not config.init_from:
        raise UserError(
            f"{detector.frozen[0]} is frozen in config.model and needs pretrained weights: name "
            'their file in config.init_from, or let it learn, with another norm than "frozen" and '
            "frozen_stages 0"
        )


def check_file(config: ConfigDict) -> None:
    """Finds a file of weights, or a run, that is not there.

    Raises:
        UserError: if so.
    """
    if config.init_from and not Path(config.init_from).exists():
        raise UserError(f"config.init_from: there is no file {config.init_from}")


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
