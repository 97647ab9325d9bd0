"""How the anchors of a config's detector fit the objects of its data."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import detectors
from jaxdet.commands import mistakes, opening
from jaxdet.data import canvases
from jaxdet.data.inventory import LEARNT, Judged
from jaxdet.detectors import anchor_reach
from jaxdet.detectors.assigned import Assigned
from jaxdet.detectors.settings import AnchorGrid, Inside
from jaxdet.types import Batch


class Fit(NamedTuple):
    """How anchors fit objects.

    Attributes:
        lines: sentences about it.
        overlaps: of each split the best IoU of each object that is learnt with any anchor
            that may train on its image; empty where there are no anchors.
        anchors: (height, width) of those of a cell of each level, pixels of the canvas.
        positive: an anchor of this IoU learns an object.
        least: an object's best anchor learns it from this IoU on.
    """

    lines: list[str]
    overlaps: dict[str, np.ndarray]
    anchors: np.ndarray = np.zeros((0, 2))
    positive: float = 0.0
    least: float = 0.0


def measure(config: ConfigDict, splits: Mapping[str, Judged]) -> Fit:
    """Measures the best overlaps of all objects with the anchors of their canvas.

    Args:
        config: with its classes.
        splits: the objects of each, on the canvas.
    """
    with mistakes.mistakes_in("model"):
        detector = detectors.build(
            config.detector, num_classes=len(config.data.classes), **config.model.to_dict()
        )
    if detector.assign is None:
        return Fit([f"{config.detector} has no anchors: it learns from the proposals given"], {})
    batch = opening.blank_batch(config, 1)
    with mistakes.mistakes_in("model"):
        variables = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
        shape = jax.eval_shape(detector.assign, variables, batch)
    if shape.by_prediction:
        return Fit([f"{config.detector} has no anchors: objects of any size and shape fit"], {})
    every = [
        _anchors(partial(detector.assign, variables), opening.blank_batch(config, 1, canvas))
        for canvas in canvases.every(config.data.canvas, config.data.more_canvases)
    ]
    model = config.model.get("rpn", config.model)
    grid = AnchorGrid(**model.anchors.to_dict())
    inside = Inside(**model.inside.to_dict())
    overlaps = {
        name: _best_overlaps(judged, every, grid=grid, inside=inside)
        for name, judged in splits.items()
    }
    assign = model.assign
    # Without the rule for objects of no good anchor, these have none.
    least = assign.min_positive_iou if assign.match_low_quality else assign.positive_iou
    lines = [_describe(name, each, assign.positive_iou, least) for name, each in overlaps.items()]
    anchors = anchor_reach.base_sizes(every[0])
    return Fit(lines, overlaps, anchors, assign.positive_iou, least)


def is_lost(overlaps: np.ndarray, least: float) -> np.ndarray:
    """Which objects no anchor learns, whatever the rule."""
    return (overlaps < least) | (overlaps == 0)


def _anchors(assign: Callable, batch: Batch) -> Assigned:
    """The anchors of a canvas; nothing else of the assignment is computed."""
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch)
    shape = jax.eval_shape(assign, blank)
    boxes = jax.jit(lambda batch: assign(batch).boxes)(blank)
    return Assigned(np.asarray(boxes), shape.labels, shape.index, shape.levels)


def _best_overlaps(judged: Judged, every: Sequence[Assigned], **rules: Any) -> np.ndarray:
    """The best IoU of each object that is learnt with the anchors of its image's canvas."""
    learnt = judged.reason == LEARNT
    boxes, image = judged.on_canvas[learnt], judged.image[learnt]
    sizes = judged.sizes[image] * judged.scales[image][:, None]
    sizes = np.maximum(np.rint(sizes), 1).astype(int)
    best = np.zeros(len(boxes))
    for kind, assigned in enumerate(every):
        own = judged.kinds[image] == kind
        best[own] = anchor_reach.best_overlaps(boxes[own], sizes[own], assigned, **rules)
    return best


def _describe(name: str, overlaps: np.ndarray, positive: float, least: float) -> str:
    if not len(overlaps):
        return f"anchors: {name} has no object to learn"
    below, lost = int((overlaps < positive).sum()), int(is_lost(overlaps, least).sum())
    return (
        f"anchors: {below} of {len(overlaps)} objects of {name} ({below / len(overlaps):.1%}) "
        f"reach none at IoU {positive:g}, {lost} of them are learnt by none; the median of the "
        f"best is {np.median(overlaps):.2f}"
    )
