from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.training.multiscale import check_heights, draw_height, resize_batch
from jaxdet.types import Batch, Images, Proposals, UserError

resize = jax.jit(resize_batch, static_argnums=1)


def make_batch(height, width, *, rows=2, proposals=False):
    rng = np.random.default_rng(height + width)
    sides = np.array([height, width])
    regions = Proposals(
        boxes=rng.random((rows, 3, 4), np.float32) * np.float32(max(sides)),
        scores=rng.random((rows, 3), np.float32),
        valid=rng.random((rows, 3)) < 0.5,
    )
    images = Images(
        pixels=rng.integers(0, 256, (rows, height, width, 3), np.uint8),
        sizes=rng.integers(1, sides + 1, (rows, 2)).astype(np.int32),
        scales=rng.random(rows, np.float32),
        proposals=regions if proposals else None,
    )
    return Batch(
        images=images,
        boxes=rng.random((rows, 2, 4), np.float32) * np.float32(max(sides)),
        labels=rng.integers(0, 3, (rows, 2)).astype(np.int32),
        valid=rng.random((rows, 2)) < 0.5,
        crowd=rng.random((rows, 2)) < 0.5,
        index=np.arange(rows, dtype=np.uint32),
    )


def interpolate(image, height, width):
    """torch's bilinear interpolation with align_corners=False, pixel by pixel."""
    image, (old_height, old_width) = image.astype(np.float64), image.shape[:2]
    new = np.zeros((height, width, image.shape[2]))
    for y in range(height):
        for x in range(width):
            at_y = max((y + 0.5) * old_height / height - 0.5, 0)
            at_x = max((x + 0.5) * old_width / width - 0.5, 0)
            top, left = int(at_y), int(at_x)
            bottom, right = min(top + 1, old_height - 1), min(left + 1, old_width - 1)
            down, over = at_y - top, at_x - left
            upper = (1 - over) * image[top, left] + over * image[top, right]
            lower = (1 - over) * image[bottom, left] + over * image[bottom, right]
            new[y, x] = (1 - down) * upper + down * lower
    return new


def test_pixels_lie_between_the_centres_of_the_old_ones():
    batch = make_batch(16, 16, rows=1)
    # Columns of 0, 100, 0, ...: twice as many lie at quarters between them, the ends outside.
    pixels = np.tile(np.array([0, 100], np.uint8), 8)[None, None, :, None]
    images = batch.images._replace(pixels=np.broadcast_to(pixels, (1, 16, 16, 3)))
    found = resize(batch._replace(images=images), 32).images.pixels
    assert found.dtype == np.uint8
    expected = [0, 25, 75, 75, 25, 25, 75, 75]
    np.testing.assert_array_equal(found[0, 5, :8, 1], expected)
    np.testing.assert_array_equal(found[0, 31, -4:, 2], [25, 25, 75, 100])


def test_pixels_that_are_floats_stay_as_they_are_interpolated():
    batch = make_batch(16, 16, rows=1)
    images = batch.images._replace(pixels=batch.images.pixels.astype(np.float32))
    found = np.asarray(resize(batch._replace(images=images), 32).images.pixels)
    assert found.dtype == np.float32
    wanted = interpolate(batch.images.pixels[0], 32, 32)
    np.testing.assert_allclose(found[0], wanted, atol=1e-3)
    assert np.abs(found - np.round(found)).max() > 0.4


# Up, down without antialiasing, and each axis by a ratio of its own.
@pytest.mark.parametrize(
    "old, new", [((20, 40), (32, 64)), ((96, 70), (32, 32)), ((40, 9), (64, 32))]
)
def test_pixels_are_those_of_a_slow_twin(old, new):
    batch = make_batch(*old)
    found = np.asarray(resize(batch, new[0]).images.pixels, np.float64)
    assert found.shape == (2, *new, 3)
    for row, image in zip(found, batch.images.pixels, strict=True):
        # Half a value is the rounding; at a tie the twin's last bit may decide otherwise.
        np.testing.assert_allclose(row, interpolate(image, *new), atol=0.501, rtol=0)


def test_boxes_sizes_scales_and_proposals_follow_the_canvas():
    batch = make_batch(64, 96, proposals=True)
    images = batch.images._replace(
        sizes=np.array([[64, 96], [33, 1]], np.int32), scales=np.array([0.5, 2], np.float32)
    )
    boxes = np.tile(np.array([[8, 16, 24, 64]], np.float32), (2, 2, 1))
    found = resize(batch._replace(images=images, boxes=boxes), 32)
    # Half the height; the width would be 48, and 1.5 times 32 rounds to 2: two thirds.
    assert found.images.pixels.shape == (2, 32, 64, 3)
    np.testing.assert_allclose(found.boxes[1, 1], [16 / 3, 8, 16, 32], rtol=1e-6)
    # 33 -> 16.5 -> 16 (the even one), 1 -> 0.67 -> 1.
    np.testing.assert_array_equal(found.images.sizes, [[32, 64], [16, 1]])
    assert found.images.sizes.dtype == np.int32
    np.testing.assert_array_equal(found.images.scales, [0.25, 1])
    ratios = np.array([2 / 3, 0.5, 2 / 3, 0.5], np.float32)
    proposals, before = found.images.proposals, batch.images.proposals
    np.testing.assert_allclose(proposals.boxes, before.boxes * ratios, rtol=1e-6)
    for new, old in [
        *zip(proposals[1:], before[1:], strict=True),
        *zip(found[2:], batch[2:], strict=True),
    ]:
        np.testing.assert_array_equal(new, old)


def test_contents_stay_at_least_a_pixel_and_canvases_at_least_32():
    batch = make_batch(128, 8)
    sizes = np.array([[1, 8], [128, 1]], np.int32)
    found = resize(batch._replace(images=batch.images._replace(sizes=sizes)), 32)
    assert found.images.pixels.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(found.images.sizes, [[1, 32], [32, 4]])


def test_at_its_own_height_a_batch_stays_as_it_is():
    batch = make_batch(64, 40, proposals=True)
    assert resize_batch(batch, 64) is batch


def test_a_height_stays_for_some_steps_and_tells_nothing_of_the_next():
    draw = partial(draw_height, 3, heights=(32, 64, 96), every=4)
    drawn = [draw(step) for step in range(1200)]
    assert all(isinstance(height, int) for height in drawn)
    blocks = np.reshape(drawn, (-1, 4))
    assert np.all(blocks == blocks[:, :1])
    # 300 draws: 100 of each, give or take four standard deviations; 1 in 3 stays.
    _, counts = np.unique(blocks[:, 0], return_counts=True)
    assert counts.shape == (3,) and np.all(abs(counts - 100) < 33)
    assert abs(np.sum(blocks[1:, 0] == blocks[:-1, 0]) - 100) < 33


def test_a_height_depends_on_the_seed_and_the_step_alone():
    settings = dict(heights=(32, 64, 96, 128), every=1)
    first, again, other = (
        [draw_height(seed, step, **settings) for step in range(20)] for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("heights", [(0,), (-32,), (64, 48), (64.0,), (64, "96")])
def test_a_height_that_is_no_multiple_of_32_is_named(heights):
    with pytest.raises(
        UserError, match=r"config.multiscale_heights wants positive .* of 32, found"
    ):
        check_heights(heights)
