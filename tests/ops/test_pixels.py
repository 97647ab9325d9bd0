import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops.pixels import content_mask, normalize

HEIGHT, WIDTH = 5, 7
SETTINGS = dict(mean=(10.0, 20.0, 30.0), std=(10.0, 20.0, 5.0))


@functools.cache
def jitted(**settings):
    return jax.jit(jax.vmap(functools.partial(normalize, **SETTINGS, **settings)))


def test_normalize_takes_channels_apart_and_zeroes_the_padding():
    pixels = np.full((1, 4, 6, 3), 30, np.uint8)
    (found,) = np.asarray(jitted()(pixels, np.array([[3, 5]])))
    np.testing.assert_allclose(found[:3, :5], np.broadcast_to([2.0, 0.5, 0.0], (3, 5, 3)))
    assert not found[3:].any() and not found[:, 5:].any()


def test_pixels_may_be_floats():
    pixels = np.full((1, 1, 1, 3), 30.5, np.float32)
    (found,) = np.asarray(jitted()(pixels, np.array([[1, 1]])))
    np.testing.assert_allclose(found[0, 0], [2.05, 0.525, 0.1], rtol=1e-5)


def test_padding_is_a_pixel_value_like_those_of_the_image():
    pixels = np.full((1, 2, 3, 3), 30, np.uint8)
    (found,) = np.asarray(jitted(padding=20.0)(pixels, np.array([[1, 2]])))
    np.testing.assert_allclose(found[0, :2], np.broadcast_to([2.0, 0.5, 0.0], (2, 3)))
    np.testing.assert_allclose(found[1], np.broadcast_to([1.0, 0.0, -2.0], (3, 3)))
    np.testing.assert_allclose(found[0, 2], [1.0, 0.0, -2.0])


@given(st.integers(0, 2**32 - 1), st.integers(0, HEIGHT), st.integers(0, WIDTH))
def test_normalize_equals_plain_loops_for_each_image(seed, height, width):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    sizes = np.array([[height, width], [HEIGHT, 1]])
    expected = np.zeros(pixels.shape)
    for image, (rows, columns) in enumerate(sizes):
        for channel, (mean, std) in enumerate(zip(*SETTINGS.values(), strict=True)):
            content = pixels[image, :rows, :columns, channel].astype(float)
            expected[image, :rows, :columns, channel] = (content - mean) / std
    np.testing.assert_allclose(jitted()(pixels, sizes), expected, rtol=1e-6)


def test_the_content_starts_at_the_top_left():
    mask = content_mask(3, 4, jnp.array([2, 3]))
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert content_mask(3, 4, jnp.array([9, 9])).all()


@pytest.mark.parametrize(
    "settings",
    [dict(mean=(1.0, 2.0)), dict(std=(1.0, 2.0)), dict(std=(1.0, 0.0, 1.0))],
)
def test_impossible_means_and_deviations_raise_while_tracing(settings):
    function = functools.partial(normalize, **(SETTINGS | settings))
    with pytest.raises(ValueError, match="mean and std must be three numbers, std above 0, got"):
        jax.eval_shape(function, jnp.zeros((4, 6, 3), jnp.uint8), jnp.zeros(2, int))


def test_wrong_shapes_raise_while_tracing():
    function = functools.partial(normalize, **SETTINGS)
    with pytest.raises(ValueError, match=r"pixels wants the shape \(H, W, 3\), found \(4, 6, 1\)"):
        jax.eval_shape(function, jnp.zeros((4, 6, 1), jnp.uint8), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"size wants the shape \(2\), found \(3,\)"):
        jax.eval_shape(function, jnp.zeros((4, 6, 3), jnp.uint8), jnp.zeros(3, int))
    with pytest.raises(ValueError, match="height must be at least 0, got -1"):
        content_mask(-1, 4, jnp.zeros(2, int))
