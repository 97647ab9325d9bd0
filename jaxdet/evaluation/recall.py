"""Recall of proposals: how many objects are found, whatever their class."""

from collections.abc import Sequence

import numpy as np

from jaxdet.evaluation.coco import ALL, IOU50, LARGE, MEDIUM, SMALL, mean, measure
from jaxdet.evaluation.runner import ImageDetections
from jaxdet.evaluation.table import Section, format_sections
from jaxdet.types import Example

BEST = "AR"

LIMITS = (100, 300, 1000)


def evaluate(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    class_names: Sequence[str] = (),
    *,
    limits: tuple[int, ...] = LIMITS,
) -> dict:
    """Computes the average recall of proposals, and their precision as a detector of objects.

    All labels count as one. AR is the mean of the recalls at the IoU
    thresholds .5, .55, ..., .95, as in COCO; crowd and difficult objects are
    ignored as `coco.evaluate` ignores them.

    The matching takes 1.7 kB of memory a proposal: 8 GB for 5,000 images of 1,000.

    Args:
        examples: one per image; as for `coco.evaluate`.
        detections: one per image, in the same order.
        class_names: not used.
        limits: so many of the best proposals of an image count; rising numbers.

    Returns:
        Fractions 0..1: for each limit an AR, such as `AR100`; and with the
        largest limit `AR`, `ARs`, `ARm`, `ARl` by the size of the objects, and
        `AP`, `AP50` of the one class "object". None without objects. The result
        can be written as JSON.

    Raises:
        ValueError: if the limits are not rising numbers from 1 up, or the lengths differ.

    Reference: Hosang et al., What makes for effective detection proposals?,
    arXiv:1502.05082, sec. 5; COCO's detection evaluation without categories.
    """
    precision, recall = measure(
        [example._replace(labels=np.zeros_like(example.labels)) for example in examples],
        [found._replace(labels=np.zeros_like(found.labels)) for found in detections],
        num_classes=1,
        limits=limits,
    )
    return {
        **{f"AR{limit}": mean(recall[:, 0, ALL, m]) for m, limit in enumerate(limits)},
        "AR": mean(recall[:, 0, ALL, -1]),
        "ARs": mean(recall[:, 0, SMALL, -1]),
        "ARm": mean(recall[:, 0, MEDIUM, -1]),
        "ARl": mean(recall[:, 0, LARGE, -1]),
        "AP": mean(precision[:, :, 0, ALL, -1]),
        "AP50": mean(precision[IOU50, :, 0, ALL, -1]),
    }


def format_table(results: dict) -> str:
    """Formats the results of `evaluate` in one line, but for `AR`, which the largest limit has."""
    columns = [name for name in results if name != "AR"]
    return format_sections(Section("", columns, {"objects": results}))
