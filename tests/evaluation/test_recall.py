import json

import numpy as np
import pytest
from evaluation.examples import make_detections, make_example, make_random

from jaxdet.evaluation import coco
from jaxdet.evaluation.recall import evaluate, format_table

SMALL_BOX = [10, 10, 30, 30]
MEDIUM_BOX = [100, 100, 150, 150]
LARGE_BOX = [200, 200, 400, 400]
NOWHERE = [500, 0, 520, 20]
THRESHOLDS = 0.5 + 0.05 * np.arange(10)


def test_recall_counts_the_best_of_an_image_up_to_each_limit():
    examples = [make_example([SMALL_BOX, MEDIUM_BOX, LARGE_BOX], [0, 1, 2])]
    boxes = [LARGE_BOX, NOWHERE, MEDIUM_BOX, NOWHERE, SMALL_BOX]
    found = [make_detections(boxes, [0.5, 0.9, 0.7, 0.6, 0.4], [0] * 5)]
    # By score: nowhere, medium, nowhere, large, small.
    results = evaluate(examples, found, limits=(1, 2, 4))
    assert results == pytest.approx(
        {
            "AR1": 0,
            "AR2": 1 / 3,
            "AR4": 2 / 3,
            "AR": 2 / 3,
            "ARs": 0,
            "ARm": 1,
            "ARl": 1,
            # Precision 1 / 2 up to recall 2 / 3, which 67 of 101 levels reach.
            "AP": 67 * 0.5 / 101,
            "AP50": 67 * 0.5 / 101,
        }
    )


def test_labels_do_not_matter():
    examples = [make_example([LARGE_BOX], [2])]
    found = [make_detections([LARGE_BOX], [0.9], [1])]
    assert evaluate(examples, found)["AR"] == 1
    assert coco.evaluate(examples, found, ["cat", "dog", "bird"])["AR100"] == 0


@pytest.mark.parametrize("width, found_at", [(52, 1), (62, 3), (97, 10)])
def test_recall_is_the_mean_over_ten_thresholds(width, found_at):
    # An IoU of .52 is enough for .5, one of .62 for .5, .55 and .6.
    examples = [make_example([[0, 0, 100, 100]], [0])]
    results = evaluate(examples, [make_detections([[0, 0, width, 100]], [0.9], [0])])
    assert results["AR100"] == results["AR1000"] == pytest.approx(found_at / 10)
    assert results["AP"] == pytest.approx(found_at / 10)
    assert results["AP50"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_ignored_objects_need_not_be_found(kind):
    examples = [make_example([LARGE_BOX, MEDIUM_BOX], [0, 0], **{kind: [True, False]})]
    results = evaluate(examples, [make_detections([MEDIUM_BOX], [0.9], [0])])
    assert (results["AR"], results["ARl"]) == (1, None)


def slow_recall(examples, detections, limit):
    """Each proposal takes the object not yet taken that it overlaps most, threshold by threshold.

    A match with an object that counts is better than one with an ignored
    region, which is never used up. Of equal overlaps the last one is taken.
    """
    recalls = []
    for threshold in THRESHOLDS:
        taken, wanted = 0, 0
        for example, found in zip(examples, detections, strict=True):
            ignored = example.crowd | example.difficult
            free = {j for j in range(len(ignored)) if not ignored[j]}
            wanted += len(free)
            for n in sorted(range(len(found.scores)), key=lambda n: -found.scores[n])[:limit]:  # noqa: B023
                overlaps = [(slow_iou(found.boxes[n], example.boxes[j]), j) for j in sorted(free)]
                best = max(overlaps, default=(0, None))
                if best[0] >= min(threshold, 1 - 1e-10):
                    free.remove(best[1])
                    taken += 1
        recalls.append(taken / wanted)
    return np.mean(recalls)


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = float(max(width, 0) * max(height, 0))
    return shared / float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(6))
def test_recall_equals_a_slow_twin_on_random_data(seed):
    examples, detections = make_random(
        np.random.default_rng(seed), num_images=8, num_classes=3, max_objects=9, max_found=24
    )
    results = evaluate(examples, detections, limits=(2, 7, 13, 24))
    for limit in (2, 7, 13, 24):
        expected = slow_recall(examples, detections, limit)
        assert results[f"AR{limit}"] == pytest.approx(expected), limit
    assert 0 < results["AR2"] < results["AR24"] == results["AR"]


def test_the_default_limits_are_a_hundred_three_hundred_and_a_thousand():
    examples = [make_example([LARGE_BOX], [0])]
    for wrong, expected in [(99, (1, 1, 1)), (299, (0, 1, 1)), (999, (0, 0, 1)), (1000, (0, 0, 0))]:
        boxes = [NOWHERE] * wrong + [LARGE_BOX]
        scores = np.linspace(0.9, 0.1, wrong + 1)
        results = evaluate(examples, [make_detections(boxes, scores, [0] * (wrong + 1))])
        assert (results["AR100"], results["AR300"], results["AR1000"]) == expected


@pytest.mark.parametrize("num_images", [0, 2])
def test_no_objects_give_none(num_images):
    found = [make_detections([LARGE_BOX], [0.9], [0])] * num_images
    results = evaluate([make_example()] * num_images, found)
    assert set(results.values()) == {None}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


@pytest.mark.parametrize("limits", [(), (0, 10), (100, 10), (10, 10)])
def test_limits_that_do_not_rise_are_refused(limits):
    with pytest.raises(ValueError, match="limits wants rising numbers from 1 up, got"):
        evaluate([], [], limits=limits)


def test_table_is_a_line():
    examples = [make_example([LARGE_BOX], [0])]
    results = evaluate(examples, [make_detections([LARGE_BOX], [0.9], [0])])
    head, line = (line.split() for line in format_table(results).splitlines())
    assert head == ["AR100", "AR300", "AR1000", "ARs", "ARm", "ARl", "AP", "AP50"]
    assert line == ["objects", "1.000", "1.000", "1.000", "-", "-", "1.000", "1.000", "1.000"]
