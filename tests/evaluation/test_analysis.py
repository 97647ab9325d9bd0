"""What a report says, against numbers worked by hand."""

import numpy as np
import pytest

from examples import make_detections, make_example, make_random
from jaxdet.evaluation import analysis, coco, matching

A, B, C, NOWHERE = [0, 0, 10, 10], [50, 50, 90, 90], [0, 50, 10, 60], [200, 200, 300, 300]
NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def measured():
    """Two images of cats and dogs.

    Of the objects cat A, dog B and dog C, A and B are found, B with a low score;
    a cat is seen on C, a dog nowhere. The second image has a cat that is missed.
    """
    examples = [
        make_example([A, B, C, A], [0, 1, 1, 0], crowd=[False, False, False, True]),
        make_example([A], [0], id="b"),
    ]
    detections = [
        make_detections([A, B, C, NOWHERE], [0.92, 0.325, 0.8, 0.75], [0, 1, 0, 1]),
        make_detections(),
    ]
    return analysis.analyse(examples, detections, NAMES)


def test_objects_and_detections_are_counted(measured):
    assert measured.num_images == 2
    assert measured.num_objects.tolist() == [2, 2]
    assert measured.num_ignored.tolist() == [1, 0]
    assert measured.num_detections.tolist() == [2, 2]
    assert measured.num_sizes == {"small": 3, "medium": 1, "large": 0}


def test_histogram_parts_right_from_wrong(measured):
    right, wrong = measured.histogram

    assert np.flatnonzero(right).tolist() == [6, 18]  # .325 and .92, in bins of .05.
    assert np.flatnonzero(wrong).tolist() == [15, 16] and wrong.sum() == 2


def test_the_score_is_where_the_mean_f1_is_best(measured):
    # Up to .32 both classes have 2 x 1 / (2 + 2); later dogs fall. A stretch from 0 to .32.
    assert measured.score == 0.16
    np.testing.assert_allclose(measured.f1[:, 16], 0.5)
    assert measured.at_score == {"precision": 0.5, "recall": 0.5, "F1": 0.5}


def test_confusions_at_a_score_are_counted_by_hand(measured):
    # Truth cat: A found, the other missed. Dog: B found, C taken for a cat. A dog nowhere.
    assert measured.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert (measured.wrong.tolist(), measured.missed.tolist()) == ([2, 0], [1, 1])


def test_what_is_below_the_score_is_not_there():
    matches = matching.match(
        [make_example([A], [0])], [make_detections([A, A], [0.9, 0.4], [1, 0])], num_classes=2
    )

    assert analysis.confuse(matches, score=0.5, num_classes=2).tolist() == [
        [0, 1, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]
    # The cat is found now, so that the dog is nothing's.
    assert analysis.confuse(matches, score=0.4, num_classes=2).tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_one_object_is_confused_once():
    matches = matching.match(
        [make_example([A], [0])], [make_detections([A, A], [0.9, 0.8], [1, 1])], num_classes=2
    )

    assert analysis.confuse(matches, score=0, num_classes=2)[:, 1].tolist() == [1, 0, 1]


def test_every_object_has_its_row_and_every_detection_its_column():
    examples, detections = make_random(
        np.random.default_rng(3), num_images=30, num_classes=3, max_objects=6, max_found=12
    )
    found = analysis.analyse(examples, detections, ("a", "b", "c"))
    matches = matching.match(examples, detections, num_classes=3)
    above = (matches.scores >= found.score) & ~matches.ignored

    np.testing.assert_array_equal(found.confusion[:-1].sum(axis=1), found.num_objects)
    np.testing.assert_array_equal(
        found.confusion[:, :-1].sum(axis=0), np.bincount(matches.labels[above], minlength=3)
    )
    right = np.trace(found.confusion)
    assert found.wrong.sum() == above.sum() - right
    assert found.missed.sum() == len(matches.object_labels) - right


def test_totals_and_classes_are_those_of_coco():
    examples, detections = make_random(
        np.random.default_rng(4), num_images=20, num_classes=3, max_objects=6, max_found=12
    )
    found = analysis.analyse(examples, detections, ("a", "b", "c"))
    wanted = coco.evaluate(examples, detections, ("a", "b", "c"))

    assert found.totals == {key: wanted[key] for key in found.totals}
    for row, name in zip(found.by_class, "abc", strict=True):
        assert row[:2].tolist() == [wanted["per_class"][name][key] for key in ("AP", "AP50")]
    # The matching of a report's own is as COCO's, but for ties and limits.
    np.testing.assert_allclose(found.precisions.mean(axis=1), found.by_class[:, 1], atol=0.02)


def test_without_detections_all_is_missed():
    found = analysis.analyse([make_example([A], [0])], [make_detections()], NAMES)

    assert found.totals["AP"] == 0 and found.at_score["recall"] == 0
    assert found.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert np.isnan(found.by_class[1]).all() and np.isnan(found.scores[1])


def test_without_objects_nothing_is_known():
    found = analysis.analyse([make_example()], [make_detections([A], [0.9], [0])], NAMES)

    assert found.totals["AP"] is None
    assert np.isnan(list(found.at_score.values())).all()
    assert found.errors.ap == 0
