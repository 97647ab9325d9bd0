"""What a lowest score does: precision over recall, F1 over the score, and what scores are worth."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RECALLS = np.arange(101) / 100
SCORES = np.arange(101) / 100
BINS = 10  # Of a reliability diagram, equal in width.


class Reliability(NamedTuple):
    """How often detections of a score are right; bins of equal width from 0 to 1.

    Attributes:
        counts: detections of each bin.
        scores: their mean score; NaN for an empty bin.
        precisions: the share of them that find an object; NaN for an empty bin.
        error: the mean distance of the two, weighted by counts (the expected
            calibration error); NaN without detections.
    """

    counts: Int[np.ndarray, " bins"]
    scores: Float[np.ndarray, " bins"]
    precisions: Float[np.ndarray, " bins"]
    error: float


def precision_at_recalls(
    hits: Bool[np.ndarray, " N"], num_objects: int
) -> Float[np.ndarray, "101"]:
    """The best precision with which at least each of the recalls 0, .01, ..., 1 is reached.

    0 where a recall is not reached, and everywhere without objects. The mean is
    the average precision, as COCO has it.

    Args:
        hits: whether each detection of a class finds an object, the best score first.
        num_objects: to find.
    """
    if num_objects == 0:
        return np.zeros(len(RECALLS))
    true = np.cumsum(hits)
    precisions = true / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precisions[::-1])[::-1]
    places = np.searchsorted(true / num_objects, RECALLS, side="left")
    return np.append(highest, 0.0)[places]


def f1_at_scores(
    scores: Float[np.ndarray, " N"], hits: Bool[np.ndarray, " N"], num_objects: int
) -> Float[np.ndarray, "101"]:
    """F1 of the detections with at least each of the scores 0, .01, ..., 1.

    F1 = 2 true / (detections + objects) is the harmonic mean of precision and
    recall; 0 without both.
    """
    true, count = count_at_scores(scores, hits)
    return 2 * true / np.maximum(count + num_objects, 1)


def count_at_scores(
    scores: Float[np.ndarray, " N"], hits: Bool[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, "101"], Int[np.ndarray, "101"]]:
    """Hits, and all detections, with at least each of the scores 0, .01, ..., 1."""
    order = np.argsort(scores, kind="stable")
    places = np.searchsorted(scores[order], SCORES, side="left")
    true = np.append(np.cumsum(hits[order][::-1])[::-1], 0)[places]
    return true, len(scores) - places


def best_score(f1: Float[np.ndarray, "101"]) -> float:
    """The score with the highest F1; in the middle of the first stretch that is as high."""
    top = np.flatnonzero(f1 >= f1.max() - 1e-12)
    stretch = top[top - top[0] == np.arange(len(top))]
    return float(SCORES[(stretch[0] + stretch[-1]) // 2])


def reliability(
    scores: Float[np.ndarray, " N"], hits: Bool[np.ndarray, " N"], *, bins: int = BINS
) -> Reliability:
    """Compares scores with how often they are right.

    Args:
        scores: 0..1, of detections of all classes.
        hits: whether each finds an object.
        bins: so many of equal width; a score on a border is in the upper one.

    Reference: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    places = np.minimum((scores * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(places, scores, minlength=bins) / counts
        precisions = np.bincount(places, hits, minlength=bins) / counts
    total = counts.sum()
    distance = np.nansum(counts * np.abs(means - precisions))
    return Reliability(counts, means, precisions, float(distance / total) if total else np.nan)
