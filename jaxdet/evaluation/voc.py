"""Pascal VOC metrics: average precision of each class at one IoU threshold, and its mean."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxdet.evaluation.labels import check_input
from jaxdet.evaluation.runner import ImageDetections
from jaxdet.evaluation.table import Section, format_sections
from jaxdet.types import Example

BEST = "mAP"

# As 0:0.1:1 of the development kit and NumPy's arange: the fourth level is a hair
# above 3 / 10, so that a recall of exactly .3 does not reach it. Likewise .6 and .7.
ELEVEN_LEVELS = np.arange(11) * 0.1

# What a detection is.
WRONG, RIGHT, IGNORED = 0, 1, -1


class Curve(NamedTuple):
    """Precision and recall of one class after each detection, the best score first."""

    precision: Float[np.ndarray, " N"]  # NaN as long as all detections lie on ignored objects.
    recall: Float[np.ndarray, " N"]  # NaN where there is no object to find.
    num_objects: int  # Those that are to be found.


def evaluate(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    class_names: Sequence[str],
    *,
    iou_threshold: float = 0.5,
    eleven_point: bool = False,
    inclusive: bool = False,
) -> dict:
    """Computes the Pascal VOC metrics of a data set.

    Args:
        examples: one per image; only `boxes`, `labels`, `crowd` and `difficult` are read.
        detections: one per image, in the same order. All of them count.
        class_names: name of each label.
        iou_threshold: lowest IoU with which an object is found, in (0, 1].
        eleven_point: whether AP is the mean of the precision at the recalls 0,
            .1, ..., 1, as until VOC 2009, or the area under the curve.
        inclusive: whether far corners belong to boxes: sides are a pixel longer (see `measure`).

    Returns:
        Fractions 0..1: `mAP`, the mean over the classes, and `per_class`:
        {name: {"AP"}}. A class without objects gets None and is left out of
        the mean. The result can be written as JSON.

    Raises:
        ValueError: if a setting is out of range, the lengths differ, or a
            label has no name.

    Reference: Everingham et al., The Pascal Visual Object Classes Challenge,
    IJCV 2010, sec. 4.2.
    """
    curves = measure(
        examples,
        detections,
        num_classes=len(class_names),
        iou_threshold=iou_threshold,
        inclusive=inclusive,
    )
    precisions = [average_precision(curve, eleven_point=eleven_point) for curve in curves]
    known = [value for value in precisions if not np.isnan(value)]
    return {
        "mAP": float(np.mean(known)) if known else None,
        "per_class": {
            name: {"AP": None if np.isnan(value) else value}
            for name, value in zip(class_names, precisions, strict=True)
        },
    }


def measure(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    inclusive: bool = False,
) -> list[Curve]:
    """Matches detections to objects and gives the curve of each class.

    Each detection looks at the object of its image and class that it overlaps
    most, the first one of several. Below the threshold it is wrong. It is
    right if it is the first one there, wrong if the object is found already,
    and does not count if the object is difficult or a crowd, which need not be
    found either. Equal scores keep the order of the images, and that of the
    detections in an image.

    Args:
        examples: as for `evaluate`.
        detections: as for `evaluate`.
        num_classes: K.
        iou_threshold: in (0, 1].
        inclusive: whether the far edges are the last pixels inside, so that a
            box from 3 to 5 is three pixels wide. The boxes of the pipeline are not.

    Raises:
        ValueError: as `evaluate`.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")
    check_input(examples, detections, num_classes)
    scores = [[] for _ in range(num_classes)]
    outcomes = [[] for _ in range(num_classes)]
    num_objects = np.zeros(num_classes, int)
    for example, found in zip(examples, detections, strict=True):
        ignored = np.logical_or(example.crowd, example.difficult)
        num_objects += np.bincount(example.labels[~ignored], minlength=num_classes)
        for label in np.unique(found.labels):
            mine, objects = found.labels == label, example.labels == label
            order = np.argsort(-found.scores[mine], kind="stable")
            ious = _pairwise_iou(
                found.boxes[mine][order], example.boxes[objects], extra=float(inclusive)
            )
            scores[label].append(found.scores[mine][order])
            outcomes[label].append(_match(ious, ignored[objects], iou_threshold))
    return [_curve(*of_class) for of_class in zip(scores, outcomes, num_objects, strict=True)]


def average_precision(curve: Curve, *, eleven_point: bool = False) -> float:
    """The mean precision over the recalls; NaN for a class without objects.

    The precision at a recall is the highest one at that recall or beyond, and
    0 where the recall is not reached.

    Args:
        curve: of one class.
        eleven_point: see `evaluate`.

    >>> curve = Curve(np.array([1, 0.5, 2 / 3]), np.array([0.5, 0.5, 1]), num_objects=2)
    >>> round(average_precision(curve), 4), round(average_precision(curve, eleven_point=True), 4)
    (0.8333, 0.8485)
    """
    if curve.num_objects == 0:
        return float("nan")
    # NaN stands before the first detection that counts, where nothing is found.
    precision = np.append(np.nan_to_num(curve.precision), 0.0)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_point:
        return float(np.mean(best_beyond[np.searchsorted(curve.recall, ELEVEN_LEVELS)]))
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * best_beyond[:-1]))


def format_table(results: dict) -> str:
    """Formats the results of `evaluate`: the mean, then a line for each class."""
    return format_sections(
        Section("", ("mAP",), {"all": results}), Section("class", ("AP",), results["per_class"])
    )


def _match(ious, ignored, iou_threshold):
    """What each detection of one image and class is; the best score comes first."""
    outcomes = np.full(len(ious), WRONG)
    if ious.shape[1] == 0:
        return outcomes
    nearest, taken = ious.argmax(axis=1), np.zeros(len(ignored), bool)
    for i in np.flatnonzero(ious.max(axis=1) >= iou_threshold):
        j = nearest[i]
        outcomes[i] = IGNORED if ignored[j] else WRONG if taken[j] else RIGHT
        taken[j] = True
    return outcomes


def _curve(scores, outcomes, num_objects):
    if not scores:
        return Curve(np.zeros(0), np.zeros(0), int(num_objects))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    outcomes = np.concatenate(outcomes)[order]
    right, wrong = np.cumsum(outcomes == RIGHT), np.cumsum(outcomes == WRONG)
    with np.errstate(invalid="ignore"):
        return Curve(right / (right + wrong), right / np.float64(num_objects), int(num_objects))


def _pairwise_iou(
    boxes: Shaped[np.ndarray, "N 4"], others: Shaped[np.ndarray, "G 4"], *, extra: float
) -> Float[np.ndarray, "N G"]:
    """IoU in float64 with `extra` added to the far edges; 0 for two boxes without area."""
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.maximum(high - low + extra, 0).prod(axis=2)
    area, other_area = ((b[:, 2:] - b[:, :2] + extra).prod(axis=1) for b in (boxes, others))
    union = area[:, None] + other_area - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
