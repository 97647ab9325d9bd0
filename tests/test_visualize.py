import os
import pathlib

import cv2
import numpy as np
import pytest

from jaxdet.types import Example
from jaxdet.visualize import (
    CELL_SIDE,
    GAP,
    MATRIX_SIDE,
    MAX_CELL_SIDE,
    MIN_SIDE,
    PALETTE,
    SHADES,
    _shorten,
    compare,
    confusion_matrix,
    draw,
    grid,
)

NAMES = ("cell", "plate")
GREY = 120


def make_image(height=480, width=640):
    return np.full((height, width, 3), GREY, np.uint8)


def as_boxes(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def as_labels(*labels):
    return np.array(labels, np.int32)


def colour_mask(image, colour):
    return np.abs(image.astype(int) - colour).max(axis=2) < 40


def test_a_box_is_drawn_on_its_edges_in_its_colour():
    drawn = draw(make_image(), as_boxes([100, 200, 300, 400]), as_labels(1), NAMES)

    # The lines run on the first and the last pixel inside: x2 and y2 are exclusive.
    row, column = colour_mask(drawn, PALETTE[1])[[300], :], colour_mask(drawn, PALETTE[1])[:, [250]]
    assert np.flatnonzero(row).mean() == (100 + 299) / 2
    assert np.flatnonzero(column).mean() == (200 + 399) / 2
    np.testing.assert_array_equal(drawn[220:380, 120:280], GREY)


def test_the_image_itself_is_left_alone():
    image = make_image()
    draw(image, as_boxes([10, 10, 100, 100]), as_labels(0), NAMES)

    assert (image == GREY).all()


def test_without_boxes_the_picture_is_the_image():
    np.testing.assert_array_equal(draw(make_image(), as_boxes(), as_labels(), NAMES), make_image())


def test_only_valid_boxes_are_drawn():
    boxes, labels = as_boxes([10, 10, 100, 100], [200, 200, 300, 300]), as_labels(0, 1)

    drawn = draw(make_image(), boxes, labels, NAMES, valid=np.array([True, False]))

    np.testing.assert_array_equal(drawn, draw(make_image(), boxes[:1], labels[:1], NAMES))


def test_scores_are_written_and_make_the_tag_longer():
    box, label = as_boxes([100, 200, 300, 400]), as_labels(0)
    plain = draw(make_image(), box, label, NAMES)
    scored = draw(make_image(), box, label, NAMES, scores=np.array([0.93], np.float32))

    assert colour_mask(scored, PALETTE[0]).sum() > colour_mask(plain, PALETTE[0]).sum() + 100


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 640, 480],
        [0, 0, 30, 30],
        [610, 0, 640, 30],
        [0, 450, 30, 480],
        [610, 450, 640, 480],
        [-500, -20, 9000, 9000],
    ],
)
def test_tags_stay_inside_the_picture(box):
    inside = draw(make_image(), as_boxes([200, 200, 260, 260]), as_labels(0), NAMES)
    letters = lambda image: (image.min(axis=2) > 200).sum()  # noqa: E731, white ink.

    assert letters(draw(make_image(), as_boxes(box), as_labels(0), NAMES)) == letters(inside)


def test_tags_hide_neither_small_boxes_nor_each_other():
    # A small box where the tag of the large one would stand, and another one below it.
    boxes = as_boxes([100, 100, 400, 400], [100, 76, 130, 96], [104, 404, 134, 424])
    drawn = draw(make_image(), boxes, as_labels(0, 1, 1), NAMES)

    assert (drawn[80:92, 106:124] == GREY).mean() > 0.9
    assert (drawn[410:418, 112:126] == GREY).mean() > 0.9


def test_small_images_are_enlarged_with_their_boxes():
    drawn = draw(make_image(120, 160), as_boxes([40, 60, 80, 100]), as_labels(0), NAMES)

    assert drawn.shape == (360, MIN_SIDE, 3)
    np.testing.assert_allclose(drawn[240, 120], PALETTE[0], atol=5)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 700), (2000, 5)])
def test_odd_shapes_do_not_crash(height, width):
    boxes = as_boxes([0, 0, width, height], [0, 0, 0, 0], [np.nan, 0, np.inf, 1])
    drawn = draw(make_image(height, width), boxes, as_labels(0, 1, 0), NAMES)

    assert max(drawn.shape) >= MIN_SIDE


def test_classes_beyond_the_palette_begin_again():
    names = [str(i) for i in range(len(PALETTE) + 1)]
    box = as_boxes([100, 200, 300, 400])
    last = draw(make_image(), box, as_labels(len(PALETTE)), names)

    assert len(set(PALETTE)) == len(PALETTE)
    np.testing.assert_allclose(last[300, 100], PALETTE[0], atol=5)


def test_compare_puts_the_truth_left_and_the_sure_predictions_right():
    no = np.zeros(1, bool)
    example = Example(
        "a", b"", as_boxes([100, 200, 200, 300]), as_labels(0), no, no, np.ones(1), (480, 640)
    )
    found = as_boxes([100, 200, 200, 300], [300, 200, 400, 300])
    scores = np.array([0.9, 0.4], np.float32)

    side_by_side = compare(
        make_image(), example, (found, scores, as_labels(1, 1)), NAMES, min_score=0.5
    )

    left, right = side_by_side[:, :640], side_by_side[:, -640:]
    assert colour_mask(left, PALETTE[0]).any() and not colour_mask(left, PALETTE[1]).any()
    assert colour_mask(right, PALETTE[1]).any() and not colour_mask(right, PALETTE[0]).any()
    assert not colour_mask(right[:, 280:], PALETTE[1]).any()
    # Captions are dark letters above either picture.
    caption = slice(0, side_by_side.shape[0] - 480)
    assert (left[caption] < 100).any() and (right[caption] < 100).any()


def test_grid_fills_rows_and_centres_smaller_images():
    black, small = np.zeros((100, 80, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)

    sheet = grid([black, black, small], 2)

    assert sheet.shape == (202, 162, 3)
    assert (sheet[:100, :80] == 0).all() and (sheet[:100, 82:] == 0).all()
    assert (sheet[127:177, 20:60] == 0).all()
    assert (sheet[102:127, :80] == 246).all() and (sheet[102:, 82:] == 246).all()


def test_grid_is_no_wider_than_its_images():
    assert grid([make_image(10, 20)], 4).shape == (10, 20, 3)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="0 images in 2 columns"):
        grid([], 2)
    with pytest.raises(ValueError, match="1 images in 0 columns"):
        grid([make_image()], 0)


def cells_of(picture, num_classes):
    """The cells, (rows, columns, height, width, 3): they end GAP before the picture does."""
    side = int(np.clip(MATRIX_SIDE // num_classes, CELL_SIDE, MAX_CELL_SIDE))
    extent = num_classes * side
    whole = picture[-GAP - extent : -GAP, -GAP - extent : -GAP]
    cells = whole.reshape(num_classes, side, num_classes, side, 3).swapaxes(1, 2)
    return cells[:, :, 1:, 1:]  # Without the line before each.


@pytest.mark.parametrize("num_classes", [2, 4, 21])
def test_a_cell_is_as_dark_as_its_share_of_the_row_is_large(num_classes):
    matrix = np.zeros((num_classes, num_classes), int)
    matrix[0, 0], matrix[1, :2] = 123_456, 7
    names = [f"class {i}" for i in range(num_classes)]

    cells = cells_of(confusion_matrix(matrix, names), num_classes)

    corners = cells[:, :, 0, 0]
    np.testing.assert_array_equal(corners[0, 0], SHADES[2])
    np.testing.assert_array_equal(corners[1, :2], SHADES[[1, 1]])
    filled = np.zeros_like(matrix, bool)
    filled[0, 0], filled[1, :2] = True, True
    assert (cells[~filled] == 255).all(), "zeros are left out"
    inked = (cells != corners[:, :, None, None]).any(axis=-1)
    # All letters are in the cell, clear of its edges.
    assert inked[filled].any(axis=(1, 2)).all() and not inked[..., [0, -1], :].any()
    assert not inked[..., [0, -1]].any()


def test_names_stand_upright_where_cells_are_narrow():
    tops = {}
    for num_classes in (4, 21):
        picture = confusion_matrix(np.eye(num_classes, dtype=int), ["pottedplant"] * num_classes)
        tops[num_classes] = picture.shape[0] - num_classes * cells_of(picture, num_classes).shape[2]

    assert tops[21] - 21 > tops[4] - 4 + 40


@pytest.mark.parametrize(
    "count, text",
    [
        (999, "999"),
        (1000, "1.0k"),
        (9999, "9.9k"),
        (123_999, "123k"),
        (1_250_000, "1.2M"),
        (10**9, "1.0G"),
    ],
)
def test_a_count_is_shortened_to_four_characters(count, text):
    assert _shorten(count) == text


def test_a_matrix_wants_a_name_for_each_class():
    with pytest.raises(ValueError, match=r"1 names for a confusion matrix \(2, 2\)"):
        confusion_matrix(np.eye(2, dtype=int), ["a"])
    with pytest.raises(ValueError, match=r"0 names for a confusion matrix \(0, 0\)"):
        confusion_matrix(np.zeros((0, 0), int), [])


@pytest.mark.skipif("JAXDET_BCCD" not in os.environ, reason="JAXDET_BCCD is not set")
def test_a_photograph_keeps_its_size_and_what_lies_inside_the_box():
    photographs = pathlib.Path(os.environ["JAXDET_BCCD"], "JPEGImages").glob("*.jpg")
    image = cv2.cvtColor(cv2.imread(str(min(photographs))), cv2.COLOR_BGR2RGB)

    drawn = draw(image, as_boxes([100, 100, 300, 300]), as_labels(0), NAMES)

    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[110:290, 110:290], image[110:290, 110:290])
    assert (drawn[100:300, 100] != image[100:300, 100]).any(axis=1).mean() > 0.9
