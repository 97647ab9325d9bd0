"""Where average precision is lost: the six kinds of errors of TIDE."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxdet.evaluation.curves import precision_at_recalls
from jaxdet.evaluation.matching import THRESHOLD, Matches

BACKGROUND_THRESHOLD = 0.1  # A box with less IoU with all objects lies on the background.
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT = -1


class Errors(NamedTuple):
    """What is wrong, and how much average precision each kind costs.

    Attributes:
        ap: at the IoU of the matching; None without objects and detections.
        counts: of each kind, in the order of `KINDS`.
        losses: what the AP would gain if the errors of that kind alone were put
            right, 0..1, by kind. They do not add up.
        false_positives: likewise, if all false detections had the lowest score.
        false_negatives: likewise, if no object was missed.
        kinds: the kind of each detection of the matches; RIGHT for hits.
        missed: whether each object is neither found, nor would be if the errors of
            class or place were put right.
    """

    ap: float | None
    counts: dict[str, int]
    losses: dict[str, float]
    false_positives: float
    false_negatives: float
    kinds: Int[np.ndarray, " N"]
    missed: Bool[np.ndarray, " M"]


def find_errors(
    matches: Matches,
    *,
    positive: float = THRESHOLD,
    background: float = BACKGROUND_THRESHOLD,
) -> Errors:
    """Sorts errors into kinds and puts each kind right, to see what that would bring.

    A detection that finds nothing is, by the first that holds, an error of
    localisation (IoU from `background` to `positive` with an object of its class),
    of classification (`positive` or more with one of another class), a duplicate
    (of a found object), background (at most `background` with all), or both: wrong
    class and wrong place. Put right, the best detection of those of place and class
    for an object that nobody finds is a hit; others vanish. Objects for which there
    is none are missed; put right, they are no longer to be found.

    The numbers are those of the authors' own program, also where it differs from
    COCO's AP: a class with detections, but no object, counts as AP 0, and one with
    neither, or no longer, is left out of the mean. Detections on crowds, which count
    neither as right nor wrong, have a kind and may be put right. No kind loses less
    than 0.

    Args:
        matches: of a matching at the IoU `positive`.
        positive: see above.
        background: see above.

    Reference: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection
    Errors, arXiv:2008.08115.
    """
    kinds = _kinds(matches, positive, background)
    mended, labels, missed = _mend(matches, kinds)
    hits, wrong = matches.hits, ~matches.hits & ~matches.ignored
    objects = matches.object_labels
    all_ = _mean_ap(matches.labels, matches.scores, hits, hits | wrong, objects)

    def gain(*changed):
        return (_mean_ap(*changed) or 0.0) - (all_ or 0.0)

    def gain_of(kind):
        chosen = kinds == kind
        fixed = chosen & mended
        there = hits | (wrong & ~chosen) | fixed
        left = objects[~missed] if kind == MISSED else objects
        return gain(
            np.where(fixed, labels, matches.labels), matches.scores, hits | fixed, there, left, hits
        )

    return Errors(
        ap=all_,
        counts=dict(
            zip(
                KINDS,
                [*np.bincount(kinds[~hits], minlength=MISSED).tolist(), int(missed.sum())],
                strict=True,
            )
        ),
        losses={name: max(gain_of(kind), 0.0) for kind, name in enumerate(KINDS)},
        false_positives=gain(matches.labels, hits.astype(float), hits, hits | wrong, objects, hits),
        false_negatives=gain(
            matches.labels, matches.scores, hits, hits | wrong, objects[matches.found], hits
        ),
        kinds=kinds,
        missed=missed,
    )


def _kinds(matches, positive, background):
    same, other = matches.same_iou, matches.other_iou
    conditions = {
        RIGHT: matches.hits,
        LOCALISATION: (same >= background) & (same <= positive),
        CLASSIFICATION: other >= positive,
        DUPLICATE: same >= positive,
        BACKGROUND: np.maximum(same, other) <= background,
    }
    return np.select(list(conditions.values()), list(conditions), BOTH)


def _mend(matches, kinds):
    """Which errors become hits when they are put right, their labels then, and what is missed."""
    placed = kinds == LOCALISATION
    targets = np.where(placed, matches.same, matches.other)
    able = np.flatnonzero(placed | (kinds == CLASSIFICATION))
    able = able[~matches.found[targets[able]]]
    # Detections stand by image, the best first: the first of an object is its best.
    reached, first = np.unique(targets[able], return_index=True)
    mended, labels = np.zeros(len(kinds), bool), matches.labels.copy()
    mended[able[first]] = True
    labels[able[first]] = matches.object_labels[reached]
    missed = ~matches.found
    missed[reached] = False
    return mended, labels, missed


def _mean_ap(labels, scores, hits, there, object_labels, last=None):
    """The mean over all classes that have an object, or a detection that is there.

    Of equal scores, those that are `last` come last.
    """
    places = np.flatnonzero(there)
    ties = places if last is None else last[places]
    places = places[np.lexsort((ties, -scores[places], labels[places]))]
    labels, hits = labels[places], hits[places]
    present = np.union1d(labels, object_labels)
    starts, stops = (np.searchsorted(labels, present, side=side) for side in ("left", "right"))
    counts = [int(np.sum(object_labels == label)) for label in present]
    precisions = [
        precision_at_recalls(hits[start:stop], count).mean()
        for start, stop, count in zip(starts, stops, counts, strict=True)
    ]
    return float(np.mean(precisions)) if precisions else None
