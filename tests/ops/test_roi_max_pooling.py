from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops.roi_max_pooling import pyramid_roi_pool, roi_pool
from jaxdet.ops.roi_pooling import map_levels

MAP, COUNT, BINS = (9, 12), 6, (3, 4)

# Compiled as one: op by op, each shape would compile dozens of small programs.
fast_pool = jax.jit(roi_pool, static_argnames=("stride", "output_size"))


def half_away(value):
    return int(np.sign(value) * np.floor(abs(value) + 0.5))


def slow_roi_pool(features, rois, *, stride, bins):
    """Bin after bin, and the places of the largest cells (row, column), -1 in empty bins."""
    height, width, channels = features.shape
    out = np.zeros((len(rois), *bins, channels), features.dtype)
    places = np.full((len(rois), *bins, channels, 2), -1)
    for r, roi in enumerate(rois.astype(np.float64) / stride):
        x1, y1, x2, y2 = (half_away(corner) for corner in roi)
        rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for by, bx in np.ndindex(bins):
            top, bottom = y1 + by * rows // bins[0], y1 - (-(by + 1) * rows // bins[0])
            left, right = x1 + bx * columns // bins[1], x1 - (-(bx + 1) * columns // bins[1])
            ys = [y for y in range(top, bottom) if 0 <= y < height]
            xs = [x for x in range(left, right) if 0 <= x < width]
            for c in range(channels if ys and xs else 0):
                y, x = max(((y, x) for y in ys for x in xs), key=lambda p: features[p][c])
                out[r, by, bx, c], places[r, by, bx, c] = features[y, x, c], (y, x)
    return out, places


@pytest.fixture(scope="module")
def jitted():
    pool = partial(roi_pool, stride=2, output_size=BINS)

    def total(features, rois, weights):
        pooled = pool(features, rois)
        return jnp.sum(pooled * weights), pooled

    return jax.jit(jax.grad(total, has_aux=True))


def random_problem(seed):
    rng = np.random.default_rng(seed)
    # Few different values: many ties, all of them negative: 0 can only be an empty bin.
    features = -rng.integers(1, 30, (*MAP, 2)).astype(np.float32)
    rois = rng.uniform(-40, 60, (COUNT, 4)).astype(np.float32)  # The image is 18 x 24.
    rois[1:] = np.concatenate([np.minimum(*np.split(rois[1:], 2, 1)),
                               np.maximum(*np.split(rois[1:], 2, 1))], axis=1)  # fmt: skip
    rois[1] = np.round(rois[1])  # Odd corners are halves of a cell.
    rois[2, 2:] = rois[2, :2]
    return features, rois, rng.normal(size=(COUNT, *BINS, 2)).astype(np.float32)


@given(st.integers(0, 2**32 - 1))
def test_roi_pool_and_its_gradient_equal_plain_loops(jitted, seed):
    """Regions leave the map, miss it, are empty or inverted."""
    features, rois, weights = random_problem(seed)
    expected, places = slow_roi_pool(features, rois, stride=2, bins=BINS)
    slope = np.zeros_like(features)
    for index in np.ndindex(expected.shape):
        y, x = places[index]
        slope[y, x, index[-1]] += weights[index] * (y >= 0)
    gradient, pooled = jitted(features, rois, weights)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-5)


def test_a_region_by_hand():
    cells = jnp.arange(25.0).reshape(5, 5, 1)
    # Corners 0 and 2.5 cells, which rounds to 3: four cells an axis, two a bin.
    pooled = fast_pool(cells, jnp.array([[0, 0, 10, 10]]), stride=4, output_size=2)
    np.testing.assert_array_equal(np.asarray(pooled)[0, :, :, 0], [[6, 8], [16, 18]])
    # Cells 1 to 3: the middle one is in both bins of an axis.
    pooled = fast_pool(cells, jnp.array([[4, 4, 12, 12]]), stride=4, output_size=2)
    np.testing.assert_array_equal(np.asarray(pooled)[0, :, :, 0], [[12, 13], [17, 18]])


@pytest.mark.parametrize(
    "corner, first",
    [(0.49999997, 0), (0.5, 1), (1.5, 2), (2.5, 3), (-0.4, 0), (-0.5, 0), (-3.5, 0), (9, 0)],
)
def test_halves_round_away_from_zero_and_regions_are_at_least_a_cell(corner, first):
    """An empty or inverted region is the one cell of its first corner; off the map it is 0."""
    cells = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1)
    pooled = fast_pool(cells, np.float32([[corner, 0, -99, 0]]), stride=1, output_size=1)
    inside = -0.5 < corner < 4.5
    assert pooled.item() == (first + 1 if inside else 0)


def test_sides_that_float32_bins_get_wrong_are_exact():
    """57 cells in 7 bins: 7 times the float32 quotient is more than 57."""
    cells = jnp.arange(60.0).reshape(60, 1, 1)
    pooled = fast_pool(cells, jnp.array([[0, 0, 0, 56]]), stride=1, output_size=(7, 1))
    np.testing.assert_array_equal(
        np.ravel(pooled), [-(-57 * bin_ // 7) - 1 for bin_ in range(1, 8)]
    )


def test_each_region_is_read_from_its_level_of_any_pyramid():
    rng = np.random.default_rng(0)
    strides, sizes = (2, 5, 11), ((40, 30), (16, 12), (8, 6))
    pyramid = [rng.normal(size=(*size, 2)).astype(np.float32) for size in sizes]
    rois = np.float32([[1, 2, 9, 9], [2, 3, 30, 20], [0, 0, 60, 80], [5, 5, 15, 15]])
    levels = jax.jit(partial(map_levels, num_levels=3, finest_scale=7.0))(rois)
    pool = partial(pyramid_roi_pool, strides=strides, finest_scale=7.0, output_size=2)
    pooled = np.asarray(jax.jit(pool)(pyramid, rois))
    for row, level in enumerate(levels.tolist()):
        alone, _ = slow_roi_pool(
            pyramid[level], rois[row : row + 1],
            stride=strides[level], bins=(2, 2),
        )  # fmt: skip
        np.testing.assert_array_equal(pooled[row], alone[0])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, -3e38])
def test_garbage_regions_stay_finite_and_touch_no_other(jitted, garbage):
    features, rois, weights = random_problem(1)
    _, clean = jax.device_get(jitted(features, rois, weights))
    rois[::2] = garbage
    gradient, pooled = jax.device_get(jitted(features, rois, weights))
    assert np.isfinite(gradient).all() and np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[1::2], clean[1::2])


def test_a_region_from_minus_to_plus_infinity_reads_the_middle_of_the_map():
    cells = jnp.arange(9.0).reshape(3, 3, 1)
    roi = jnp.array([[-jnp.inf, -jnp.inf, jnp.inf, jnp.inf]])
    assert fast_pool(cells, roi, stride=1, output_size=1).item() == 8


def test_bfloat16_maps_are_exact_and_their_gradient_is_summed_in_float32():
    features, rois, _ = random_problem(2)
    half = features.astype(jnp.bfloat16)
    pool = partial(fast_pool, stride=2, output_size=BINS)
    pooled = pool(half, rois)
    assert pooled.dtype == jnp.bfloat16
    exact = pool(half.astype(np.float32), rois)
    np.testing.assert_array_equal(np.asarray(pooled, np.float32), exact)

    @jax.jit
    @jax.grad
    def slope(features, rois):
        pooled = roi_pool(features, rois, stride=2, output_size=1)
        return jnp.sum(pooled.astype(jnp.float32))

    many = np.tile(np.float32([4, 4, 4, 4]), (1000, 1))
    assert np.asarray(slope(half, many), np.float32).max() == 1000  # Not 256.


def test_pooling_under_vmap_equals_one_image_at_a_time(jitted):
    problems = [random_problem(seed) for seed in range(3)]
    features, rois, weights = (np.stack(arrays) for arrays in zip(*problems, strict=True))
    batched = jax.device_get(jax.vmap(jitted)(features, rois, weights))
    for image, problem in enumerate(problems):
        for mine, alone in zip(batched, jitted(*problem), strict=True):
            np.testing.assert_allclose(mine[image], alone, rtol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, r: pyramid_roi_pool([f], r, strides=(4, 8)), "1 feature maps but 2 strides"),
        (lambda f, r: roi_pool(f, r, stride=4, output_size=0), "output_size must be at least 1"),
        (lambda f, r: roi_pool(f, r, stride=float("nan")), "strides must be positive, got"),
        (lambda f, r: roi_pool(f, r[:, :3], stride=4), "rois wants the shape"),
        (lambda f, r: roi_pool(f[0], r, stride=4), "features wants the shape"),
    ],
)
def test_impossible_inputs_raise_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jnp.zeros((4, 4, 2)), jnp.zeros((1, 4)))
