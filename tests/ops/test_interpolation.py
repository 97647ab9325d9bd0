"""RoIAlign is computed in two ways, by platform; here both run on one, and are held together."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxdet.ops import _interpolation
from jaxdet.ops.roi_pooling import pyramid_roi_align

STRIDES, SIZES = (2, 5, 11), ((40, 30), (16, 12), (8, 6))


@pytest.fixture(scope="module")
def problem():
    """Maps, and regions of all levels that leave the map, are empty, or beyond the cap."""
    rng = np.random.default_rng(0)
    pyramid = tuple(rng.normal(size=(*size, 3)).astype(np.float32) for size in SIZES)
    low = rng.uniform(-20, 60, (9, 2))
    rois = np.concatenate([low, low + rng.uniform(0, 70, low.shape)], axis=1)
    return pyramid, np.float32([*rois, [5, 5, 5, 5], [-9, -9, 99, 99]])


def pool(pyramid, rois, ratio):
    return pyramid_roi_align(
        pyramid, rois, strides=STRIDES, finest_scale=7.0, output_size=(2, 3), sampling_ratio=ratio
    )


@jax.jit(static_argnums=2)
def bins_and_slope(pyramid, rois, ratio):
    """Pooled features, and the gradient of their squares."""
    bins, back = jax.vjp(lambda pyramid: pool(pyramid, rois, ratio), pyramid)
    return bins, back(2 * bins)[0]


def assert_near(found, expected):
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0, 2])
def test_both_ways_give_the_same_bins_and_gradients(problem, monkeypatch, ratio):
    found = bins_and_slope(*problem, ratio)
    monkeypatch.setattr(_interpolation, "REGIONS_AT_ONCE", 4)  # The last part is not full.
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays)
    )
    elsewhere = jax.jit(partial(bins_and_slope.__wrapped__, ratio=ratio))
    assert_near(found, elsewhere(*problem))


def test_images_under_vmap_have_the_bins_and_gradients_that_they_have_alone(problem):
    pyramid, rois = problem
    several = jax.tree.map(lambda cells: np.stack([cells, -2 * cells]), pyramid)
    regions = np.stack([rois, rois[::-1]])
    batched = jax.jit(jax.vmap(partial(bins_and_slope.__wrapped__, ratio=0)))(several, regions)
    for image in range(2):
        mine = jax.tree.map(lambda array, image=image: array[image], (several, regions))
        alone = bins_and_slope(*mine, 0)
        assert_near(jax.tree.map(lambda array, image=image: array[image], batched), alone)
