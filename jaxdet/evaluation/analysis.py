"""All that a report says of a detector on a data set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet.evaluation import coco, curves, errors, matching
from jaxdet.evaluation.matching import Matches
from jaxdet.evaluation.runner import ImageDetections
from jaxdet.types import Example

SIZES = {"small": coco.SMALL, "medium": coco.MEDIUM, "large": coco.LARGE}
HISTOGRAM_BINS = 20  # Of the scores, from 0 to 1.


class Analysis(NamedTuple):
    """What is measured; K classes. NaN and None where there is no object to measure with.

    Attributes:
        class_names: name of each label.
        num_images: with or without objects.
        num_objects: of each class, without crowd and difficult ones.
        num_ignored: crowd and difficult objects of each class.
        num_sizes: objects by size, small, medium and large, as COCO has them.
        num_detections: of each class that count, those on ignored objects left out.
        totals: COCO's metrics, as `coco.evaluate` names them.
        by_class: AP, AP50, AP75 and AP small, medium, large of each class.
        precisions: highest precision at each of `curves.RECALLS`, IoU .5.
        f1: at each of `curves.SCORES`.
        scores: the score with the highest F1 for each class.
        score: that for the mean over the classes that have objects.
        at_score: precision, recall and F1 at this score, means over the same classes.
        histogram: detections by score, right ones and wrong ones.
        reliability: of all classes together.
        confusion: at the score; rows truth, columns detection, background last.
        errors: the kinds of errors, by TIDE.
        wrong: false detections of each image at the score.
        missed: objects of each image that are not found at the score.
    """

    class_names: tuple[str, ...]
    num_images: int
    num_objects: Int[np.ndarray, " K"]
    num_ignored: Int[np.ndarray, " K"]
    num_sizes: dict[str, int]
    num_detections: Int[np.ndarray, " K"]
    totals: dict[str, float | None]
    by_class: Float[np.ndarray, "K 6"]
    precisions: Float[np.ndarray, "K 101"]
    f1: Float[np.ndarray, "K 101"]
    scores: Float[np.ndarray, " K"]
    score: float
    at_score: dict[str, float]
    histogram: Int[np.ndarray, "2 bins"]
    reliability: curves.Reliability
    confusion: Int[np.ndarray, "K+1 K+1"]
    errors: errors.Errors
    wrong: Int[np.ndarray, " images"]
    missed: Int[np.ndarray, " images"]


def analyse(
    examples: Sequence[Example], detections: Sequence[ImageDetections], class_names: Sequence[str]
) -> Analysis:
    """Measures all of it.

    AP, AR and their tables are COCO's; all else is of the IoU .5 and the 100 best
    detections of an image.

    Args:
        examples: one per image; as for `coco.evaluate`.
        detections: one per image, in the same order.
        class_names: name of each label.

    Raises:
        ValueError: if the lengths differ, or a label has no name.
    """
    size = len(class_names)
    totals, by_class = _measure_coco(examples, detections, size)
    matches = matching.match(examples, detections, num_classes=size)
    num_objects = np.bincount(matches.object_labels, minlength=size)
    precisions, f1, counts = _curves(matches, num_objects)
    shown = num_objects > 0
    score = curves.best_score(f1[shown].mean(axis=0)) if shown.any() else 0.5
    counted, hits = ~matches.ignored, matches.hits
    confusion = confuse(matches, score=score, num_classes=size)
    wrong, missed = count_mistakes(matches, score=score)
    return Analysis(
        class_names=tuple(class_names),
        num_images=len(examples),
        num_objects=num_objects,
        num_ignored=_count_ignored(examples, size),
        num_sizes=_count_sizes(examples),
        num_detections=np.bincount(matches.labels[counted], minlength=size),
        totals=totals,
        by_class=by_class,
        precisions=precisions,
        f1=f1,
        scores=np.array([curves.best_score(row) for row in f1]) * np.where(shown, 1, np.nan),
        score=score,
        at_score=_means_at(score, counts, num_objects),
        histogram=np.stack(
            [_histogram(matches.scores[hits]), _histogram(matches.scores[counted & ~hits])]
        ),
        reliability=curves.reliability(matches.scores[counted], hits[counted]),
        confusion=confusion,
        errors=errors.find_errors(matches),
        wrong=wrong,
        missed=missed,
    )


def confuse(
    matches: Matches, *, score: float, num_classes: int
) -> Int[np.ndarray, "{num_classes}+1 {num_classes}+1"]:
    """Counts which class is taken for which, background being the last.

    A detection that finds an object of its class is right. Another one, the best
    first, is taken for a confusion if the object of another class that it covers
    best has at least the IoU of the matching, and nothing else has that object;
    else it is a detection of background. An object that nothing has is missed.

    Args:
        matches: detections and objects.
        score: the lowest that counts.
        num_classes: K.

    Returns:
        Rows the truth, columns the detection.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    there = (matches.scores >= score) & ~matches.ignored
    hits = np.flatnonzero(there & matches.hits)
    taken = np.zeros(len(matches.object_labels), bool)
    taken[matches.objects[hits]] = True
    np.add.at(counts, (matches.labels[hits], matches.labels[hits]), 1)

    near = np.flatnonzero(there & ~matches.hits & (matches.other_iou >= matching.THRESHOLD))
    near = near[~taken[matches.other[near]]]
    confused, first = np.unique(matches.other[near], return_index=True)
    near = near[first]  # Of the detections of one image, the best stands first.
    taken[confused] = True
    np.add.at(counts, (matches.object_labels[confused], matches.labels[near]), 1)

    left = there & ~matches.hits
    left[near] = False
    counts[-1, :-1] = np.bincount(matches.labels[left], minlength=num_classes)
    counts[:-1, -1] = np.bincount(matches.object_labels[~taken], minlength=num_classes)
    return counts


def count_mistakes(
    matches: Matches, *, score: float
) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"]]:
    """False detections and missed objects of each image, from a lowest score on."""
    there = (matches.scores >= score) & ~matches.ignored
    wrong = matches.images[there & ~matches.hits]
    found = np.zeros(len(matches.object_labels), bool)
    found[matches.objects[there & matches.hits]] = True
    missed = matches.object_images[~found]
    return tuple(np.bincount(images, minlength=matches.num_images) for images in (wrong, missed))


def _measure_coco(examples, detections, size):
    measured = coco.measure(examples, detections, num_classes=size)
    precision, recall = measured
    areas = {"AP": coco.ALL, "APs": coco.SMALL, "APm": coco.MEDIUM, "APl": coco.LARGE}
    totals = {name: coco.mean(precision[:, :, :, area, -1]) for name, area in areas.items()}
    totals["AP50"] = coco.mean(precision[coco.IOU50, :, :, coco.ALL, -1])
    totals["AP75"] = coco.mean(precision[coco.IOU75, :, :, coco.ALL, -1])
    totals["AR100"] = coco.mean(recall[:, :, coco.ALL, -1])

    parts = [(slice(None), coco.ALL), (coco.IOU50, coco.ALL), (coco.IOU75, coco.ALL)]
    parts += [(slice(None), area) for area in SIZES.values()]
    rows = [[coco.mean(precision[iou, :, k, area, -1]) for iou, area in parts] for k in range(size)]
    return totals, np.array(rows, float).reshape(size, len(parts))


def _curves(matches, num_objects):
    """Precisions and F1 of each class, and its counts of right and of all detections by score."""
    counted = ~matches.ignored
    precisions, f1, counts = [], [], []
    for label, objects in enumerate(num_objects):
        own = np.flatnonzero(counted & (matches.labels == label))
        own = own[np.argsort(-matches.scores[own], kind="stable")]
        points = matches.scores[own], matches.hits[own]
        precisions.append(curves.precision_at_recalls(points[1], int(objects)))
        f1.append(curves.f1_at_scores(*points, int(objects)))
        counts.append(curves.count_at_scores(*points))
    return np.array(precisions), np.array(f1), np.array(counts)


def _means_at(score, counts, num_objects):
    place, shown = round(100 * score), num_objects > 0
    if not shown.any():
        return dict.fromkeys(("precision", "recall", "F1"), np.nan)
    true, all_ = counts[shown, :, place].T
    objects = num_objects[shown]
    return {
        "precision": float(np.mean(true / np.maximum(all_, 1))),
        "recall": float(np.mean(true / objects)),
        "F1": float(np.mean(2 * true / (all_ + objects))),
    }


def _histogram(scores):
    return np.histogram(scores, bins=HISTOGRAM_BINS, range=(0, 1))[0]


def _ignored(example):
    return np.logical_or(example.crowd, example.difficult)


def _count_ignored(examples, size):
    labels = [np.asarray(e.labels, np.int64)[_ignored(e)] for e in examples]
    return np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=size)


def _count_sizes(examples):
    """By COCO's borders, 32 x 32 and 96 x 96 pixels."""
    areas = np.concatenate([np.zeros(0), *(np.asarray(e.area)[~_ignored(e)] for e in examples)])
    places = np.digitize(areas, [32**2, 96**2])
    return dict(zip(SIZES, np.bincount(places, minlength=3).tolist(), strict=True))
