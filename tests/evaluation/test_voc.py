import json

import numpy as np
import pytest
from evaluation.examples import make_detections, make_example, make_random

from jaxdet.evaluation.runner import ImageDetections
from jaxdet.evaluation.voc import Curve, average_precision, evaluate, format_table, measure

BOX = [100, 100, 200, 200]
HALF = [100, 100, 200, 150]  # IoU .5 with BOX.
OTHER = [300, 300, 400, 400]
NOWHERE = [500, 0, 520, 20]


@pytest.fixture(scope="module")
def reference(golden):
    return golden("voc_eval")


def golden_data(reference, *, difficult=True, labels=None):
    """The golden images; their boxes are [y1, x1, y2, x2]."""
    labels = reference["gt_label"] if labels is None else labels
    examples, detections = [], []
    for image in range(int(reference["n_images"])):
        mine = reference["gt_image"] == image
        examples.append(
            make_example(
                reference["gt_bbox_yxyx"][mine][:, [1, 0, 3, 2]],
                labels[mine],
                difficult=reference["gt_difficult"][mine] & difficult,
            )
        )
        found = reference["pred_image"] == image
        detections.append(
            ImageDetections(
                reference["pred_bbox_yxyx"][found][:, [1, 0, 3, 2]],
                reference["pred_score"][found],
                reference["pred_label"][found],
            )
        )
    return examples, detections


def names_of(reference):
    return [str(k) for k in range(int(reference["n_classes"]))]


def precisions(results):
    values = [values["AP"] for values in results["per_class"].values()]
    return [np.nan if value is None else value for value in values]


def test_every_average_precision_is_that_of_the_reference(reference):
    cases = [name for name in reference if name.startswith(("ap_diff", "ap_nodiff"))]
    assert len(cases) == 8
    for case in cases:  # Such as ap_nodifficult_071_iou0.7.
        _, difficult, form, threshold = case.split("_")
        results = evaluate(
            *golden_data(reference, difficult=difficult == "difficult"),
            names_of(reference),
            iou_threshold=float(threshold.removeprefix("iou")),
            eleven_point=form == "071",
            inclusive=True,
        )
        np.testing.assert_allclose(precisions(results), reference[case], rtol=1e-5, err_msg=case)
        expected = reference[case.replace("ap", "map", 1)]
        np.testing.assert_allclose(results["mAP"], expected, rtol=1e-5, err_msg=case)


def test_curves_are_those_of_the_reference_with_its_nans(reference):
    num_classes = int(reference["n_classes"])
    curves = measure(*golden_data(reference), num_classes=num_classes, inclusive=True)
    for k, curve in enumerate(curves):
        np.testing.assert_allclose(curve.precision, reference[f"prec/{k}"], rtol=1e-5)
        np.testing.assert_allclose(curve.recall, reference[f"rec/{k}"], rtol=1e-5)
    assert sum(f"prec/{k}" in reference for k in range(num_classes + 1)) == num_classes


def test_a_class_without_objects_is_left_out_of_the_mean_as_in_the_reference(reference):
    # Its objects count for the first class.
    gone = int(reference["n_classes"]) - 1
    labels = np.where(reference["gt_label"] == gone, 0, reference["gt_label"])
    results = evaluate(
        *golden_data(reference, labels=labels),
        names_of(reference),
        eleven_point=True,
        inclusive=True,
    )
    expected = reference["ap_class_without_gt_07"]
    assert np.isnan(expected[gone]) and results["per_class"][str(gone)]["AP"] is None
    np.testing.assert_allclose(precisions(results), expected, rtol=1e-5)
    np.testing.assert_allclose(results["mAP"], reference["map_class_without_gt_07"], rtol=1e-5)


@pytest.mark.parametrize(
    "boxes, truth, expected",
    [
        ([BOX], [BOX], (1, 1)),
        ([HALF], [BOX], (1, 1)),  # At the threshold it is found.
        ([NOWHERE], [BOX], (0, 0)),
        ([], [BOX], (0, 0)),
        # Precision 1 / 2 at recall 1.
        ([NOWHERE, BOX], [BOX], (1 / 2, 1 / 2)),
        # A second detection of one object is wrong, but comes after full recall.
        ([BOX, BOX], [BOX], (1, 1)),
        # Precisions 1, 1 / 2, 2 / 3 at the recalls .5, .5, 1; six levels are up to .5.
        ([BOX, BOX, OTHER], [BOX, OTHER], ((1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11)),
        # One of two: recall .5.
        ([BOX], [BOX, OTHER], (1 / 2, 6 / 11)),
    ],
)
def test_average_precision_worked_by_hand(boxes, truth, expected):
    examples = [make_example(truth, [0] * len(truth))]
    scores = np.linspace(0.9, 0.1, len(boxes))
    found = [make_detections(boxes, scores, [0] * len(boxes))]
    for eleven_point, value in zip((False, True), expected, strict=True):
        results = evaluate(examples, found, ["cat"], eleven_point=eleven_point)
        assert results == {
            "mAP": pytest.approx(value),
            "per_class": {"cat": {"AP": pytest.approx(value)}},
        }


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_ignored_objects_neither_help_nor_hurt(kind):
    examples = [make_example([BOX, OTHER], [0, 0], **{kind: [True, False]})]
    with_it = make_detections([BOX, BOX, OTHER], [0.9, 0.8, 0.7], [0, 0, 0])
    without = make_detections([OTHER], [0.7], [0])
    assert evaluate(examples, [with_it], ["cat"])["mAP"] == 1
    assert evaluate(examples, [without], ["cat"])["mAP"] == 1
    (curve,) = measure(examples, [with_it], num_classes=1)
    np.testing.assert_array_equal(curve.precision, [np.nan, np.nan, 1])
    np.testing.assert_array_equal(curve.recall, [0, 0, 1])


def test_a_class_of_difficult_objects_only_has_no_objects():
    examples = [make_example([BOX, OTHER], [0, 1], difficult=[True, False])]
    found = make_detections([BOX, NOWHERE, OTHER], [0.9, 0.8, 0.7], [0, 0, 1])
    results = evaluate(examples, [found], ["cat", "dog"])
    assert results == {"mAP": 1.0, "per_class": {"cat": {"AP": None}, "dog": {"AP": 1.0}}}
    assert np.isnan(measure(examples, [found], num_classes=2)[0].recall).all()


def test_the_nearest_object_alone_is_looked_at():
    # The best overlap is with the object that is taken, though the other is above .5, too.
    near = [100, 100, 200, 210]
    examples = [make_example([BOX, near], [0, 0])]
    found = make_detections([BOX, BOX], [0.9, 0.8], [0, 0])
    np.testing.assert_array_equal(measure(examples, [found], num_classes=1)[0].recall, [0.5, 0.5])


def test_inclusive_boxes_are_a_pixel_larger():
    # 9 x 9 of 10 x 10 pixels, or 8 x 8 of 9 x 9.
    examples = [make_example([[0, 0, 9, 9]], [0])]
    found = [make_detections([[0, 0, 8, 8]], [0.9], [0])]
    for inclusive, iou in [(True, 0.81), (False, 64 / 81)]:
        for threshold, expected in [(iou - 1e-6, 1), (iou + 1e-6, 0)]:
            results = evaluate(
                examples, found, ["cat"], iou_threshold=threshold, inclusive=inclusive
            )
            assert results["mAP"] == expected


def test_equal_scores_keep_the_order_of_images_and_detections():
    examples = [make_example([BOX], [0]), make_example([BOX], [0])]
    right, wrong = make_detections([BOX], [0.5], [0]), make_detections([NOWHERE], [0.5], [0])
    (curve,) = measure(examples, [wrong, right], num_classes=1)
    np.testing.assert_array_equal(curve.precision, [0, 0.5])
    (curve,) = measure(examples, [right, wrong], num_classes=1)
    np.testing.assert_array_equal(curve.precision, [1, 0.5])
    both = make_detections([NOWHERE, BOX, BOX], [0.5, 0.5, 0.6], [0, 0, 0])
    (curve,) = measure(examples[:1], [both], num_classes=1)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3])


def test_a_recall_of_three_tenths_is_below_the_fourth_level():
    # 3 / 10 < 3 * 0.1 in floating point: the reference's levels, and the first kit's.
    curve = Curve(np.ones(3), np.array([1, 2, 3]) / 10, 10)
    assert average_precision(curve, eleven_point=True) == pytest.approx(3 / 11)
    assert average_precision(curve) == pytest.approx(0.3)


def test_a_class_is_matched_in_its_own_image_and_label():
    examples = [make_example([BOX], [0]), make_example([BOX], [1])]
    found = [make_detections([BOX], [0.9], [1]), make_detections([BOX], [0.9], [0])]
    assert evaluate(examples, found, ["cat", "dog"])["mAP"] == 0
    assert evaluate(examples, found[::-1], ["cat", "dog"])["mAP"] == 1


def slow_average_precision(examples, detections, label, *, iou_threshold, eleven_point):
    """One detection after the other over the whole data set; recall by recall in fractions."""
    ranked = sorted(
        (-score, i, n)
        for i, found in enumerate(detections)
        for n, score in enumerate(found.scores)
        if found.labels[n] == label
    )
    wanted = [
        (i, j)
        for i, example in enumerate(examples)
        for j in range(len(example.labels))
        if example.labels[j] == label and not (example.crowd[j] or example.difficult[j])
    ]
    points, found_objects, wrong = [], set(), 0
    for _, i, n in ranked:
        mine = [j for j in range(len(examples[i].labels)) if examples[i].labels[j] == label]
        ious = [slow_iou(detections[i].boxes[n], examples[i].boxes[j]) for j in mine]
        best = mine[int(np.argmax(ious))] if mine else None
        if best is None or max(ious) < iou_threshold:
            wrong += 1
        elif (i, best) in wanted:
            wrong += (i, best) in found_objects
            found_objects.add((i, best))
        if found_objects or wrong:
            points.append((len(found_objects), len(found_objects) / (len(found_objects) + wrong)))
    if not wanted:
        return None
    if eleven_point:
        reached = [
            max([p for count, p in points if count / len(wanted) >= level * 0.1], default=0)
            for level in range(11)
        ]
        return sum(reached) / 11
    # Each object found adds the best precision with so many objects or more.
    best = [
        max([p for count, p in points if count >= objects], default=0)
        for objects in range(1, len(wanted) + 1)
    ]
    return sum(best) / len(wanted)


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = float(max(width, 0) * max(height, 0))
    return shared / float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(6))
def test_evaluate_equals_a_slow_twin_on_random_data(seed):
    examples, detections = make_random(
        np.random.default_rng(seed), num_images=8, num_classes=3, max_objects=6, max_found=12
    )
    names = ["cat", "dog", "bird"]
    for eleven_point in (False, True):
        settings = dict(iou_threshold=0.6, eleven_point=eleven_point)
        results = evaluate(examples, detections, names, **settings)
        expected = [slow_average_precision(examples, detections, k, **settings) for k in range(3)]
        assert max(expected) > 0.1
        assert [v["AP"] for v in results["per_class"].values()] == pytest.approx(expected)
        assert results["mAP"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("num_images", [0, 2])
def test_no_objects_give_none(num_images):
    found = [make_detections([BOX], [0.9], [0])] * num_images
    results = evaluate([make_example()] * num_images, found, ["cat"])
    assert results == {"mAP": None, "per_class": {"cat": {"AP": None}}}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \(0, 1\], got"):
        evaluate([], [], ["cat"], iou_threshold=threshold)


def test_other_lengths_and_labels_without_a_name_are_refused():
    with pytest.raises(ValueError, match="1 examples, but detections of 2 images"):
        evaluate([make_example()], [make_detections()] * 2, ["cat"])
    with pytest.raises(ValueError, match="label 1 in the detections of image 1.* 1 classes"):
        evaluate([make_example()], [make_detections([BOX], [0.5], [1])], ["cat"])
    with pytest.raises(ValueError, match="label 3 in example 'a'.* 2 classes"):
        evaluate([make_example([BOX], [3])], [make_detections()], ["cat", "dog"])


def test_table_has_the_mean_and_a_line_for_each_class():
    examples = [make_example([BOX, OTHER], [0, 1])]
    results = evaluate(examples, [make_detections([BOX], [0.9], [0])], ["cat", "dog", "bird"])
    assert [line.split() for line in format_table(results).splitlines()] == [
        ["mAP"],
        ["all", "0.500"],
        [],
        ["class", "AP"],
        ["cat", "1.000"],
        ["dog", "0.000"],
        ["bird", "-"],
    ]
