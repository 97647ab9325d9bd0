import jax.numpy as jnp
import numpy as np

from jaxdet.ops.pixels import normalize


def test_normalize_takes_channels_apart_and_zeroes_the_padding():
    pixels = jnp.full((4, 6, 3), 30, jnp.uint8)
    found = normalize(pixels, jnp.array([3, 5]), mean=(10.0, 20.0, 30.0), std=(10.0, 20.0, 5.0))
    np.testing.assert_allclose(found[:3, :5], np.broadcast_to([2.0, 0.5, 0.0], (3, 5, 3)))
    assert not found[3:].any() and not found[:, 5:].any()
