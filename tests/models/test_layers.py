import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.drawn_variables import draw, normal

from jaxdet.models.layers import Conv, max_pool_3x3_stride_2, norm_layer, num_groups


@pytest.mark.parametrize("size", [(6, 9), (7, 8)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_1x1_convolution_equals_xlas(size, stride):
    x = normal(np.random.default_rng(1), 2, *size, 3)
    layer = Conv(5, 1, stride)
    variables = draw(layer.init, x)

    @jax.jit
    def by_xla(x, kernel, bias):
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias

    assert variables["params"]["kernel"].shape == (1, 1, 3, 5)
    found = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(found, by_xla(x, **variables["params"]), rtol=1e-5, atol=1e-6)


def test_the_slice_of_a_strided_1x1_convolution_stays_apart_from_its_product():
    """Where a GPU's compiler fuses them, it may end the process (openxla/xla#47381)."""
    x = jnp.ones((1, 4, 4, 2))
    for stride, apart in ((1, False), (2, True)):
        layer = Conv(3, 1, stride)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        text = jax.jit(layer.apply).lower(variables, x).as_text()
        assert ("optimization_barrier" in text) == apart


def test_a_convolution_starts_with_the_spread_of_kaiming():
    layer = Conv(64, 3)
    init = jax.jit(lambda key: layer.init(key, jnp.ones((1, 1, 1, 8)))["params"]["kernel"])
    assert np.var(init(jax.random.key(0))) == pytest.approx(2 / (3 * 3 * 64), rel=0.1)  # Fan out.


@pytest.mark.parametrize("size", [1, 3])
def test_the_gradient_of_a_bias_is_summed_in_float32(size):
    x = jax.random.uniform(jax.random.key(0), (2, 40, 48, 4), minval=1.0, maxval=2.0)
    layer = Conv(3, size, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)

    def loss(variables):
        return (layer.apply(variables, x).astype(jnp.float32) * x[..., :3]).sum()

    gradient = jax.grad(loss)(variables)["params"]["bias"]
    np.testing.assert_allclose(gradient, x[..., :3].sum((0, 1, 2)), rtol=1e-3)


def test_a_convolution_pads_both_sides_alike():
    layer = Conv(1, 3, 2, kernel_init=jax.nn.initializers.ones)
    y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    # Windows start at -1 and 1: the first misses a row and a column, the last none.
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])


@pytest.mark.parametrize("size", [(7, 8), (1, 2)])
def test_max_pooling_equals_xlas_forward_and_backward(size):
    x = normal(np.random.default_rng(1), 2, *size, 3)

    def by_xla(x):
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

    @jax.jit
    def with_gradients(x):
        results = []
        for pool in (max_pool_3x3_stride_2, by_xla):
            maps, pull = jax.vjp(pool, x)
            weights = np.arange(1, maps.size + 1, dtype=np.float32).reshape(maps.shape)
            results.append((maps, pull(weights)[0]))
        return results

    # No two values are equal, so that no window has a tie.
    for found, wanted in zip(*with_gradients(x), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "channels, groups",
    [(256, 32), (64, 32), (96, 32), (32, 16), (24, 8), (4, 2), (6, 2), (5, 1), (1, 1)],
)
def test_groups_divide_the_channels_and_have_two_or_more(channels, groups):
    assert num_groups(channels) == groups


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match="'layer'"):
        norm_layer("layer", 8, train=False, name="norm")
