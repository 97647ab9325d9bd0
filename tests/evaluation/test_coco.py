import json
import pathlib

import numpy as np
import pytest
from evaluation.examples import make_detections, make_example

from jaxdet.evaluation.coco import ALL, MOST, evaluate, format_table, measure
from jaxdet.evaluation.runner import ImageDetections

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TOTALS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()

SMALL_BOX = [10, 10, 30, 30]
MEDIUM_BOX = [100, 100, 150, 150]
LARGE_BOX = [200, 200, 400, 400]


@pytest.fixture(scope="module")
def golden_data():
    """The golden images as our values; in float64, as the reference read them."""
    truth = json.loads((GOLDENS / "coco_eval_gt.json").read_text())
    found = json.loads((GOLDENS / "coco_eval_dt.json").read_text())
    label_of = {c["id"]: k for k, c in enumerate(sorted(truth["categories"], key=_id))}

    examples, detections = [], []
    for image in truth["images"]:
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        results = [d for d in found if d["image_id"] == image["id"]]
        example = make_example(
            labels=[label_of[a["category_id"]] for a in objects],
            id=image["id"],
            size=(image["height"], image["width"]),
        )
        examples.append(
            example._replace(
                boxes=_xyxy(objects),
                crowd=np.array([a["iscrowd"] for a in objects], bool),
                difficult=np.zeros(len(objects), bool),
                area=np.array([a["area"] for a in objects]),
            )
        )
        detections.append(
            ImageDetections(
                _xyxy(results),
                np.array([d["score"] for d in results]),
                np.array([label_of[d["category_id"]] for d in results], np.int32),
            )
        )
    return examples, detections


def test_evaluate_gives_the_numbers_of_pycocotools(golden, golden_data):
    reference = golden("coco_eval")
    names = [str(i) for i in reference["cat_ids"]]

    results = evaluate(*golden_data, names)

    assert TOTALS == reference["stats_names"].tolist()
    np.testing.assert_allclose([results[t] for t in TOTALS], reference["stats12"], atol=1e-9)
    for k, name in enumerate(names):
        expected = reference["per_category_AP"][k], reference["per_category_AP50"][k]
        np.testing.assert_allclose(tuple(results["per_class"][name].values()), expected, atol=1e-9)


def test_curves_are_those_of_pycocotools(golden, golden_data):
    reference = golden("coco_eval")
    curves = measure(*golden_data, num_classes=5)

    expected = reference["precision_all_area_maxdet100"]
    np.testing.assert_allclose(curves.precision[:, :, :, ALL, MOST], expected, atol=1e-9)
    np.testing.assert_allclose(curves.recall, reference["recall_TKAM"], atol=1e-9)


def test_boxes_in_float32_change_no_metric(golden, golden_data):
    reference = golden("coco_eval")
    examples, detections = golden_data
    examples = [e._replace(boxes=e.boxes.astype(np.float32)) for e in examples]
    detections = [ImageDetections(*(x.astype(np.float32) for x in d[:2]), d[2]) for d in detections]

    results = evaluate(examples, detections, list("abcde"))

    np.testing.assert_allclose([results[t] for t in TOTALS], reference["stats12"], atol=1e-6)


def test_a_perfect_detector_has_one_everywhere():
    boxes, labels = [SMALL_BOX, MEDIUM_BOX, LARGE_BOX], [0, 1, 0]
    examples = [make_example(boxes, labels, id="first"), make_example(id=7)]
    detections = [make_detections(boxes, [0.9, 0.8, 0.7], labels), make_detections()]

    results = evaluate(examples, detections, ["cat", "dog"])

    expected = dict.fromkeys(TOTALS, 1.0)
    # One detection an image and class finds one of two cats and the only dog.
    expected["AR1"] = 0.75
    assert {t: results[t] for t in TOTALS} == pytest.approx(expected)
    assert results["per_class"] == {
        "cat": {"AP": pytest.approx(1), "AP50": pytest.approx(1)},
        "dog": {"AP": pytest.approx(1), "AP50": pytest.approx(1)},
    }


def test_shifted_boxes_count_up_to_their_iou():
    # Shifted by a quarter of the width: IoU 75 / 125 = .6, found at .5, .55 and .6 of ten.
    examples = [make_example([[0, 0, 100, 100]], [0])]
    results = evaluate(examples, [make_detections([[25, 0, 125, 100]], [0.9], [0])], ["cat"])

    assert results["AP50"] == pytest.approx(1)
    assert results["AP75"] == 0
    assert results["AP"] == pytest.approx(0.3)
    assert results["AR100"] == pytest.approx(0.3)


def test_a_duplicate_ranked_first_halves_the_later_precision():
    # Of two objects: hit, duplicate, hit. Precision 1 up to recall .5, then 2 / 3.
    examples = [make_example([MEDIUM_BOX, LARGE_BOX], [0, 0])]
    boxes = [MEDIUM_BOX, MEDIUM_BOX, LARGE_BOX]
    results = evaluate(examples, [make_detections(boxes, [0.9, 0.8, 0.7], [0, 0, 0])], ["cat"])

    assert results["AP"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert results["AR100"] == pytest.approx(1)


def test_the_right_box_of_the_wrong_class_finds_nothing():
    examples = [make_example([LARGE_BOX], [0])]
    results = evaluate(examples, [make_detections([LARGE_BOX], [0.9], [1])], ["cat", "dog"])

    assert results["AP"] == 0
    assert results["per_class"] == {
        "cat": {"AP": 0.0, "AP50": 0.0},
        "dog": {"AP": None, "AP50": None},
    }


def test_detections_are_matched_in_their_own_image():
    examples = [make_example([LARGE_BOX], [0]), make_example([SMALL_BOX], [0])]
    detections = [
        make_detections([SMALL_BOX], [0.9], [0]),
        make_detections([LARGE_BOX], [0.9], [0]),
    ]

    assert evaluate(examples, detections, ["cat"])["AP"] == 0


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_ignored_objects_neither_help_nor_hurt(kind):
    # Best scores lie inside the ignored box, where plain objects would make them wrong.
    examples = [make_example([LARGE_BOX, MEDIUM_BOX], [0, 0], **{kind: [True, False]})]
    inside = [[210, 210, 260, 260], [300, 300, 350, 350]]
    detections = [make_detections([*inside, MEDIUM_BOX], [0.9, 0.8, 0.7], [0, 0, 0])]

    results = evaluate(examples, detections, ["cat"])
    without = evaluate(examples, [make_detections([MEDIUM_BOX], [0.7], [0])], ["cat"])

    assert results["AP"] == pytest.approx(1)
    assert results["APl"] is None
    assert without["AP"] == pytest.approx(1)


def test_the_given_area_and_not_the_box_decides_the_size():
    examples = [make_example([LARGE_BOX], [0], area=[100])]
    results = evaluate(examples, [make_detections([LARGE_BOX], [0.9], [0])], ["cat"])

    assert (results["APs"], results["APm"], results["APl"]) == (pytest.approx(1), None, None)


def test_of_more_than_a_hundred_detections_the_best_count():
    examples = [make_example([LARGE_BOX], [0])]
    boxes = [SMALL_BOX] * 100 + [LARGE_BOX]
    scores = np.linspace(0.9, 0.1, 101)

    last = evaluate(examples, [make_detections(boxes, scores, [0] * 101)], ["cat"])
    first = evaluate(examples, [make_detections(boxes, scores[::-1], [0] * 101)], ["cat"])

    assert last["AP"] == 0
    assert first["AP"] == pytest.approx(1)


def test_no_detections_give_zero():
    examples = [make_example([LARGE_BOX], [0])]
    results = evaluate(examples, [make_detections()], ["cat"])

    assert (results["AP"], results["AR100"], results["APs"]) == (0, 0, None)


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize("num_detections", [0, 1])
def test_no_objects_give_none(num_images, num_detections):
    found = make_detections(
        [LARGE_BOX] * num_detections, [0.9] * num_detections, [0] * num_detections
    )
    results = evaluate([make_example()] * num_images, [found] * num_images, ["cat"])

    assert {results[t] for t in TOTALS} == {None}
    assert results["per_class"] == {"cat": {"AP": None, "AP50": None}}


def test_results_are_json_and_survive_it():
    examples = [make_example([SMALL_BOX], [0])]
    results = evaluate(examples, [make_detections([SMALL_BOX], [0.5], [0])], ["cat", "dog"])

    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(results) == [*TOTALS, "per_class"]


def test_evaluate_prints_nothing(capfd):
    evaluate([make_example([SMALL_BOX], [0])], [make_detections()], ["cat"])

    assert capfd.readouterr() == ("", "")


def test_other_numbers_of_examples_and_detections_are_refused():
    with pytest.raises(ValueError, match="1 examples, but detections of 2 images"):
        evaluate([make_example()], [make_detections()] * 2, ["cat"])


def test_labels_without_a_name_are_refused():
    with pytest.raises(ValueError, match="label 1 in the detections of image 1.* 1 classes"):
        evaluate([make_example()], [make_detections([SMALL_BOX], [0.5], [1])], ["cat"])
    with pytest.raises(ValueError, match="label -1 in the detections of image 1"):
        evaluate([make_example()], [make_detections([SMALL_BOX], [0.5], [-1])], ["cat"])
    with pytest.raises(ValueError, match="label 3 in example 'a'.* 2 classes"):
        evaluate([make_example([SMALL_BOX], [3])], [make_detections()], ["cat", "dog"])


def test_table_has_the_totals_and_a_line_for_each_class():
    examples = [make_example([LARGE_BOX, MEDIUM_BOX], [0, 1])]
    found = make_detections([LARGE_BOX], [0.9], [0])

    lines = format_table(evaluate(examples, [found], ["cat", "dog", "a long name"])).splitlines()

    assert lines[0].split() == TOTALS[:6]
    assert lines[1].split() == ["all", "0.500", "0.500", "0.500", "-", "0.000", "1.000"]
    assert lines[3].split() == TOTALS[6:]
    assert lines[-3].split() == ["cat", "1.000", "1.000"]
    assert lines[-2].split() == ["dog", "0.000", "0.000"]
    assert lines[-1] == "a long name       -       -"


def _id(category):
    return category["id"]


def _xyxy(annotations):
    x, y, w, h = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4).T
    return np.stack([x, y, x + w, y + h], axis=1)


def test_limits_name_the_recalls_and_the_last_one_counts_for_the_rest():
    examples = [make_example([SMALL_BOX, MEDIUM_BOX, LARGE_BOX], [0, 0, 0])]
    found = [make_detections([LARGE_BOX, MEDIUM_BOX, SMALL_BOX], [0.9, 0.8, 0.7], [0, 0, 0])]

    results = evaluate(examples, found, ["cat"], limits=(1, 2))

    assert [name for name in results if name.startswith("AR")] == [
        "AR1",
        "AR2",
        "ARs",
        "ARm",
        "ARl",
    ]
    assert (results["AR1"], results["AR2"]) == pytest.approx((1 / 3, 2 / 3))
    # The third is not looked at: 67 of 101 levels of recall are reached.
    assert results["AP"] == results["per_class"]["cat"]["AP"] == pytest.approx(67 / 101)
    assert (results["APs"], results["APl"]) == (0, 1)
    assert "AR2" in format_table(results) and "AR100" not in format_table(results)
    with pytest.raises(ValueError, match="limits wants rising numbers from 1 up, got"):
        evaluate(examples, found, ["cat"], limits=(10, 1))
