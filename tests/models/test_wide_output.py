import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.drawn_variables import draw, normal

from jaxdet.models import RetinaHead, RPNHead, wide_output

MAP = (2, 3, 4, 5)
KERNELS = {"product": (5, 7), "convolution": (3, 3, 5, 7)}


def compute(kind, x, kernel):
    if kind == "product":
        return wide_output.multiply(x, kernel, jnp.float32)
    return wide_output.convolve(x, kernel, 1, 1, jnp.float32)


@pytest.fixture(params=KERNELS)
def case(request):
    """A kind, and what it multiplies in bfloat16."""
    rng = np.random.default_rng(2)
    shapes = MAP, KERNELS[request.param]
    return request.param, *(jnp.asarray(normal(rng, *shape), jnp.bfloat16) for shape in shapes)


def test_outputs_of_bfloat16_have_the_bits_of_float32(case):
    kind, x, kernel = case
    wide = compute(kind, x.astype(jnp.float32), kernel.astype(jnp.float32))
    found = compute(kind, x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wide, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_float32_but_for_their_bits(case):
    kind, x, kernel = case

    def loss(x, kernel):
        return jnp.sum(jnp.sin(compute(kind, x, kernel)))

    gradient = jax.grad(loss, argnums=(0, 1))
    wide = gradient(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for slope, wanted in zip(gradient(x, kernel), wide, strict=True):
        assert slope.dtype == jnp.bfloat16
        np.testing.assert_allclose(slope.astype(jnp.float32), wanted, rtol=0.03, atol=0.06)
    # Nothing that the backward pass keeps is a map in float32.
    kept = jax.tree.leaves(jax.eval_shape(lambda *two: jax.vjp(loss, *two)[1], x, kernel))
    assert {leaf.shape: leaf.dtype for leaf in kept}[MAP] == jnp.bfloat16
    assert (MAP, jnp.float32) not in {(leaf.shape, leaf.dtype) for leaf in kept}


@pytest.mark.parametrize("head", [RPNHead(), RetinaHead()])
def test_a_head_keeps_none_of_its_maps_in_float32(head):
    head = head.clone(dtype=jnp.bfloat16)
    maps = (jnp.zeros((1, 6, 7, 16), jnp.bfloat16),)
    variables = draw(head.init, maps)
    kept = jax.eval_shape(lambda variables: jax.vjp(head.apply, variables, maps)[1], variables)
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:3] == (1, 6, 7)]
    assert large and not [leaf for leaf in large if leaf.dtype == jnp.float32]
