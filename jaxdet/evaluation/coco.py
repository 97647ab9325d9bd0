"""COCO metrics: average precision and recall, in total, by object size and by class.

The matching is faster-coco-eval's, whose numbers are those of pycocotools.
Every image of the source counts, with or without objects or detections.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdet.evaluation.labels import check_input
from jaxdet.evaluation.runner import ImageDetections
from jaxdet.evaluation.table import Section, format_sections
from jaxdet.types import Example

BEST = "AP"

# Places in the arrays of `Curves`.
IOU50, IOU75 = 0, 5
ALL, SMALL, MEDIUM, LARGE = range(4)
MOST = -1  # Of the limits.
LIMITS = (1, 10, 100)

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Curves(NamedTuple):
    """What every metric is a mean of; -1 where there is no object to find.

    Axes: T = 10 IoU thresholds (.5 to .95), R = 101 recall levels (0 to 1),
    K classes, A = 4 object sizes (all, small, medium, large), M limits on the
    detections of one image and class.
    """

    precision: np.ndarray  # (T, R, K, A, M) float64
    recall: np.ndarray  # (T, K, A, M) float64, the highest that is reached.


def evaluate(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    class_names: Sequence[str],
    *,
    limits: tuple[int, ...] = LIMITS,
) -> dict:
    """Computes the COCO metrics of a data set.

    Crowd and difficult objects are ignored regions: they need not be found,
    and detections on them count neither as right nor as wrong. A detection
    lies on one if the share of the detection inside it reaches the IoU
    threshold. (Pascal VOC's own rule for difficult objects uses the IoU.)
    The size of an object is its `area`, which may be that of a mask.

    Args:
        examples: one per image; only `boxes`, `labels`, `crowd`, `difficult`,
            `area` and `size` are read. The `id` is not, so any is fine.
        detections: one per image, in the same order.
        class_names: name of each label.
        limits: so many of the best detections of an image and class count;
            rising numbers. Each has a recall, the last one counts for all else.

    Returns:
        Fractions 0..1 under AP, AP50, AP75, APs, APm, APl, an AR for each
        limit, such as AR100, ARs, ARm, ARl, and `per_class`: {name: {"AP",
        "AP50"}}. A class or size without objects gets None and is left out of
        the means. The result can be written as JSON.

    Raises:
        ValueError: if the lengths differ, a label has no name, or the limits
            are not rising numbers from 1 up.

    Reference: Lin et al., Microsoft COCO, arXiv:1405.0312; the definitions are
    on cocodataset.org under Detection Evaluation.
    """
    precision, recall = measure(examples, detections, num_classes=len(class_names), limits=limits)
    return {
        "AP": mean(precision[:, :, :, ALL, MOST]),
        "AP50": mean(precision[IOU50, :, :, ALL, MOST]),
        "AP75": mean(precision[IOU75, :, :, ALL, MOST]),
        "APs": mean(precision[:, :, :, SMALL, MOST]),
        "APm": mean(precision[:, :, :, MEDIUM, MOST]),
        "APl": mean(precision[:, :, :, LARGE, MOST]),
        **{f"AR{limit}": mean(recall[:, :, ALL, m]) for m, limit in enumerate(limits)},
        "ARs": mean(recall[:, :, SMALL, MOST]),
        "ARm": mean(recall[:, :, MEDIUM, MOST]),
        "ARl": mean(recall[:, :, LARGE, MOST]),
        "per_class": {
            name: {
                "AP": mean(precision[:, :, k, ALL, MOST]),
                "AP50": mean(precision[IOU50, :, k, ALL, MOST]),
            }
            for k, name in enumerate(class_names)
        },
    }


def measure(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    *,
    num_classes: int,
    limits: Sequence[int] = LIMITS,
) -> Curves:
    """Matches detections to objects and gives precision and recall; see `evaluate`.

    Args:
        examples: as for `evaluate`.
        detections: as for `evaluate`.
        num_classes: K.
        limits: so many of the best detections of an image and class count;
            rising numbers, each of which gets a place on the axis M.

    Raises:
        ValueError: if the lengths differ, a label is not in 0..num_classes-1,
            or the limits do not rise.
    """
    if not limits or min(limits) < 1 or list(limits) != sorted(set(limits)):
        raise ValueError(f"limits wants rising numbers from 1 up, got {limits}")
    # Here, so that what is found on images can be had without its measuring.
    from faster_coco_eval import COCO, COCOeval_faster

    check_input(examples, detections, num_classes)
    truth = COCO(
        {
            "images": [
                {"id": i, "height": int(example.size[0]), "width": int(example.size[1])}
                for i, example in enumerate(examples, start=1)
            ],
            # Names are given back by place, so that two classes of one name stay two.
            "categories": [{"id": k + 1, "name": str(k)} for k in range(num_classes)],
            "annotations": _annotations(examples),
        }
    )
    found = truth.loadRes(_results(detections, num_classes))
    matching = COCOeval_faster(truth, found, iouType="bbox", print_function=_silent)
    matching.params.maxDets = list(limits)
    matching.evaluate()
    matching.accumulate()
    return Curves(matching.eval["precision"], matching.eval["recall"])


def result_items(
    found: ImageDetections, image_id: int | str, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image in the form of COCO's results.

    Args:
        found: in pixels of the original image.
        image_id: number of the image in the annotation file.
        category_ids: number of each label there.
    """
    boxes, scores, labels = found
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": float(score),
        }
        for box, score, label in zip(_xywh(boxes), scores, labels, strict=True)
    ]


def mean(values: np.ndarray) -> float | None:
    """The mean of a part of `Curves` over all that has objects; None where nothing has."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def format_table(results: dict) -> str:
    """Formats the results of `evaluate`: the totals, then a line for each class."""
    recalls = [name for name in results if name.startswith("AR")]
    return format_sections(
        Section("", COLUMNS, {"all": results}),
        Section("", recalls, {"all": results}),
        Section("class", ("AP", "AP50"), results["per_class"]),
    )


def _annotations(examples):
    """Objects as COCO annotations; ids start at 1, because 0 means unmatched."""
    annotations = []
    for image_id, example in enumerate(examples, start=1):
        ignored = np.logical_or(example.crowd, example.difficult)
        for box, label, area, ignore in zip(
            _xywh(example.boxes), example.labels, example.area, ignored, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(ignore),
                }
            )
    return annotations


def _results(detections, num_classes):
    numbers = range(1, num_classes + 1)
    return [
        item
        for image_id, found in enumerate(detections, start=1)
        for item in result_items(found, image_id, numbers)
    ]


def _xywh(boxes):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _silent(*_):
    """Stands in for the printing of faster-coco-eval."""
