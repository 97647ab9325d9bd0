import math

import pytest
from drawn_data import ListSource, make_example

from jaxdet.data.pipeline import check_train_settings, eval_batches, train_batches
from jaxdet.types import UserError

RUN = {"batch_size": 4, "seed": 3}
SIZES = {"canvas": (40, 60), "resize": (40, 60)}
SETTINGS = {
    **SIZES,
    "more_canvases": (),
    "resize_rule": "rounded",
    "exif": "boxes",
    "reduced_decoding": False,
    "max_boxes": 3,
    "max_proposals": 0,
    "keep_empty": True,
    "use_difficult": False,
    "num_threads": 4,
}
INFINITE, NAN = math.inf, math.nan
RATE = "wants a number from 0 to 1, found"
RANGE = "wants 0 < low <= high, found"
CANVAS = "wants a height and a width of at least 1 pixel each, found"
RESIZE = "wants a short side, or several, and a long one, of at least 1 pixel each; found"
COUNT = "wants a whole number of at least"

MISTAKES = [
    *[("canvas", v, CANVAS) for v in (40, (40,), (0, 60), (40, 60.5), ("a", "b"), None)],
    ("canvas", (10**6, 10**6), "wants at most 268435456 pixels, found"),
    *[("resize", v, RESIZE) for v in ((0, 60), (40, 0), ((40, -1), 60), ((), 60))],
    *[("resize_rule", v, "wants one of rounded, torchvision; found") for v in ("", 1, [])],
    *[("resize", v, RESIZE) for v in (40, (40,), (40, 60, 80), (40.5, 60), (40, None), "ab")],
    *[(k, v, f"{COUNT} 1, found") for k in ("max_boxes", "num_threads") for v in (0, 2.5, "3")],
    *[("max_proposals", v, f"{COUNT} 0, found") for v in (-1, 0.5, None, (1,))],
    *[(k, v, "wants True or False, found") for v in "x1"
      for k in ("keep_empty", "use_difficult", "reduced_decoding")],
    *[("horizontal_flip", v, RATE) for v in (1.5, -0.1, "x", None, (0.5,), NAN, INFINITE)],
    *[("hsv", v, "wants three numbers from 0 to 1, found")
      for v in ((0.1, 0.2), (0.1, 0.2, 1.5), (0.1, 0.2, NAN), (0.1, 0.2, "0"), 0.5, None)],
    *[("min_side", v, "wants a number of at least 0, found")
      for v in (-1.0, "8", None, (8.0,), NAN, INFINITE)],
    *[("mosaic", v, RATE) for v in (1.5, -0.5, "1.0", None, (1.0,), NAN)],
    *[("mixup", v, RATE) for v in (-0.5, "x", NAN)],
    *[("translation", v, RATE) for v in (1.1, (0.1, 0.1))],
    *[("rotation", v, "wants a number from 0 to 180, found") for v in (181, (1, 2), NAN, INFINITE)],
    *[("shear", v, "wants a number from 0 to 40, found") for v in (45, None)],
    *[(k, v, RANGE) for k in ("zoom_range", "affine_zoom", "mixup_zoom")
      for v in ((2.0, 1.0), (0.0, 1.0), (1, INFINITE), (NAN, 1), (1, NAN), ("1", 2), 1.5, None)],
    *[("affine_boxes", v, "wants one of corners, ellipse; found") for v in ("box", None, 1)],
]  # fmt: skip


@pytest.mark.parametrize("key, value, message", MISTAKES)
def test_wrong_settings_are_named_before_there_is_a_source(key, value, message):
    with pytest.raises(UserError) as error:
        check_train_settings(**SETTINGS | {key: value})
    shown = value if key == "affine_boxes" else repr(value)
    assert str(error.value) == f"data.{key} {message} {shown}"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"canvas": [40, 60], "resize": [(30, 40), 60], "max_proposals": 5},
        {"horizontal_flip": 1, "hsv": [0, 0.5, 1], "min_side": 0, "zoom_range": (1, 1)},
        {"mosaic": 0.1, "mixup": 1, "rotation": 180, "shear": 40, "affine_boxes": "ellipse"},
    ],
)
def test_settings_at_their_limits_pass(settings):
    assert check_train_settings(**SETTINGS | settings) is None


def test_settings_that_do_not_go_together_are_named():
    with pytest.raises(UserError) as error:
        check_train_settings(**SETTINGS | {"mosaic": 0.5, "max_proposals": 5})
    assert str(error.value) == (
        "data.mosaic wants 0 with given proposals, which cannot follow; found 0.5 with "
        "data.max_proposals 5"
    )
    with pytest.raises(UserError) as error:
        check_train_settings(**SETTINGS | {"mixup": 0.5})
    assert str(error.value) == (
        "data.mixup wants data.mosaic above 0: only mosaics are mixed, found 0.5 with "
        "data.mosaic 0.0"
    )


def test_an_unknown_augmentation_is_a_type_error():
    with pytest.raises(TypeError, match="horizontal_flips"):
        check_train_settings(**SETTINGS, horizontal_flips=0.5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"process_count": 3}, "batch_size 4 does not divide among 3 processes"),
        ({"batch_size": 0}, "batch_size 0 does not divide among 1 processes"),
        ({"seed": -1}, "data.seed wants a whole number of at least 0, found -1"),
        ({"max_boxes": 0}, "data.max_boxes wants a whole number of at least 1, found 0"),
        ({"mosaic": 1.5}, "data.mosaic wants a number from 0 to 1, found 1.5"),
    ],
)
def test_batches_of_a_training_refuse_wrong_settings(settings, message):
    with pytest.raises(UserError) as error:
        train_batches(ListSource([make_example([])]), **RUN | SETTINGS | settings)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["start_step", "final_start"])
def test_steps_below_none_are_plain_value_errors(key):
    with pytest.raises(ValueError, match=f"^{key} wants a whole number of .* 0, found -1") as error:
        train_batches(ListSource([make_example([])]), **RUN, **SETTINGS, **{key: -1})
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("resize", (0, 60), RESIZE),
        ("canvas", (0, 60), CANVAS),
        ("resize_rule", "float", "wants one of rounded, torchvision; found"),
        ("max_proposals", -1, f"{COUNT} 0, found"),
        ("num_threads", 0, f"{COUNT} 1, found"),
    ],
)
def test_evaluation_refuses_wrong_settings(key, value, message):
    with pytest.raises(UserError) as error:
        eval_batches(ListSource([]), batch_size=4, **SIZES | {key: value})
    assert str(error.value) == f"data.{key} {message} {value!r}"
