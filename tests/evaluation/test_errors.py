"""Kinds of errors: each alone, worked by hand, and data sets as TIDE's own program has them."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples import make_detections, make_example
from jaxdet.evaluation import errors, matching

GOLDENS = Path(__file__).parents[1] / "goldens"
# A and B are two objects far from each other; A_LOOSE has an IoU of .4 with A.
A, B, A_LOOSE, NOWHERE = [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 4], [90, 90, 99, 99]
# A class with one of two objects found: 51 of the 101 recalls.
HALF = 51 / 101
# kind: detections (box, score, label) beside the objects A and B of class 0; their AP;
# which AP there would be without the errors.
ALONE = {
    # A is found, B's best detection has class 1, for which there is no object: AP 0.
    "classification": ([(A, 0.9, 0), (B, 0.8, 1)], HALF / 2, 1),
    "localisation": ([(B, 0.9, 0), (A_LOOSE, 0.8, 0)], HALF, 1),
    # Of another class, and loose: without it class 1 is no more; A is missed all the same.
    "both": ([(B, 0.9, 0), (A_LOOSE, 0.8, 1)], HALF / 2, HALF),
    # Between the two right ones: 1 up to recall .5, then 2 of 3.
    "duplicate": ([(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], (51 + 50 * 2 / 3) / 101, 1),
    "background": ([(A, 0.9, 0), (NOWHERE, 0.8, 0), (B, 0.7, 0)], (51 + 50 * 2 / 3) / 101, 1),
    "missed": ([(A, 0.9, 0)], HALF, 1),
}


def find(examples, detections, num_classes=2):
    return errors.find_errors(matching.match(examples, detections, num_classes=num_classes))


def detect(*rows):
    return make_detections(*zip(*rows, strict=True))


@pytest.mark.parametrize("kind", errors.KINDS)
def test_each_kind_alone_loses_what_it_costs(kind):
    rows, ap, mended = ALONE[kind]
    found = find([make_example([A, B], [0, 0])], [detect(*rows)])
    # What is loose and of the wrong class leaves its object missed.
    wanted = {kind: 1, **({"missed": 1} if kind == "both" else {})}
    without_missed = {"missed": mended - ap} if kind == "missed" else {}

    np.testing.assert_allclose(found.ap, ap)
    assert {name: count for name, count in found.counts.items() if count} == wanted
    np.testing.assert_allclose(found.losses[kind], mended - ap)
    others = {n: v for n, v in found.losses.items() if n not in {*wanted, *without_missed}}
    np.testing.assert_allclose(list(others.values()), 0, atol=1e-12)


@pytest.mark.parametrize(
    "width, kind",
    [
        (0.9, errors.BACKGROUND),  # IoU .09 with an object of its class.
        (1.0, errors.LOCALISATION),  # .1: on the border.
        (4.9, errors.LOCALISATION),
        (5.0, errors.RIGHT),  # .5: found.
    ],
)
def test_the_borders_of_localisation_are_a_tenth_and_a_half(width, kind):
    found = find([make_example([A], [0])], [detect(([0, 0, width, 10], 0.9, 0))])

    assert found.kinds.tolist() == [kind]


def test_only_the_best_detection_of_an_object_is_put_right():
    rows = [(A_LOOSE, 0.9, 0), (A_LOOSE, 0.8, 0)]
    found = find([make_example([A], [0])], [detect(*rows)])

    assert found.counts["localisation"] == 2
    np.testing.assert_allclose(found.losses["localisation"], 1)


def test_an_error_beside_a_found_object_vanishes():
    rows = [(A_LOOSE, 0.9, 0), (A, 0.8, 0)]
    found = find([make_example([A], [0])], [detect(*rows)])

    np.testing.assert_allclose(found.ap, 0.5)
    np.testing.assert_allclose(found.losses["localisation"], 0.5)
    assert not found.missed.any()


def test_false_positives_and_negatives_are_put_right_alone():
    rows = [(NOWHERE, 0.9, 0), (A, 0.8, 0)]
    found = find([make_example([A, B], [0, 0])], [detect(*rows)])

    np.testing.assert_allclose(found.ap, HALF / 2)
    np.testing.assert_allclose(found.false_positives, HALF / 2)
    np.testing.assert_allclose(found.false_negatives, 0.5 - HALF / 2)


@pytest.mark.parametrize(
    "boxes, rows, ap, missed",
    [
        ([], [], None, 0),
        ([A], [], 0, 1),
        ([], [(A, 0.9, 0)], 0, 0),
    ],
)
def test_nothing_to_find_or_found_is_no_error_of_the_program(boxes, rows, ap, missed):
    detections = detect(*rows) if rows else make_detections()
    found = find([make_example(boxes, [0] * len(boxes))], [detections])

    assert (found.ap, found.counts["missed"]) == (ap, missed)
    assert np.isfinite(list(found.losses.values())).all()


@pytest.mark.parametrize("name", ["random", "shapes"])
def test_the_numbers_are_those_of_tidecv(name):
    content = json.loads((GOLDENS / f"tide_{name}.json").read_text())
    examples, detections = [], []
    for image in content["images"]:
        examples.append(make_example(image["boxes"], image["labels"], crowd=image["ignored"]))
        detections.append(make_detections(image["found"], image["scores"], image["found_labels"]))
    found, wanted = find(examples, detections, num_classes=5), content["tidecv"]

    assert found.counts == wanted["counts"]
    assert found.losses == pytest.approx(wanted["losses"], abs=1e-12)
    for key in ("ap", "false_positives", "false_negatives"):
        assert getattr(found, key) == pytest.approx(wanted[key], abs=1e-12)
