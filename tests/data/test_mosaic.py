import numpy as np
import pytest
from drawn_data import COLOURS, draw, make_example, with_proposals

from jaxdet.data import mosaic as composing
from jaxdet.data import transforms
from jaxdet.data.mosaic import Composition, compose, mixup, mosaic

CANVAS = (40, 60)
FIELDS = ("boxes", "labels", "crowd", "difficult", "area")
STILL = {"rotation": 0.0, "translation": 0.0, "affine_zoom": (1.0, 1.0), "shear": 0.0}


class FixedDraws(np.random.Generator):
    """Gives the numbers it was given, in turn; corners of windows from `integers`."""

    def __init__(self, *numbers, corner=(0, 0)):
        super().__init__(np.random.PCG64(0))
        self.numbers, self.corner, self.spare = list(numbers), corner, None

    def uniform(self, low, high):
        return self.numbers.pop(0)

    def random(self):
        return self.numbers.pop(0)

    def integers(self, low, high, *, endpoint):
        self.spare = np.asarray(high).tolist()
        return np.array(self.corner)


def _example(boxes, **fields):
    return transforms.decode(make_example(boxes, **fields))


def _plain(size, colour, boxes=(), **fields):
    """An example of one colour."""
    example = _example(boxes, size=size, **fields)
    return example._replace(image=np.full((*size, 3), colour, np.uint8))


def _fields(example):
    return [getattr(example, name).tolist() for name in FIELDS]


def test_four_images_meet_at_a_point():
    sizes = [(40, 60), (40, 30), (20, 60), (40, 60)]
    tiles = [
        _plain(size, 50 * k, [[2, 4, 12, 14]], labels=[k % 3], id=k, crowd=[k == 1])
        for k, size in enumerate(sizes)
    ]
    joined = mosaic(tiles, FixedDraws(1.0, 1.0), canvas=CANVAS)
    expected = np.full((80, 120, 3), 114, np.uint8)
    expected[:40, :60], expected[:40, 60:90] = 0, 50
    expected[40:60, :60], expected[40:, 60:] = 100, 150
    np.testing.assert_array_equal(joined.image, expected)
    boxes = [[2, 4, 12, 14], [62, 4, 72, 14], [2, 44, 12, 54], [62, 44, 72, 54]]
    np.testing.assert_array_equal(joined.boxes, boxes)
    assert joined.boxes.dtype == np.float32
    assert joined.labels.tolist() == [0, 1, 2, 0]
    assert joined.crowd.tolist() == [False, True, False, False]
    assert joined.id == 0


def test_tiles_and_boxes_are_cut_at_the_border():
    boxes = [[5, 5, 20, 30], [40, 25, 55, 38], [2, 2, 8, 8]]
    tiles = [_plain(CANVAS, 50 * k, boxes, labels=[0, 1, 2]) for k in range(4)]
    joined = mosaic(tiles, FixedDraws(0.5, 0.5), canvas=CANVAS)  # They meet at (30, 20).
    expected = np.full((80, 120, 3), 114, np.uint8)
    expected[:20, :30], expected[:20, 30:90] = 0, 50
    expected[20:60, :30], expected[20:60, 30:90] = 100, 150
    np.testing.assert_array_equal(joined.image, expected)
    found = [
        [10, 5, 25, 18],  # Top left: 30 to the left and 20 up; the others are cut off.
        [35, 0, 50, 10],  # Top right: 30 to the right and 20 up.
        [70, 5, 85, 18],
        [10, 45, 25, 58],  # Bottom left: 30 to the left and 20 down.
        [35, 25, 50, 50],
        [70, 45, 85, 58],
        [32, 22, 38, 28],
    ]
    np.testing.assert_array_equal(joined.boxes, found)
    assert joined.labels.tolist() == [1, 0, 1, 1, 0, 1, 2]
    far = mosaic(tiles, FixedDraws(1.5, 1.5), canvas=CANVAS)  # (90, 60).
    np.testing.assert_array_equal(far.image[20:60, 30:90], 0)
    np.testing.assert_array_equal(far.image[60:, 90:], 150)
    np.testing.assert_array_equal(far.boxes[-1], [92, 62, 98, 68])
    assert far.labels.tolist() == [0, 1, 2, 0, 2, 0, 2, 0, 2]  # (130, 25) and (70, 85) are out.


def test_boxes_end_at_their_tile():
    tiles = [_plain((20, 30), 50 * k, [[-5, -5, 10, 10], [20, 10, 40, 30]]) for k in range(4)]
    joined = mosaic(tiles, FixedDraws(1.0, 1.0), canvas=CANVAS)
    expected = [[30, 20, 40, 30], [50, 30, 60, 40], [60, 20, 70, 30], [80, 30, 90, 40]]
    np.testing.assert_array_equal(joined.boxes[:4], expected)
    np.testing.assert_array_equal(joined.boxes[4:], joined.boxes[:4] + np.float32([0, 20] * 2))


def test_boxes_of_a_mosaic_are_found_in_its_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tiles = []
        for k in range(4):
            size = int(rng.integers(20, 41)), int(rng.integers(20, 61))
            corner = rng.integers(0, [size[1] - 10, size[0] - 10])
            box = [*corner, *(corner + 10)]
            tiles.append(_example([box], size=size, labels=[k % 3]))
        joined = mosaic(tiles, rng, canvas=CANVAS)
        expected = np.zeros(joined.image.shape[:2], int)
        for box in joined.boxes.astype(int):
            expected[box[1] : box[3], box[0] : box[2]] += 1
        drawn = np.any(np.all(joined.image[:, :, None] == COLOURS, axis=-1), axis=-1)
        np.testing.assert_array_equal(drawn, expected)
        for box, label in zip(joined.boxes.astype(int), joined.labels, strict=True):
            assert np.all(joined.image[box[1] : box[3], box[0] : box[2]] == COLOURS[label])


def test_the_meeting_point_lies_in_the_middle_half():
    rng = np.random.default_rng(0)
    tiles = [_plain(CANVAS, 0), *(_plain(CANVAS, 200) for _ in range(3))]
    points = []
    for _ in range(300):
        first = mosaic(tiles, rng, canvas=CANVAS).image[..., 0] == 0
        points.append((np.flatnonzero(first.any(1))[-1] + 1, np.flatnonzero(first.any(0))[-1] + 1))
    points = np.array(points)
    assert points.min(0).tolist() == [20, 30] and points.max(0).tolist() == [59, 89]
    assert np.all(np.abs(points.mean(0) - [40, 60]) < 3)


def test_mosaics_of_nothing_have_no_objects():
    joined = mosaic([_example([])] * 4, np.random.default_rng(0), canvas=CANVAS)
    assert [np.shape(field) for field in _fields(joined)] == [(0,), (0,), (0,), (0,), (0,)]
    assert joined.boxes.shape == (0, 4)


def test_mixup_is_the_mean_of_two_images_and_the_objects_of_both():
    example = _plain(CANVAS, 100, [[0, 0, 9, 9]], labels=[1], crowd=[True], id="a")
    boxes = [[10, 5, 20, 15], [30, 10, 34, 30]]  # The second is no wider than 5.
    other = _example(boxes, size=(30, 40), labels=[2, 0], difficult=[True, False], id="b")
    mixed = mixup(example, other, FixedDraws(1.0, 0.9), canvas=CANVAS)
    shown = np.full((*CANVAS, 3), 114, int)
    shown[:30, :40] = draw((30, 40), boxes, [2, 0])
    assert np.all(np.abs(mixed.image - (100 + shown) / 2) <= 0.5)
    np.testing.assert_array_equal(mixed.boxes, [[0, 0, 9, 9], [10, 5, 20, 15]])
    assert _fields(mixed)[1:] == [[1, 2], [True, False], [False, True], [81, 100]]
    assert mixed.id == "a"


def test_mixup_keeps_whatever_is_left_of_a_crowd():
    boxes = [[10, 5, 20, 15], [30, 10, 34, 30]]  # The second is no wider than 5.
    for crowd in ([False, True], [True, False]):
        other = _example(boxes, crowd=crowd)
        mixed = mixup(_plain(CANVAS, 0), other, FixedDraws(1.0, 0.9), canvas=CANVAS)
        np.testing.assert_array_equal(mixed.boxes, boxes[: 2 if crowd[1] else 1])
        assert mixed.crowd.tolist() == crowd[: 2 if crowd[1] else 1]


def test_mixup_mirrors_the_padded_image():
    other = _example([[10, 5, 20, 15]], size=(30, 40))
    mixed = mixup(_plain(CANVAS, 0), other, FixedDraws(1.0, 0.4), canvas=CANVAS)
    np.testing.assert_array_equal(mixed.boxes, [[40, 5, 50, 15]])
    assert np.all(mixed.image[5:15, 40:50] == [128, 0, 0])
    assert np.all(mixed.image[:, :20] == 57) and np.all(mixed.image[20:30, 20:] == 45)


def test_mixup_pads_what_is_smaller():
    other = _example([[10, 4, 30, 16]])
    mixed = mixup(_plain(CANVAS, 0), other, FixedDraws(0.5, 0.9), canvas=CANVAS)
    np.testing.assert_array_equal(mixed.boxes, [[5, 2, 15, 8]])
    assert np.all(mixed.image[2:8, 5:15] == [128, 0, 0])
    assert np.all(mixed.image[8:20, :30] == 45)
    assert np.all(mixed.image[20:] == 57) and np.all(mixed.image[:, 30:] == 57)


def test_mixup_cuts_a_random_window_out_of_what_is_larger():
    boxes = [[10, 4, 30, 16], [0, 0, 16, 16], [20, 20, 50, 40]]
    other = _example(boxes, labels=[0, 1, 2])
    draws = FixedDraws(1.5, 0.9, corner=(15, 14))
    mixed = mixup(_plain(CANVAS, 0), other, draws, canvas=CANVAS)
    assert draws.spare == [20, 30]
    # One and a half times as large, 14 to the left and 15 up; of the second a sixth is left.
    np.testing.assert_array_equal(mixed.boxes, [[1, 0, 31, 9], [16, 15, 60, 40]])
    assert mixed.labels.tolist() == [0, 2]
    assert np.all(mixed.image[:8, 11:30] == [128, 0, 0])
    assert np.all(mixed.image[16:, 17:] == [0, 0, 128])


def test_mixup_draws_the_zoom_from_its_range_and_mirrors_every_other_image():
    rng = np.random.default_rng(0)
    other = _example([[20, 10, 40, 30]])
    boxes = np.array(
        [
            mixup(_plain(CANVAS, 0), other, rng, canvas=CANVAS, zoom_range=(0.5, 1.2)).boxes[0]
            for _ in range(300)
        ]
    )
    zooms = (boxes[:, 2] - boxes[:, 0]) / 20
    assert 0.5 <= zooms.min() < 0.55 and 1.15 < zooms.max() <= 1.2
    narrow = _example([[0, 10, 20, 30]], size=(40, 40))
    flipped = [
        mixup(_plain(CANVAS, 0), narrow, rng, canvas=CANVAS, zoom_range=(1.0, 1.0)).boxes[0, 0] > 0
        for _ in range(200)
    ]
    assert 0.4 < np.mean(flipped) < 0.6


@pytest.mark.parametrize("boxes", [[], [[3, 3, 8, 8]]])
def test_an_image_of_which_no_object_is_left_is_not_mixed_in(boxes):
    example = _plain(CANVAS, 100, [[0, 0, 9, 9]])
    assert mixup(example, _example(boxes), FixedDraws(1.0, 0.9), canvas=CANVAS) is example


def _compose(drawn, rng, example=None, **settings):
    """A composition of an image without objects and of those drawn; what is left of the latter."""
    drawn = list(drawn)

    def draw(to_show):
        other = drawn.pop(0)
        return None if to_show and other.crowd.all() else other

    composed = compose(
        _plain(CANVAS, 0) if example is None else example,
        draw,
        rng,
        canvas=CANVAS,
        settings=Composition(mosaic=1.0, **STILL | settings),
    )
    return composed, drawn


def test_a_composition_is_the_middle_of_a_mosaic():
    drawn = [_plain(CANVAS, 50 * k, [[5, 5, 55, 35]], labels=[k - 1]) for k in (1, 2, 3)]
    first = _plain(CANVAS, 0, id="first")
    for seed in range(5):
        rng, alone = np.random.default_rng(seed), np.random.default_rng(seed)
        composed, left = _compose(drawn * 2, rng, example=first)
        joined = mosaic([first, *drawn], alone, canvas=CANVAS)
        np.testing.assert_array_equal(composed.image, joined.image[20:60, 30:90])
        boxes = np.clip(joined.boxes - [30, 20, 30, 20], 0, [60, 40, 60, 40])
        part = transforms.areas(boxes) / transforms.areas(joined.boxes)
        np.testing.assert_array_equal(composed.boxes, boxes[part > 0.2])
        np.testing.assert_array_equal(composed.labels, joined.labels[part > 0.2])
        assert len(composed.boxes) > 0 and composed.id == "first" and len(left) == 3


def test_compositions_are_mixed_at_the_rate_given():
    rng = np.random.default_rng(0)
    drawn = [_example([[20, 10, 40, 30]])] * 4
    left = [len(_compose(drawn, rng, mixup=0.3)[1]) for _ in range(200)]
    assert set(left) == {0, 1} and 0.2 < 1 - np.mean(left) < 0.4


def test_what_is_mixed_in_shows_an_object(monkeypatch):
    monkeypatch.setattr(composing, "mixup", lambda example, other, rng, **_: other)
    empty, crowd = _example([]), _example([[20, 10, 40, 30]], crowd=[True])
    shown = _example([[20, 10, 40, 30], [0, 0, 10, 10]], crowd=[True, False])
    rng = np.random.default_rng(0)
    found, left = _compose([empty] * 3 + [empty, crowd] * 4 + [crowd, shown, shown], rng, mixup=1.0)
    assert found is shown and len(left) == 1
    # Ten draws, and it goes without.
    found, left = _compose([empty] * 3 + [empty, crowd] * 5 + [shown], rng, mixup=1.0)
    assert found.image.shape == (*CANVAS, 3) and found is not shown and len(left) == 1


def test_the_settings_of_a_composition_reach_their_places(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        composing, "random_affine", lambda example, rng, **given: seen.update(given) or example
    )
    monkeypatch.setattr(
        composing, "mixup", lambda example, other, rng, **given: seen.update(given) or example
    )
    drawn = [_example([[20, 10, 40, 30]])] * 4
    settings = {"rotation": 1.0, "translation": 0.2, "affine_zoom": (0.3, 0.4), "shear": 5.0}
    _compose(drawn, np.random.default_rng(0), mixup=1.0, **settings, affine_boxes="ellipse")
    assert seen == {
        "output_size": CANVAS, "rotation": 1.0, "translation": 0.2, "zoom_range": (0.5, 1.5),
        "shear": 5.0, "box_rule": "ellipse", "canvas": CANVAS,
    }  # fmt: skip
    seen.clear()
    _compose(drawn, np.random.default_rng(0), **settings)
    assert (seen["zoom_range"], seen["box_rule"]) == ((0.3, 0.4), "corners")


def test_compositions_repeat_themselves_and_write_nothing_into_their_inputs():
    images = [_example([[10 + k, 5, 40, 30]], labels=[k % 3], id=k) for k in range(5)]
    images[0] = with_proposals(images[0], [[0, 0, 9, 9]])
    before = [(image.image.copy(), _fields(image)) for image in images]
    settings = {"mixup": 1.0, "rotation": 10.0, "affine_zoom": (0.8, 1.2)}
    first, second, other = (
        _compose(images[1:], np.random.default_rng(seed), images[0], **settings)[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.image, second.image)
    assert _fields(first) == _fields(second) and first.proposals is None
    assert np.any(first.image != other.image)
    for image, (pixels, fields) in zip(images, before, strict=True):
        np.testing.assert_array_equal(image.image, pixels)
        assert _fields(image) == fields
