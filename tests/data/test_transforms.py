import numpy as np
import pytest
from drawn_data import draw, encode, make_example, with_exif_orientation, with_proposals

from jaxdet.data import colour, transforms
from jaxdet.data.transforms import Augmentation, UnreadableImage

BOX = [12.0, 6, 40, 30]


def _found(image, channel=0):
    """The box around the pixels of a pure colour, measured in the picture."""
    others = np.delete(image.astype(int), channel, axis=-1).max(-1)
    strong = image[..., channel].astype(int) - others > 127
    rows, columns = np.flatnonzero(strong.any(1)), np.flatnonzero(strong.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.fixture
def decoded():
    return transforms.decode(make_example([BOX]))


def test_decode_gives_rgb(decoded):
    assert decoded.image.dtype == np.uint8
    assert decoded.image[10, 20].tolist() == [255, 0, 0]
    assert decoded.image[0, 0].tolist() == [90, 90, 90]


def test_decode_passes_arrays_through(decoded):
    assert transforms.decode(decoded) is decoded


@pytest.mark.parametrize("data", [b"", b"not an image", encode(draw((40, 60), [BOX]))[:300]])
def test_decode_refuses_damaged_files(data):
    with pytest.raises(UnreadableImage, match="^cell: "):
        transforms.decode(make_example([], id="cell")._replace(image=data))


def test_decode_refuses_an_image_of_another_size_than_annotated():
    with pytest.raises(UnreadableImage, match="annotated as 80 x 120 .* but the image is 40 x 60"):
        transforms.decode(make_example([])._replace(size=(80, 120)))
    wide = make_example([BOX])._replace(boxes=np.float32([[1, 1, 70, 9]]), size=(40, 80))
    with pytest.raises(UnreadableImage, match="annotated as 40 x 80 .* but the image is 40 x 60"):
        transforms.decode(wide)


def test_decode_rotates_as_the_annotated_size_tells():
    data = with_exif_orientation(encode(draw((40, 60), [BOX])), 6)
    stored = transforms.decode(make_example([BOX])._replace(image=data))
    np.testing.assert_allclose(_found(stored.image), BOX)
    # Orientation 6: what is left in the file is at the top when shown.
    shown = transforms.decode(make_example([], size=(60, 40))._replace(image=data))
    np.testing.assert_allclose(_found(shown.image), [40 - 30, 12, 40 - 6, 40])


def test_clean_clips_boxes_and_leaves_out_what_training_cannot_use():
    boxes = [
        [-5.0, -5, 10, 10],  # Reaches out: clipped.
        [50, 30, 70, 50],
        [60, 0, 70, 10],  # Outside, touching.
        [10, 10, 10, 20],  # No width.
        [20, 10, 10, 20],  # Turned round.
        [10, 10, 10.5, 20],  # Half a pixel.
        [10, 10, 11, 11],  # One pixel.
        [np.nan, 0, 5, 5],
        [10, 10, 20, 20],  # Without area.
    ]
    image = make_example([]).image
    example = make_example([[0, 0, 1, 1]] * 9, labels=np.arange(9) % 3)
    example = example._replace(
        image=image, boxes=np.float32(boxes), area=np.float64([1] * 8 + [0]), id="a"
    )
    cleaned = transforms.clean(example)
    np.testing.assert_array_equal(
        cleaned.boxes, [[0, 0, 10, 10], [50, 30, 60, 40], [10, 10, 11, 11]]
    )
    assert cleaned.labels.tolist() == [0, 1, 0]
    assert cleaned.area.tolist() == [1, 1, 1] and len(cleaned.crowd) == len(cleaned.difficult) == 3
    assert cleaned.image is image and example.boxes[0, 0] == -5


@pytest.mark.parametrize(
    "size, short, long, canvas, scale",
    [
        ((480, 640), 800, 1333, (1344, 1344), 800 / 480),  # The short side decides,
        ((300, 900), 800, 1333, (1344, 1344), 1333 / 900),  # the long side,
        ((900, 300), 800, 1333, (1344, 1344), 1333 / 900),
        ((480, 640), 240, 320, (240, 320), 0.5),
        ((640, 480), 240, 320, (240, 320), 0.375),  # or the canvas.
        ((100, 100), 800, 1333, (500, 600), 5.0),
    ],
)
def test_fit_scale_keeps_to_every_limit(size, short, long, canvas, scale):
    found = transforms.fit_scale(size, short=short, long=long, canvas=canvas)
    assert found == pytest.approx(scale)


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.71, 1.0, 1.37, 2.0])
def test_boxes_stay_tight_when_resized(decoded, scale):
    resized = transforms.resize(decoded, scale)
    assert resized.image.shape[:2] == (round(40 * scale), round(60 * scale))
    np.testing.assert_allclose(resized.boxes[0], _found(resized.image), atol=1)
    assert resized.boxes.dtype == np.float32
    assert resized.size == (40, 60)


def test_torchvisions_sides_are_rounded_down_and_its_pixels_are_floats():
    image = np.array([[0, 100, 200]], np.uint8)[..., None].repeat(3, axis=2).repeat(3, axis=0)
    example = make_example([[0, 0, 3, 3]], size=(3, 3))._replace(image=image)
    resized = transforms.resize(example, 1.9, "torchvision")
    # 5 pixels in the place of 3: every 0.6, from 0.3 - 0.5 on, which lies outside.
    np.testing.assert_allclose(resized.image[1, :, 0], [0, 40, 100, 160, 200], atol=1e-4)
    assert resized.image.shape == (5, 5, 3) and resized.image.dtype == np.float32
    np.testing.assert_array_equal(resized.boxes, [[0, 0, 5, 5]])
    # Nothing is averaged: two of six columns are read, in the middle between others.
    stripes = example._replace(image=image[:, [0, 1, 2, 2, 1, 0]])
    small = transforms.resize(stripes, 0.4, "torchvision")
    np.testing.assert_allclose(small.image[0, :, 0], [100, 100], atol=1e-4)
    assert transforms.resize(stripes, 0.1, "torchvision").image.shape == (1, 1, 3)


def test_a_box_at_the_border_is_inside_after_resizing():
    example = transforms.decode(make_example([[0, 0, 59, 37]], size=(37, 59)))
    for scale in np.linspace(0.2, 3, 57):
        resized = transforms.resize(example, float(scale))
        height, width = resized.image.shape[:2]
        np.testing.assert_array_equal(resized.boxes, [[0, 0, width, height]])


def test_flips_keep_boxes_tight_and_undo_themselves(decoded):
    for flip in (transforms.flip_horizontal, transforms.flip_vertical):
        flipped = flip(decoded)
        np.testing.assert_array_equal(flipped.boxes[0], _found(flipped.image))
        assert not np.array_equal(flipped.boxes, decoded.boxes)
        again = flip(flipped)
        np.testing.assert_array_equal(again.image, decoded.image)
        np.testing.assert_array_equal(again.boxes, decoded.boxes)
    np.testing.assert_array_equal(transforms.flip_horizontal(decoded).boxes, [[20, 6, 48, 30]])
    np.testing.assert_array_equal(transforms.flip_vertical(decoded).boxes, [[12, 10, 40, 34]])


def test_zoom_keeps_boxes_tight(decoded):
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(30):
        example, zoom = transforms.random_zoom(decoded, rng, zoom_range=(0.7, 1.6))
        resized = transforms.resize(example, zoom)
        assert resized.image.shape[0] <= 40 and resized.image.shape[1] <= 60
        assert 0.7 <= zoom <= 1.6
        np.testing.assert_allclose(resized.boxes[0], _found(resized.image), atol=1)
        sizes.append(resized.boxes[0, 2] - resized.boxes[0, 0])
    assert min(sizes) < 25 and max(sizes) > 35


def test_zoom_leaves_out_objects_that_are_mostly_cut_off():
    boxes = [[0, 0, 8, 8], [20, 15, 40, 25]]
    example = transforms.decode(make_example(boxes, labels=[1, 2], crowd=[False, True]))
    rng = np.random.default_rng(0)
    kept = [transforms.random_zoom(example, rng, zoom_range=(1.5, 1.5))[0] for _ in range(40)]
    assert {tuple(e.labels) for e in kept} >= {(1, 2), (2,)}
    for zoomed in kept:
        assert len(zoomed.boxes) == len(zoomed.crowd) == len(zoomed.area) == len(zoomed.labels)
        areas = np.prod(zoomed.boxes[:, 2:] - zoomed.boxes[:, :2], axis=1)
        whole = np.where(zoomed.labels == 1, 64, 200)
        assert np.all(areas >= transforms.MIN_VISIBLE * whole)
        np.testing.assert_array_equal(zoomed.crowd, zoomed.labels == 2)


def test_zoom_keeps_whatever_is_left_of_a_crowd():
    boxes = [[0, 0, 60, 6], [0, 34, 60, 40]]
    example = transforms.decode(make_example(boxes, crowd=[True, False], labels=[0, 1]))
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        zoomed, _ = transforms.random_zoom(example, rng, zoom_range=(1.05, 1.2))
        heights = zoomed.boxes[zoomed.crowd, 3] - zoomed.boxes[zoomed.crowd, 1]
        # What the picture shows of it, to the pixel: anything left is kept, nothing is not.
        shown = (np.abs(zoomed.image[:, 0].astype(int) - [255, 0, 0]).sum(axis=1) == 0).sum()
        assert heights.tolist() == [shown] * int(shown > 0)
        seen.add(int(shown))
    assert seen >= {0, 1, 5}, "a sixth is less than objects need"


def test_scale_colour_does_what_its_parts_are_called():
    image = np.random.default_rng(0).integers(80, 150, (8, 9, 3)).astype(np.uint8)
    same = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    grey = image @ np.array([0.299, 0.587, 0.114])

    def change(**amounts):
        return colour.scale_colour(image, **(same | amounts)).astype(float)

    np.testing.assert_array_equal(change(), image)
    np.testing.assert_allclose(change(brightness=1.5), image * 1.5, atol=0.51)
    mean = grey.mean()
    np.testing.assert_allclose(change(contrast=0.5), mean + (image - mean) / 2, atol=0.51)
    np.testing.assert_allclose(change(saturation=0.0), np.repeat(grey[..., None], 3, -1), atol=0.6)
    assert change(brightness=4.0).max() == 255


@pytest.mark.parametrize(
    "given, factors, expected",
    [
        ((0, 0, 200), (1.25, 1, 1), (200, 0, 200)),  # Blue is at 120 of 180: 30 steps further.
        ((0, 0, 200), (1.5, 1, 1), (200, 0, 0)),  # The full circle: red.
        ((0, 0, 200), (0.5, 1, 1), (0, 200, 0)),
        ((200, 0, 0), (1.7, 1, 1), (200, 0, 0)),
        ((200, 100, 100), (1, 0, 1), (200, 200, 200)),
        ((200, 100, 100), (1, 0.5, 1), (200, 150, 150)),
        ((200, 100, 100), (1, 3, 1), (200, 0, 0)),
        ((200, 100, 100), (1, 1, 0.5), (100, 50, 50)),
        ((200, 100, 100), (1, 1, 2), (255, 127, 127)),
        ((90, 90, 90), (0.3, 2, 1), (90, 90, 90)),
    ],
)
def test_scale_hsv_does_what_its_parts_are_called(given, factors, expected):
    image = np.full((2, 3, 3), given, np.uint8)
    found = colour.scale_hsv(image, np.float64(factors))
    assert found.shape == image.shape and found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), np.full((2, 3, 3), expected), atol=1)
    assert image[0, 0].tolist() == list(given)


def test_hsv_factors_are_drawn_within_their_amounts(monkeypatch, decoded):
    drawn = []
    monkeypatch.setattr(colour, "scale_hsv", lambda image, factors: drawn.append(factors) or image)
    rng = np.random.default_rng(0)
    for _ in range(200):
        transforms.augment(decoded, rng, settings=Augmentation(hsv=(0.1, 0.7, 0.0)))
    assert abs(np.corrcoef(np.transpose(drawn)[:2])[0, 1]) < 0.2
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    np.testing.assert_allclose(low, [0.9, 0.3, 1], atol=0.03)
    np.testing.assert_allclose(high, [1.1, 1.7, 1], atol=0.03)


def test_colours_that_are_off_draw_nothing(decoded):
    rng, flips = np.random.default_rng(0), np.random.default_rng(0)
    transforms.augment(decoded, rng, settings=Augmentation())
    flips.random(2)  # Horizontal and vertical.
    assert rng.random() == flips.random()


def test_augment_flips_and_colours_at_the_rates_given(decoded):
    def outcomes(**settings):
        rng = np.random.default_rng(0)
        settings = Augmentation(**settings)
        return [transforms.augment(decoded, rng, settings=settings) for _ in range(200)]

    flipped = [e.boxes[0, 0] != 12 for e in outcomes(horizontal_flip=0.3)]
    assert 0.2 < np.mean(flipped) < 0.4
    upside_down = [e.boxes[0, 1] != 6 for e in outcomes(horizontal_flip=0.0, vertical_flip=0.3)]
    assert 0.2 < np.mean(upside_down) < 0.4
    for unchanged in outcomes(horizontal_flip=0.0)[:3]:
        assert unchanged is decoded
    greys = [e.image[0, 0].mean() for e in outcomes(horizontal_flip=0.0, brightness=0.2)]
    assert 72 <= min(greys) < 76 and 104 < max(greys) <= 108


@pytest.mark.parametrize(
    "min_side, kept",
    [(0.0, [0, 1, 2, 3]), (3.9, [0, 1, 2, 3]), (4.0, [1, 2, 3]), (8.0, [2, 3]), (99.0, [3])],
)
def test_drop_small_looks_at_the_shorter_side_and_leaves_crowds(min_side, kept):
    boxes = [[0, 0, 30, 4], [10, 5, 18, 35], [20, 20, 29, 29], [50, 30, 52, 31]]
    example = make_example(boxes, labels=[0, 1, 2, 0], crowd=[False] * 3 + [True])
    found = transforms.drop_small(example, min_side)
    np.testing.assert_array_equal(found.boxes, np.float32(boxes)[kept])
    assert found.labels.tolist() == [[0, 1, 2, 0][k] for k in kept]
    assert found.crowd.tolist() == [k == 3 for k in kept]


def test_drop_small_needs_no_object_and_with_0_keeps_empty_boxes():
    assert transforms.drop_small(make_example([]), 8.0).boxes.shape == (0, 4)
    example = make_example([[3, 3, 3, 9]])
    assert transforms.drop_small(example, 0.0) is example


def test_limit_objects_keeps_the_largest_and_real_ones_before_crowds():
    boxes = [[0, 0, 5, 5], [0, 0, 40, 40], [0, 0, 20, 20], [0, 0, 10, 10]]
    example = make_example(boxes, crowd=[False, True, False, False])
    for limit, kept in [(9, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (3, [0, 2, 3]), (2, [2, 3])]:
        limited, left_out = transforms.limit_objects(example, limit)
        np.testing.assert_array_equal(limited.boxes, np.array(boxes)[kept])
        assert left_out == 4 - len(kept)


def test_transforms_do_not_write_into_their_input(decoded):
    before = decoded.image.copy(), decoded.boxes.copy()
    settings = Augmentation(1.0, 1.0, 0.3, 0.3, 0.3)
    example, _ = transforms.random_zoom(decoded, np.random.default_rng(0), zoom_range=(1.2, 1.2))
    transforms.augment(transforms.resize(example, 1.2), np.random.default_rng(0), settings=settings)
    np.testing.assert_array_equal(decoded.image, before[0])
    np.testing.assert_array_equal(decoded.boxes, before[1])


class FixedDraws(np.random.Generator):
    """Draws the zoom and the corner (top, left) of a window that it was given."""

    def __init__(self, zoom, corner=(0, 0)):
        super().__init__(np.random.PCG64(0))
        self.zoom, self.corner = zoom, corner

    def uniform(self, low, high):
        return np.log(self.zoom)

    def integers(self, low, high, *, endpoint):
        return np.array(self.corner)


def _proposed(boxes):
    return transforms.decode(with_proposals(make_example([BOX]), boxes))


def test_clean_clips_proposals_and_drops_those_without_a_pixel():
    boxes = [
        [-5, -5, 10, 10],
        [60, 0, 70, 10],  # Outside.
        [10, 10, 10.5, 20],
        [59, 39, 70, 50],  # One pixel is left.
        [20, 10, 10, 20],
        [np.nan, 0, 5, 5],
    ]
    example = with_proposals(make_example([], size=(40, 60)), boxes)
    cleaned = transforms.clean(example)
    np.testing.assert_array_equal(cleaned.proposals, [[0, 0, 10, 10], [59, 39, 60, 40]])
    assert cleaned.proposal_scores.tolist() == [1, 0.625]
    assert (cleaned.proposals.dtype, cleaned.proposal_scores.dtype) == (np.float32, np.float32)
    assert example.proposals[0, 0] == -5 and len(cleaned.labels) == 0


def test_proposals_are_resized_by_the_rounded_sides():
    example = transforms.decode(with_proposals(make_example([], size=(37, 59)), [[0, 0, 59, 37]]))
    resized = transforms.resize(example, 0.7)
    assert resized.image.shape[:2] == (26, 41)
    np.testing.assert_array_equal(resized.proposals, [[0, 0, 41, 26]])
    half = transforms.resize(_proposed([[10, 4, 30, 24], [1, 3, 59, 40]]), 0.5)
    np.testing.assert_array_equal(half.proposals, [[5, 2, 15, 12], [0.5, 1.5, 29.5, 20]])
    assert half.proposals.dtype == np.float32


def test_proposals_are_mirrored():
    example = _proposed([[12, 6, 40, 30], [0, 0, 1, 2]])
    flipped = transforms.flip_horizontal(example)
    np.testing.assert_array_equal(flipped.proposals, [[20, 6, 48, 30], [59, 0, 60, 2]])
    flipped = transforms.flip_vertical(example)
    np.testing.assert_array_equal(flipped.proposals, [[12, 10, 40, 34], [0, 38, 1, 40]])


def test_zoom_clips_proposals_to_the_window_and_drops_those_without_a_pixel():
    boxes = [
        [0, 0, 20, 40],  # Touches the window.
        [25, 15, 45, 25],
        [10, 5, 30, 20],
        [0, 0, 20.5, 40],  # Half a pixel is left.
        [0, 0, 21, 11],  # One pixel, much less than objects need.
        [45, 25, 60, 40],
    ]
    draws = FixedDraws(zoom=2.0, corner=(10, 20))
    zoomed, zoom = transforms.random_zoom(_proposed(boxes), draws, zoom_range=(2.0, 2.0))
    assert zoom == pytest.approx(2)
    assert zoomed.image.shape[:2] == (20, 30)
    expected = [[5, 5, 25, 15], [0, 0, 10, 10], [0, 0, 1, 1], [25, 15, 30, 20]]
    np.testing.assert_array_equal(zoomed.proposals, expected)
    assert zoomed.proposal_scores.tolist() == [0.875, 0.75, 0.5, 0.375]


def test_zoom_below_one_leaves_proposals_to_the_resize():
    example = _proposed([[10, 4, 30, 24]])
    draws = FixedDraws(zoom=0.5)
    zoomed, zoom = transforms.random_zoom(example, draws, zoom_range=(0.5, 0.5))
    assert zoomed is example
    np.testing.assert_array_equal(transforms.resize(zoomed, zoom).proposals, [[5, 2, 15, 12]])


def test_proposals_move_exactly_with_equal_boxes():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 40, (30, 2, 2)), axis=1).reshape(-1, 4)
    example = transforms.clean(with_proposals(make_example(corners), corners))
    example = transforms.decode(example)
    for _ in range(20):
        seen, zoom = transforms.random_zoom(example, rng, zoom_range=(0.7, 1.3))
        seen = transforms.resize(seen, zoom * 1.1)
        seen = transforms.augment(seen, rng, settings=Augmentation(0.5, 0.5))
        # An object needs more of its area in the window than a proposal.
        shared = {tuple(box) for box in seen.proposals} & {tuple(box) for box in seen.boxes}
        assert len(shared) == len(seen.boxes) > 10


def test_an_example_without_proposals_gets_none(decoded):
    example = transforms.clean(decoded)
    draws = FixedDraws(zoom=1.2)
    example, zoom = transforms.random_zoom(example, draws, zoom_range=(1.2, 1.2))
    example = transforms.flip_vertical(transforms.flip_horizontal(transforms.resize(example, zoom)))
    assert example.proposals is None and example.proposal_scores is None


def test_no_proposals_are_not_none():
    example = _proposed([])
    draws = FixedDraws(zoom=1.2)
    example, zoom = transforms.random_zoom(transforms.clean(example), draws, zoom_range=(1.2, 1.2))
    example = transforms.flip_vertical(transforms.flip_horizontal(transforms.resize(example, zoom)))
    assert example.proposals.shape == (0, 4) and example.proposal_scores.shape == (0,)
