import itertools

import numpy as np
import pytest
from drawn_data import make_example

from jaxdet.data import affine, transforms
from jaxdet.data.affine import affine_matrix, hulls, is_visible, move, random_affine

STILL = {"angle": 0.0, "zoom": 1.0, "shear": (0.0, 0.0), "shift": (0.0, 0.0)}
OFF = {"rotation": 0.0, "translation": 0.0, "zoom_range": (1.0, 1.0), "shear": 0.0}


def _example(boxes, size=(40, 60), **fields):
    return transforms.decode(make_example(boxes, size=size, **fields))


def _redness(image):
    """How much of each pixel is red: 0 on grey, 1 in a rectangle."""
    return (image[..., 0].astype(float) - image[..., 1]) / 255


def _moments(weights):
    """The sum of weights, and the middle (x, y) of what they weigh, pixels being 1 wide."""
    rows, columns = np.indices(weights.shape) + 0.5
    total = weights.sum()
    return total, np.array([(columns * weights).sum(), (rows * weights).sum()]) / total


@pytest.mark.parametrize(
    "drawn, expected",
    [
        ({}, [[1, 0, -15], [0, 1, -10]]),  # The middle (30, 20) comes to (15, 10).
        ({"zoom": 2.0}, [[2, 0, -45], [0, 2, -30]]),
        ({"angle": 90.0}, [[0, 1, -5], [-1, 0, 40]]),  # What was right of it is above.
        ({"shear": (45.0, 0.0)}, [[1, 1, -35], [0, 1, -10]]),  # x grows with y.
        ({"shear": (0.0, 45.0)}, [[1, 0, -15], [1, 1, -40]]),
        ({"shift": (0.1, -0.2)}, [[1, 0, -12], [0, 1, -14]]),  # Of 30 and 20 pixels.
        # Sheared after it was rotated: the other order gives [[0, 1], [-1, -1]].
        ({"angle": 90.0, "shear": (45.0, 0.0)}, [[-1, 1, 25], [-1, 0, 40]]),
    ],
)
def test_the_matrix_does_what_its_parts_are_called(drawn, expected):
    found = affine_matrix((40, 60), (20, 30), **STILL | drawn)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "drawn, box",
    [
        ({}, [12, 6, 40, 30]),
        ({"shift": (0.1, -0.1)}, [18, 2, 46, 26]),
        ({"angle": 180.0}, [20, 10, 48, 34]),
        ({"angle": 90.0}, [16, 10, 40, 38]),
        ({"zoom": 0.5}, [21, 13, 35, 25]),
    ],
)
def test_pixels_and_boxes_agree_to_the_last(drawn, box):
    example = _example([[12, 6, 40, 30]])
    matrix = affine_matrix((40, 60), (40, 60), **STILL | drawn)
    for box_rule in affine.BOX_RULES:
        moved = move(example, matrix, output_size=(40, 60), box_rule=box_rule)
        np.testing.assert_allclose(moved.boxes, [box], atol=1e-5)
    assert moved.boxes.dtype == np.float32
    expected = np.zeros((40, 60))
    expected[box[1] : box[3], box[0] : box[2]] = 1
    np.testing.assert_array_equal(_redness(moved.image), expected)


@pytest.mark.parametrize("zoom", [0.3, 0.45, 0.8, 1.0, 1.7])
def test_rectangles_keep_their_middle_and_area_under_any_map(zoom):
    example = _example([[20, 12, 44, 28]])
    whole, middle = 24 * 16, [32, 20]
    for angle, shear, shift in itertools.product(
        (0.0, 25.0, -80.0), ((0.0, 0.0), (10.0, -5.0)), ((0.0, 0.0), (0.03, -0.08))
    ):
        matrix = affine_matrix(
            (40, 60), (100, 120), angle=angle, zoom=zoom, shear=shear, shift=shift
        )
        moved = move(example, matrix, output_size=(100, 120))
        area, found = _moments(_redness(moved.image))
        np.testing.assert_allclose(found, matrix @ [*middle, 1], atol=0.06)
        assert area == pytest.approx(whole * np.linalg.det(matrix[:, :2]), rel=0.02)
        np.testing.assert_allclose((moved.boxes[0, :2] + moved.boxes[0, 2:]) / 2, found, atol=0.06)


def test_hulls_hold_what_moves():
    rng = np.random.default_rng(0)
    circle = np.linspace(0, 2 * np.pi, 3600)
    shapes = {
        "corners": np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]),
        "ellipse": np.stack([np.cos(circle), np.sin(circle)], axis=1),
    }
    corners = np.sort(rng.uniform(0, 50, (20, 2, 2)), axis=1).astype(np.float32)
    for _, (box_rule, shape) in itertools.product(range(5), shapes.items()):
        matrix = rng.normal(size=(2, 3))
        expected = []
        for (x1, y1), (x2, y2) in corners:
            points = shape * [(x2 - x1) / 2, (y2 - y1) / 2] + [(x1 + x2) / 2, (y1 + y2) / 2]
            points = points @ matrix[:, :2].T + matrix[:, 2]
            expected.append([*points.min(axis=0), *points.max(axis=0)])
        found = hulls(corners.reshape(-1, 4), matrix, box_rule=box_rule)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_ellipse_is_tight_on_round_objects_and_the_corners_are_not():
    rows, columns = np.indices((80, 80)) + 0.5
    disc = ((columns - 40) / 24) ** 2 + ((rows - 40) / 12) ** 2 <= 1
    example = _example([[16, 28, 64, 52]], size=(80, 80))
    example = example._replace(image=np.where(disc[..., None], [255, 0, 0], 90).astype(np.uint8))
    matrix = affine_matrix((80, 80), (80, 80), **STILL | {"angle": 40.0})
    sides = {}
    for box_rule in affine.BOX_RULES:
        moved = move(example, matrix, output_size=(80, 80), box_rule=box_rule)
        sides[box_rule] = moved.boxes[0, 2:] - moved.boxes[0, :2]
    red = _redness(moved.image) > 0.5
    found = np.array([np.ptp(np.flatnonzero(red.any(axis))) + 1 for axis in (0, 1)])
    np.testing.assert_allclose(sides["ellipse"], found, atol=1)
    assert np.all(sides["corners"] > found + 8)


@pytest.mark.parametrize(
    "box, whole, kept",
    [
        ([0, 0, 10, 10], 100, True),
        ([0, 0, 2, 10], 20, False),  # No wider than 2.
        ([0, 0, 2.5, 10], 25, True),
        ([0, 0, 10, 2], 20, False),
        ([0, 0, 60, 3], 180, False),  # Twenty times as long as high.
        ([0, 0, 59, 3], 177, True),
        ([0, 0, 3, 60], 180, False),
        ([0, 0, 10, 10], 500, False),  # A fifth is left.
        ([0, 0, 10, 10], 499, True),
        ([5, 5, 5, 5], 0, False),
    ],
)
def test_enough_of_an_object_has_to_be_left(box, whole, kept):
    found = is_visible(np.float32([box]), np.float32([whole]), min_side=2.0)
    assert found.tolist() == [kept]


def test_move_keeps_whatever_is_left_of_a_crowd():
    boxes = [[0, 0, 31, 10], [0, 10, 31, 20], [0, 20, 30, 30], [38, 0, 39, 1]]
    example = _example(boxes, labels=[0, 1, 2, 0], crowd=[True, False, True, True])
    matrix = np.array([[1.0, 0, -30], [0, 1, 0]])
    moved = move(example, matrix, output_size=(40, 30))
    # A pixel of the first crowd, none of the second; the third is smaller than objects may be.
    np.testing.assert_array_equal(moved.boxes, [[0, 0, 1, 10], [8, 0, 9, 1]])
    assert moved.crowd.all() and moved.labels.tolist() == [0, 0]


def test_move_clips_boxes_and_leaves_out_what_is_hardly_seen():
    boxes = [
        [0, 0, 40, 10],  # A quarter is left.
        [32, 20, 40, 30],
        [0, 10, 37, 20],  # Less than a fifth.
        [0, 0, 20, 10],
    ]
    example = _example(
        boxes, labels=[2, 1, 0, 0], crowd=[False, True, False, False],
        difficult=[True, False, False, False],
    )  # fmt: skip
    matrix = np.array([[1.0, 0, -30], [0, 1, 0]])
    moved = move(example, matrix, output_size=(40, 30))
    np.testing.assert_array_equal(moved.boxes, [[0, 0, 10, 10], [2, 20, 10, 30]])
    assert moved.labels.tolist() == [2, 1] and moved.crowd.tolist() == [False, True]
    assert moved.difficult.tolist() == [True, False] and moved.area.tolist() == [400, 80]
    # The share is of the moved area: twice as large, it is the same.
    doubled = move(example, 2 * matrix, output_size=(80, 60))
    np.testing.assert_array_equal(doubled.boxes, 2 * moved.boxes)


def test_what_the_picture_leaves_is_grey_and_no_object_is_needed():
    moved = random_affine(_example([]), np.random.default_rng(0), output_size=(50, 80), **OFF)
    assert moved.image.shape == (50, 80, 3) and moved.boxes.shape == (0, 4)
    assert np.all(moved.image[5:45, 10:70] == 90)
    moved.image[5:45, 10:70] = 114
    assert np.all(moved.image == 114)


def test_fine_patterns_are_averaged_when_they_shrink():
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 200
    example = _example([])._replace(image=stripes)
    matrix = affine_matrix((40, 60), (10, 15), **STILL | {"zoom": 0.25})
    # Without it every fourth column would be hit: 0 or 200.
    assert np.all(np.abs(move(example, matrix, output_size=(10, 15)).image - 100.0) <= 1)


def test_random_maps_are_drawn_within_their_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        affine, "affine_matrix", lambda *_, **values: drawn.append(values) or np.eye(2, 3)
    )
    rng = np.random.default_rng(0)
    ranges = {"rotation": 30.0, "translation": 0.2, "zoom_range": (0.5, 0.9), "shear": 4.0}
    for _ in range(300):
        random_affine(_example([]), rng, output_size=(4, 6), **ranges)
    limits = {"angle": (-30, 30), "zoom": (0.5, 0.9), "shear": (-4, 4), "shift": (-0.2, 0.2)}
    for name, (low, high) in limits.items():
        values = np.array([values[name] for values in drawn]).reshape(300, -1)
        assert values.shape[1] == (2 if name in ("shear", "shift") else 1)
        assert np.all((low <= values) & (values <= high))
        edge = 0.05 * (high - low)
        assert np.all(values.min(0) < low + edge) and np.all(values.max(0) > high - edge)
        assert np.all(np.abs(values.mean(0) - (low + high) / 2) < edge)
        assert values.shape[1] == 1 or abs(np.corrcoef(values.T)[0, 1]) < 0.2


def test_random_affine_repeats_itself_and_writes_nothing_into_its_input():
    example = _example([[12, 6, 40, 30]])
    before = example.image.copy(), example.boxes.copy()
    settings = {"output_size": (40, 60), "zoom_range": (0.5, 0.8)}
    first, second, third = (
        random_affine(example, np.random.default_rng(seed), **settings) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert np.any(first.image != third.image)
    rng = np.random.default_rng(5)
    ellipse = random_affine(example, rng, **settings, box_rule="ellipse")
    np.testing.assert_array_equal(first.image, ellipse.image)
    assert np.all(ellipse.boxes[:, :2] > first.boxes[:, :2])
    np.testing.assert_array_equal(example.image, before[0])
    np.testing.assert_array_equal(example.boxes, before[1])
