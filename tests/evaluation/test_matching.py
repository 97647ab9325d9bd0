"""Which detection finds which object."""

import numpy as np
import pytest

from examples import make_detections, make_example, make_random
from jaxdet.evaluation import matching

BOX, RIGHT, FAR = [0, 0, 10, 10], [10, 0, 20, 10], [50, 50, 60, 60]


def match(examples, detections, **keywords):
    return matching.match(examples, detections, num_classes=2, **keywords)


def test_the_better_of_two_detections_finds_the_object():
    found = match([make_example([BOX], [0])], [make_detections([BOX, BOX], [0.3, 0.8], [0, 0])])

    np.testing.assert_allclose(found.scores, [0.8, 0.3], atol=1e-6)
    assert found.objects.tolist() == [0, -1]
    assert found.same_iou.tolist() == [1, 1]
    assert found.found.tolist() == [True]


@pytest.mark.parametrize(
    "width, hit, iou",
    [
        (10, True, 1),
        (5, True, 0.5),  # On the threshold.
        (4, False, 0.4),
        (0, False, 0),  # An empty box.
    ],
)
def test_an_object_is_found_from_the_threshold_on(width, hit, iou):
    found = match([make_example([BOX], [0])], [make_detections([[0, 0, width, 10]], [0.9], [0])])

    assert found.hits.tolist() == [hit]
    np.testing.assert_allclose(found.same_iou, [iou])


def test_a_detection_takes_the_best_object_that_is_still_free():
    objects = make_example([[0, 0, 10, 10], [0, 0, 10, 8]], [0, 0])
    found = match([objects], [make_detections([BOX, BOX], [0.9, 0.8], [0, 0])])

    assert found.objects.tolist() == [0, 1]
    assert found.same.tolist() == [0, 0]


def test_objects_of_another_class_are_no_find_but_known():
    objects = make_example([RIGHT, BOX], [0, 1])
    found = match([objects], [make_detections([BOX], [0.9], [0])])

    assert not found.hits.any()
    assert found.same_iou.tolist() == [0]
    assert (found.other.tolist(), found.other_iou.tolist()) == ([1], [1])


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
@pytest.mark.parametrize(
    "box, label, ignored",
    [
        ([0, 0, 4, 4], 0, True),  # Inside, however small.
        ([0, 0, 4, 4], 1, False),  # Of another class.
        ([5, 0, 15, 10], 0, False),  # Half of it inside: more than that is wanted.
        (FAR, 0, False),
    ],
)
def test_detections_on_ignored_objects_of_their_class_are_ignored(kind, box, label, ignored):
    objects = make_example([BOX], [0], **{kind: [True]})
    found = match([objects], [make_detections([box], [0.9], [label])])

    assert found.ignored.tolist() == [ignored]
    assert not found.hits.any()
    assert len(found.object_labels) == 0


def test_a_detection_that_finds_an_object_is_not_ignored():
    objects = make_example([BOX, BOX], [0, 0], crowd=[True, False])
    found = match([objects], [make_detections([BOX, BOX], [0.9, 0.8], [0, 0])])

    assert (found.hits.tolist(), found.ignored.tolist()) == ([True, False], [False, True])


def test_only_the_best_of_an_image_count():
    found = match(
        [make_example([BOX], [0])],
        [make_detections([BOX, FAR, FAR], [0.1, 0.9, 0.5], [0, 0, 1])],
        limit=2,
    )

    assert found.labels.tolist() == [0, 1]


def test_objects_of_several_images_have_places_of_their_own():
    examples = [make_example([BOX, FAR], [0, 1]), make_example(), make_example([BOX], [0])]
    nothing, one = make_detections(), make_detections([BOX], [0.9], [0])
    found = match(examples, [one, one, one])

    assert found.images.tolist() == [0, 1, 2]
    assert found.objects.tolist() == [0, -1, 2]
    assert found.object_images.tolist() == [0, 0, 2]
    assert match(examples, [nothing] * 3).num_images == 3
    assert len(match([], []).scores) == 0


def test_leaving_low_scores_out_changes_nothing_above():
    examples, detections = make_random(
        np.random.default_rng(0), num_images=20, num_classes=2, max_objects=6, max_found=30
    )
    whole = match(examples, detections)
    cut = match(examples, [type(d)(*(v[d.scores >= 0.5] for v in d)) for d in detections])
    above = whole.scores >= 0.5

    assert 0 < above.sum() < len(above)
    assert whole.objects[above].tolist() == cut.objects.tolist()


def test_a_box_that_is_not_a_number_covers_nothing():
    found = match([make_example([BOX], [0])], [make_detections([[np.nan] * 4], [0.9], [0])])

    assert found.same_iou.tolist() == [0]


def test_labels_without_a_class_are_refused():
    with pytest.raises(ValueError, match="label 2"):
        match([make_example([BOX], [2])], [make_detections()])
