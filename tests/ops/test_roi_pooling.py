from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops.roi_pooling import (
    bins_of,
    flatten_pyramid,
    map_levels,
    pyramid_roi_align,
    pyramid_roi_pool,
    roi_align,
    roi_pool,
)

MAP, COUNT = (12, 9), 6  # Tall; the maps of the golden file are wide.
POOL_BINS = (3, 4)

# Compiled as one: op by op, each shape would compile dozens of small programs.
fast_align = jax.jit(
    roi_align,
    static_argnames=(
        "stride", "output_size", "sampling_ratio", "max_sampling", "aligned"
    ),
)  # fmt: skip
fast_pool = jax.jit(roi_pool, static_argnames=("stride", "output_size"))


def slow_roi_align(features, rois, *, stride, bins, ratio, aligned=True):
    """Sample after sample; ratio 0 is adaptive and has no cap."""
    height, width, channels = features.shape
    bins = bins_of(bins)
    out = np.zeros((len(rois), *bins, channels))
    for r, roi in enumerate(rois.astype(np.float64)):
        x1, y1, x2, y2 = roi / stride - (0.5 if aligned else 0)
        sides = np.array([y2 - y1, x2 - x1])
        sides = np.maximum(sides, 0 if aligned else 1)
        counts = [
            ratio or int(np.ceil(np.float32(s) / b)) for s, b in zip(sides, bins, strict=True)
        ]
        for by, bx in np.ndindex(bins):
            total = np.zeros(channels)
            for sy, sx in np.ndindex(*counts):
                y = y1 + (by + (sy + 0.5) / counts[0]) * sides[0] / bins[0]
                x = x1 + (bx + (sx + 0.5) / counts[1]) * sides[1] / bins[1]
                if -1 <= y <= height and -1 <= x <= width:
                    total += bilinear(features, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1))
            out[r, by, bx] = total / max(counts[0] * counts[1], 1)
    return out


def bilinear(features, y, x):
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, features.shape[0] - 1), min(x0 + 1, features.shape[1] - 1)
    top = features[y0, x0] * (x0 + 1 - x) + features[y0, x1] * (x - x0)
    bottom = features[y1, x0] * (x0 + 1 - x) + features[y1, x1] * (x - x0)
    return top * (y0 + 1 - y) + bottom * (y - y0)


def strides_of(data):
    return tuple(data["strides"].tolist())


def pyramid_of(data, image):
    levels = range(len(data["strides"]))
    return [data[f"feat/{i}"][image].transpose(1, 2, 0) for i in levels]


def images_of(data):
    return range(data["feat/0"].shape[0])


def uncapped(rois, stride, bins=7):
    """The cap that the largest region of a map asks for."""
    return int(np.ceil((rois[:, 2:] - rois[:, :2]).max() / stride / bins))


@pytest.mark.parametrize("ratio", [0, 2])
def test_extraction_from_the_pyramid_equals_the_reference(golden, ratio):
    data = golden("mmdet_roi_extract")
    rois, strides = data["rois"][:, 1:], strides_of(data)
    own_stride = np.array(strides)[data["levels"]][:, None]
    settings = dict(
        strides=strides,
        finest_scale=float(data["finest_scale"]),
        output_size=data[f"out_sr{ratio}"].shape[2:],
        sampling_ratio=ratio,
        max_sampling=uncapped(rois / own_stride, 1),
    )
    pool = jax.jit(lambda pyramid, rois: pyramid_roi_align(pyramid, rois, **settings))
    for image in images_of(data):
        mine = data["rois"][:, 0] == image
        pooled = np.asarray(pool(pyramid_of(data, image), rois))[mine]
        expected = data[f"out_sr{ratio}"][mine].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-5)


def test_one_map_not_aligned_and_other_output_sizes_equal_the_reference(golden):
    data = golden("mmdet_roi_extract")
    stride = strides_of(data)[1]
    cap = uncapped(data["rois"][:, 1:], stride)
    cases = {
        "single_level1_aligned_False_sr0": dict(aligned=False, max_sampling=cap),
        "single_level1_aligned_True_out(5,3)_sr2": dict(sampling_ratio=2),
    }
    for name, settings in cases.items():
        bins = data[name].shape[2:]
        pool = jax.jit(partial(roi_align, stride=stride, output_size=bins, **settings))
        for image in images_of(data):
            mine = data["rois"][:, 0] == image
            pooled = np.asarray(pool(pyramid_of(data, image)[1], data["rois"][:, 1:]))[mine]
            expected = data[name][mine].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-5)


def test_the_gradient_of_a_map_equals_the_reference(golden):
    data = golden("mmdet_roi_extract")
    rois, cotangent = data["rois"], data["grad/level2_cotangent_seed_arr"]
    stride = strides_of(data)[2]
    cap = uncapped(rois[:, 1:], stride)

    @jax.jit
    @jax.grad
    def gradient(features, weights):
        pooled = roi_align(features, jnp.asarray(rois[:, 1:]), stride=stride, max_sampling=cap)
        return jnp.sum(pooled * weights)

    for image in images_of(data):
        mine = (rois[:, 0] == image)[:, None, None, None]
        weights = np.where(mine, cotangent.transpose(0, 2, 3, 1), 0)
        expected = data["grad/level2_input_grad"][image].transpose(1, 2, 0)
        found = gradient(pyramid_of(data, image)[2], weights)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_levels_equal_the_reference(golden):
    data = golden("mmdet_roi_extract")
    settings = dict(num_levels=len(data["strides"]), finest_scale=float(data["finest_scale"]))
    for rois, levels in (("rois", "levels"), ("map_rois", "map_levels")):
        found = jax.jit(lambda r: map_levels(r, **settings))(data[rois][:, 1:])
        np.testing.assert_array_equal(found, data[levels])


@pytest.mark.parametrize("num_levels, finest_scale", [(1, 56), (3, 14), (4, 100.5), (6, 8)])
def test_levels_equal_the_formula_for_any_scale_and_number(num_levels, finest_scale):
    rng = np.random.default_rng(0)
    low = rng.uniform(-50, 500, (500, 2))
    rois = np.concatenate([low, low + 2 ** rng.uniform(-3, 12, (500, 2))], axis=1)
    rois = rois.astype(np.float32)
    sides = (rois[:, 2:] - rois[:, :2]).astype(np.float64)
    exact = np.log2(np.sqrt(sides.prod(1)) / finest_scale + 1e-6)
    levels = partial(map_levels, num_levels=num_levels, finest_scale=finest_scale)
    found = np.asarray(jax.jit(levels)(rois))
    clear = np.abs(exact - np.round(exact)) > 1e-4  # Elsewhere float32 decides.
    np.testing.assert_array_equal(found[clear], np.clip(np.floor(exact), 0, num_levels - 1)[clear])


@pytest.mark.parametrize(
    "side, level", [(1, 0), (111, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (5000, 3)]
)
def test_a_region_of_twice_the_side_is_one_level_up(side, level):
    found = jax.jit(partial(map_levels, num_levels=4))(np.float32([[0, 0, side, side]]))
    assert found.tolist() == [level]


@pytest.fixture(scope="module")
def jitted():
    """Pools regions of the small map, by sampling ratio and alignment."""
    return {
        (ratio, aligned): jax.jit(
            partial(
                roi_align,
                stride=2,
                output_size=(3, 2),
                sampling_ratio=ratio,
                max_sampling=10,  # The longest region has 19 cells: nothing is capped.
                aligned=aligned,
            )
        )
        for ratio in (0, 1, 2)
        for aligned in (True, False)
    }


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2]), st.booleans())
def test_roi_align_equals_plain_loops(jitted, seed, ratio, aligned):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*MAP, 2)).astype(np.float32)
    # Regions reach outside the 24 x 18 image on every side; some are empty or inverted.
    corners = rng.uniform(-8, 30, (COUNT, 2, 2))
    rois = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    rois[0, 2:] = rois[0, :2]
    rois[1] = rois[1, [2, 1, 0, 3]]
    expected = slow_roi_align(features, rois, stride=2, bins=(3, 2), ratio=ratio, aligned=aligned)
    found = jitted[ratio, aligned](features, rois)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def three_levels():
    """A pyramid of odd strides, regions of its levels 0, 1, 2 and 0, and settings."""
    rng = np.random.default_rng(0)
    strides, sizes = (2, 5, 11), ((40, 30), (16, 12), (8, 6))
    pyramid = [rng.normal(size=(*size, 2)).astype(np.float32) for size in sizes]
    rois = np.float32([[1, 2, 9, 9], [2, 3, 30, 20], [0, 0, 60, 80], [5, 5, 15, 15]])
    levels = jax.jit(partial(map_levels, num_levels=3, finest_scale=7.0))(rois)
    np.testing.assert_array_equal(levels, [0, 1, 2, 0])
    return pyramid, rois, dict(strides=strides, finest_scale=7.0, output_size=2)


def test_roi_align_reads_each_region_from_its_level_of_any_pyramid(three_levels):
    pyramid, rois, settings = three_levels
    pool = jax.jit(partial(pyramid_roi_align, **settings, sampling_ratio=2))
    pooled = np.asarray(pool(pyramid, rois))
    for row, level in enumerate((0, 1, 2, 0)):
        alone = slow_roi_align(
            pyramid[level], rois[row : row + 1],
            stride=settings["strides"][level], bins=2, ratio=2,
        )  # fmt: skip
        np.testing.assert_allclose(pooled[row], alone[0], rtol=1e-4, atol=1e-4)


def test_the_cap_is_exact_up_to_its_cells_a_bin():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(24, 24, 2)), jnp.float32)
    roi = np.array([[1.5, 2.5, 21.5, 14.5]], np.float32)  # 20 x 12 cells in 5 bins: 4 a bin.
    settings = dict(stride=1, output_size=5)
    expected = slow_roi_align(np.asarray(features), roi, stride=1, bins=5, ratio=0)
    for cap, exact in ((3, False), (4, True), (9, True)):
        pooled = fast_align(features, jnp.asarray(roi), max_sampling=cap, **settings)
        assert np.allclose(pooled, expected, rtol=1e-4, atol=1e-5) == exact


def test_an_empty_region_is_0_with_adaptive_sampling_only():
    features, empty = jnp.ones((4, 4, 1)), jnp.array([[4.0, 4, 4, 4]])
    assert not np.any(fast_align(features, empty, stride=2))
    assert np.all(fast_align(features, empty, stride=2, sampling_ratio=2))


def test_regions_beyond_the_cap_stay_near_the_uncapped_result():
    y, x = np.mgrid[:60, :80].astype(np.float32)
    smooth = jnp.asarray(np.stack([y / 60, np.sin(x / 20)], axis=-1))
    roi = jnp.array([[3.0, 5, 79, 58]])
    exact = fast_align(smooth, roi, stride=1, max_sampling=11)
    capped = fast_align(smooth, roi, stride=1, max_sampling=2)
    np.testing.assert_allclose(capped, exact, atol=0.02)


def test_regions_just_beyond_the_cap_lose_little():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(40, 40, 4)), jnp.float32)
    roi = jnp.array([[2.3, 3.1, 31.3, 32.1]])  # 29 cells where the cap of 4 allows 28.
    exact = np.asarray(fast_align(features, roi, stride=1, max_sampling=5))
    capped = np.asarray(fast_align(features, roi, stride=1, max_sampling=4))
    assert np.std(capped - exact) / np.std(exact) < 0.35  # 1.5 at every second cell.


def test_gradients_of_roi_align_on_bfloat16_maps_are_summed_in_float32(slope):
    features = np.ones((MAP[0], MAP[1], 1), jnp.bfloat16)
    rois = np.tile(np.float32([4, 4, 12, 12]), (512, 1))
    whole, _ = slope(features.astype(np.float32), rois)
    gradient, _ = slope(features, rois)
    np.testing.assert_allclose(np.asarray(gradient, np.float32), whole, rtol=0.02, atol=0.5)


def test_a_map_of_one_cell_pools_to_its_value():
    pooled = fast_align(jnp.full((1, 1, 1), 3.0), jnp.array([[0.0, 0, 8, 8]]), stride=8)
    np.testing.assert_allclose(pooled, 3.0, rtol=1e-6)


def test_a_constant_map_pools_to_the_constant_inside_the_image():
    rois = jnp.array([[2.0, 2, 14, 10], [0.0, 0, 200, 150]])
    pooled = fast_align(jnp.full((150, 200, 1), 3.0), rois, stride=1, max_sampling=2)
    np.testing.assert_allclose(pooled, 3.0, rtol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_garbage_regions_of_roi_align_stay_finite_and_touch_no_other(slope, garbage):
    features = np.random.default_rng(0).normal(size=(*MAP, 2)).astype(np.float32)
    rois = np.float32([[1, 2, 9, 12], [0, 0, 0, 0]])
    _, clean = jax.device_get(slope(features, rois))
    rois[1] = garbage
    gradient, pooled = jax.device_get(slope(features, rois))
    assert np.isfinite(gradient).all() and np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[0], clean[0])


@pytest.fixture(scope="module")
def slope():
    """The gradient of a sum of pooled values, and the values."""

    def total(features, rois):
        pooled = roi_align(features, rois, stride=2)
        return jnp.sum(pooled.astype(jnp.float32)), pooled

    return jax.jit(jax.grad(total, has_aux=True))


def test_roi_align_of_bfloat16_maps_gives_bfloat16_near_the_float32_result():
    features = np.random.default_rng(0).normal(size=(*MAP, 2)).astype(np.float32)
    rois = np.float32([[1, 2, 9, 12]])
    pooled = fast_align(features.astype(jnp.bfloat16), rois, stride=2)
    assert pooled.dtype == jnp.bfloat16
    expected = fast_align(features, rois, stride=2)
    np.testing.assert_allclose(np.asarray(pooled, np.float32), expected, atol=0.05)


def test_a_flat_pyramid_lists_the_cells_of_all_maps():
    maps = [jnp.arange(6.0).reshape(2, 3, 1), jnp.full((1, 2, 1), 9.0)]
    flat = jax.device_get(flatten_pyramid(maps, (8, 16)))
    np.testing.assert_array_equal(flat.cells[:, 0], [0, 1, 2, 3, 4, 5, 9, 9])
    np.testing.assert_array_equal(flat.offsets, [0, 6])
    np.testing.assert_array_equal(flat.heights, [2, 1])
    np.testing.assert_array_equal(flat.widths, [3, 2])


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
def jitted_pool():
    pool = partial(roi_pool, stride=2, output_size=POOL_BINS)

    def total(features, rois, weights):
        pooled = pool(features, rois)
        return jnp.sum(pooled * weights), pooled

    return jax.jit(jax.grad(total, has_aux=True))


def random_problem(seed):
    rng = np.random.default_rng(seed)
    # Few different values: many ties, all of them negative: 0 can only be an empty bin.
    features = -rng.integers(1, 30, (*MAP, 2)).astype(np.float32)
    rois = rng.uniform(-40, 60, (COUNT, 4)).astype(np.float32)  # The image is 24 x 18.
    rois[1:] = np.concatenate([np.minimum(*np.split(rois[1:], 2, 1)),
                               np.maximum(*np.split(rois[1:], 2, 1))], axis=1)  # fmt: skip
    rois[1] = np.round(rois[1])  # Odd corners are halves of a cell.
    rois[2, 2:] = rois[2, :2]
    return features, rois, rng.normal(size=(COUNT, *POOL_BINS, 2)).astype(np.float32)


@given(st.integers(0, 2**32 - 1))
def test_roi_pool_and_its_gradient_equal_plain_loops(jitted_pool, seed):
    """Regions leave the map, miss it, are empty or inverted."""
    features, rois, weights = random_problem(seed)
    expected, places = slow_roi_pool(features, rois, stride=2, bins=POOL_BINS)
    slope = np.zeros_like(features)
    for index in np.ndindex(expected.shape):
        y, x = places[index]
        slope[y, x, index[-1]] += weights[index] * (y >= 0)
    gradient, pooled = jitted_pool(features, rois, weights)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-5)


def test_roi_pool_of_regions_by_hand():
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


def test_roi_pool_reads_each_region_from_its_level_of_any_pyramid(three_levels):
    pyramid, rois, settings = three_levels
    pooled = np.asarray(jax.jit(partial(pyramid_roi_pool, **settings))(pyramid, rois))
    for row, level in enumerate((0, 1, 2, 0)):
        alone, _ = slow_roi_pool(
            pyramid[level], rois[row : row + 1],
            stride=settings["strides"][level], bins=(2, 2),
        )  # fmt: skip
        np.testing.assert_array_equal(pooled[row], alone[0])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, -3e38])
def test_garbage_regions_of_roi_pool_stay_finite_and_touch_no_other(jitted_pool, garbage):
    features, rois, weights = random_problem(1)
    _, clean = jax.device_get(jitted_pool(features, rois, weights))
    rois[::2] = garbage
    gradient, pooled = jax.device_get(jitted_pool(features, rois, weights))
    assert np.isfinite(gradient).all() and np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[1::2], clean[1::2])


def test_roi_pool_of_a_region_from_minus_to_plus_infinity_reads_the_middle_of_the_map():
    cells = jnp.arange(9.0).reshape(3, 3, 1)
    roi = jnp.array([[-jnp.inf, -jnp.inf, jnp.inf, jnp.inf]])
    assert fast_pool(cells, roi, stride=1, output_size=1).item() == 8


def test_roi_pool_of_bfloat16_maps_is_exact_and_its_gradient_is_summed_in_float32():
    features, rois, _ = random_problem(2)
    half = features.astype(jnp.bfloat16)
    pool = partial(fast_pool, stride=2, output_size=POOL_BINS)
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


def test_roi_pool_under_vmap_equals_one_image_at_a_time(jitted_pool):
    problems = [random_problem(seed) for seed in range(3)]
    features, rois, weights = (np.stack(arrays) for arrays in zip(*problems, strict=True))
    batched = jax.device_get(jax.vmap(jitted_pool)(features, rois, weights))
    for image, problem in enumerate(problems):
        for mine, alone in zip(batched, jitted_pool(*problem), strict=True):
            np.testing.assert_allclose(mine[image], alone, rtol=1e-6)


def align(f, r, **settings):
    return roi_align(f, r, **dict(stride=4) | settings)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, r: pyramid_roi_align([f], r, strides=(4, 8)), "1 feature maps but 2 strides"),
        (lambda f, r: pyramid_roi_align([], r, strides=()), "0 feature maps but 0 strides"),
        (lambda f, r: pyramid_roi_align([f, f[..., :1]], r, strides=(4, 8)), "pyramid wants the"),
        (lambda f, r: align(f, r, sampling_ratio=-1), "sampling_ratio must be at least 0, got -1"),
        (lambda f, r: align(f, r, max_sampling=0), "max_sampling must be at least 1, got 0"),
        (lambda f, r: align(f, r, output_size=0), "output_size must be at least 1, got 0"),
        (lambda f, r: align(f, r, output_size=(7, 0)), r"at least 1, got \(7, 0\)"),
        (lambda f, r: align(f, r, stride=0), r"strides must be positive, got \(0,\)"),
        (lambda f, r: align(f, r[0]), "rois wants the shape"),
        (lambda f, r: align(f[None], r), "features wants the shape"),
        (lambda f, r: pyramid_roi_pool([f], r, strides=(4, 8)), "1 feature maps but 2 strides"),
        (lambda f, r: roi_pool(f, r, stride=4, output_size=0), "output_size must be at least 1"),
        (lambda f, r: roi_pool(f, r, stride=float("nan")), "strides must be positive, got"),
        (lambda f, r: roi_pool(f, r[:, :3], stride=4), "rois wants the shape"),
        (lambda f, r: roi_pool(f[0], r, stride=4), "features wants the shape"),
        (lambda f, r: map_levels(r, num_levels=0), "num_levels must be at least 1, got 0"),
        (lambda f, r: map_levels(r, num_levels=4, finest_scale=0.0), "finest_scale must be pos"),
        (lambda f, r: map_levels(r[:, :2], num_levels=4), "rois wants the shape"),
    ],
)
def test_impossible_inputs_raise_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jnp.zeros((4, 4, 2)), jnp.zeros((1, 4)))


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
def test_a_map_whose_channels_come_first_is_told_of(pool):
    rois = jax.ShapeDtypeStruct((2, 4), jnp.float32)

    def trace(*shape):
        features = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(partial(pool, stride=8), features, rois)

    with pytest.warns(UserWarning, match=r"found \(256, 50, 68\), which looks like channels first"):
        trace(256, 50, 68)
    for shape in ((50, 68, 256), (256, 200, 64), (100, 20, 16), (256, 256, 3)):
        trace(*shape)  # A warning would be an error here.
