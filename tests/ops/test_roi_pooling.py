import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops.roi_pooling import map_levels, pyramid_roi_align, roi_align

STRIDES = (4, 8, 16, 32)
MAP, COUNT = (9, 12), 6


def slow_roi_align(features, rois, *, stride, bins, ratio, aligned=True):
    """Sample after sample; ratio 0 is adaptive and has no cap."""
    height, width, channels = features.shape
    out = np.zeros((len(rois), bins, bins, channels))
    for r, roi in enumerate(rois.astype(np.float64)):
        x1, y1, x2, y2 = roi / stride - (0.5 if aligned else 0)
        sides = np.array([y2 - y1, x2 - x1])
        sides = np.maximum(sides, 0 if aligned else 1)
        counts = [ratio or int(np.ceil(np.float32(side) / bins)) for side in sides]
        for by, bx in np.ndindex(bins, bins):
            total = np.zeros(channels)
            for sy, sx in np.ndindex(*counts):
                y = y1 + (by + (sy + 0.5) / counts[0]) * sides[0] / bins
                x = x1 + (bx + (sx + 0.5) / counts[1]) * sides[1] / bins
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


def pyramid_of(data, image):
    return [jnp.asarray(data[f"feat/{i}"][image].transpose(1, 2, 0)) for i in range(4)]


@pytest.mark.parametrize("ratio", [0, 2])
def test_extraction_from_the_pyramid_equals_the_reference(golden, ratio):
    data = golden("mmdet_roi_extract")
    pool = jax.jit(
        # The largest regions of the file have 5.6 cells a bin: within the default cap.
        lambda pyramid, rois: pyramid_roi_align(
            pyramid, rois, strides=STRIDES, sampling_ratio=ratio
        )
    )
    for image in range(2):
        mine = data["rois"][:, 0] == image
        pooled = pool(pyramid_of(data, image), data["rois"][:, 1:])[mine]
        expected = data[f"out_sr{ratio}"][mine].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-5)


def test_one_map_not_aligned_and_other_output_sizes_equal_the_reference(golden):
    data = golden("mmdet_roi_extract")
    cases = {
        "single_level1_aligned_False_sr0": dict(aligned=False, max_sampling=12),
        "single_level1_aligned_True_out(5,3)_sr2": dict(sampling_ratio=2, output_size=(5, 3)),
    }
    for name, settings in cases.items():
        for image in range(2):
            mine = data["rois"][:, 0] == image
            features = pyramid_of(data, image)[1]
            pooled = roi_align(features, jnp.asarray(data["rois"][mine, 1:]), stride=8, **settings)
            expected = data[name][mine].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-5)


def test_the_gradient_of_a_map_equals_the_reference(golden):
    data = golden("mmdet_roi_extract")
    rois, cotangent = data["rois"], data["grad/level2_cotangent_seed_arr"]
    for image in range(2):
        features = pyramid_of(data, image)[2]
        mine = rois[:, 0] == image

        def total(features, mine=mine):
            pooled = roi_align(features, jnp.asarray(rois[mine, 1:]), stride=16, max_sampling=12)
            return jnp.sum(pooled * cotangent[mine].transpose(0, 2, 3, 1))

        expected = data["grad/level2_input_grad"][image].transpose(1, 2, 0)
        np.testing.assert_allclose(jax.grad(total)(features), expected, rtol=1e-4, atol=1e-4)


def test_levels_equal_the_reference(golden):
    data = golden("mmdet_roi_extract")
    for rois, levels in (("rois", "levels"), ("map_rois", "map_levels")):
        found = jax.jit(lambda r: map_levels(r, num_levels=4))(data[rois][:, 1:])
        np.testing.assert_array_equal(found, data[levels])


@pytest.mark.parametrize(
    "side, level", [(1, 0), (111, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (5000, 3)]
)
def test_a_region_of_twice_the_side_is_one_level_up(side, level):
    assert int(map_levels(jnp.array([[0.0, 0, side, side]]), num_levels=4)[0]) == level


@pytest.fixture(scope="module")
def jitted():
    """Pools regions of the small map, by sampling ratio."""
    return {
        ratio: jax.jit(
            lambda features, rois, ratio=ratio: roi_align(
                features, rois, stride=2, output_size=3, sampling_ratio=ratio, max_sampling=5
            )
        )
        for ratio in (0, 1, 2)
    }


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2]))
def test_roi_align_equals_plain_loops(jitted, seed, ratio):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*MAP, 2)).astype(np.float32)
    # Regions reach outside the 18 x 24 image on every side; some are empty.
    corners = rng.uniform(-8, 30, (COUNT, 2, 2))
    rois = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    rois[0, 2:] = rois[0, :2]
    small = (rois[:, 2:] - rois[:, :2]).max() / 2 <= 3 * 5
    if ratio == 0 and not small:
        return
    expected = slow_roi_align(features, rois, stride=2, bins=3, ratio=ratio)
    np.testing.assert_allclose(jitted[ratio](features, rois), expected, rtol=1e-4, atol=1e-4)


def test_an_empty_region_is_0_with_adaptive_sampling_only():
    features, empty = jnp.ones((4, 4, 1)), jnp.array([[4.0, 4, 4, 4]])
    assert not roi_align(features, empty, stride=2).any()
    assert roi_align(features, empty, stride=2, sampling_ratio=2).all()


def test_regions_beyond_the_cap_stay_near_the_uncapped_result():
    y, x = np.mgrid[:60, :80].astype(np.float32)
    smooth = jnp.asarray(np.stack([y / 60, np.sin(x / 20)], axis=-1))
    roi = jnp.array([[3.0, 5, 79, 58]])
    exact = roi_align(smooth, roi, stride=1, max_sampling=11)
    capped = roi_align(smooth, roi, stride=1, max_sampling=2)
    np.testing.assert_allclose(capped, exact, atol=0.02)


def test_regions_just_beyond_the_cap_lose_little():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(40, 40, 4)), jnp.float32)
    roi = jnp.array([[2.3, 3.1, 31.3, 32.1]])  # 29 cells where the cap of 4 allows 28.
    exact = roi_align(features, roi, stride=1, max_sampling=5)
    capped = roi_align(features, roi, stride=1, max_sampling=4)
    assert float(jnp.std(capped - exact) / jnp.std(exact)) < 0.35  # 1.5 at every second cell.


def test_gradients_of_bfloat16_maps_are_summed_in_float32():
    features = jnp.ones((MAP[0], MAP[1], 1), jnp.bfloat16)
    rois = jnp.tile(jnp.array([[4.0, 4, 12, 12]]), (512, 1))
    gradient = jax.grad(lambda f: jnp.sum(roi_align(f, rois, stride=2).astype(jnp.float32)))
    whole = gradient(features.astype(jnp.float32))
    np.testing.assert_allclose(gradient(features).astype(jnp.float32), whole, rtol=0.02, atol=0.5)


def test_a_map_of_one_cell_pools_to_its_value():
    pooled = roi_align(jnp.full((1, 1, 1), 3.0), jnp.array([[0.0, 0, 8, 8]]), stride=8)
    np.testing.assert_allclose(pooled, 3.0, rtol=1e-6)


def test_a_constant_map_pools_to_the_constant_inside_the_image():
    rois = jnp.array([[2.0, 2, 14, 10], [0.0, 0, 200, 150]])
    pooled = roi_align(jnp.full((150, 200, 1), 3.0), rois, stride=1, max_sampling=2)
    np.testing.assert_allclose(pooled, 3.0, rtol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_garbage_regions_stay_finite_and_touch_no_other(garbage):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(*MAP, 2)), jnp.float32)
    good = jnp.array([[1.0, 2, 9, 12]])
    both = jnp.concatenate([good, jnp.full((1, 4), garbage)])

    def total(features):
        pooled = roi_align(features, both, stride=2)
        return jnp.sum(pooled), pooled

    gradient, pooled = jax.grad(total, has_aux=True)(features)
    assert np.isfinite(gradient).all() and np.isfinite(pooled).all()
    np.testing.assert_array_equal(pooled[:1], roi_align(features, good, stride=2))


def test_bfloat16_maps_give_bfloat16_near_the_float32_result():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(*MAP, 2)), jnp.float32)
    rois = jnp.array([[1.0, 2, 9, 12]])
    pooled = roi_align(features.astype(jnp.bfloat16), rois, stride=2)
    assert pooled.dtype == jnp.bfloat16
    expected = roi_align(features, rois, stride=2)
    np.testing.assert_allclose(pooled.astype(jnp.float32), expected, atol=0.05)


def test_impossible_settings_raise():
    with pytest.raises(ValueError, match="1 feature maps but 2 strides"):
        pyramid_roi_align([jnp.zeros((4, 4, 1))], jnp.zeros((1, 4)), strides=(4, 8))
    with pytest.raises(ValueError, match="got -1 and 6"):
        roi_align(jnp.zeros((4, 4, 1)), jnp.zeros((1, 4)), stride=4, sampling_ratio=-1)
