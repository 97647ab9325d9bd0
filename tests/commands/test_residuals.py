"""What the backward pass keeps, of programs small enough to say by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxdet.commands import residuals

ROWS, WIDE, NARROW = 32, 64, 16
X = jax.ShapeDtypeStruct((ROWS, WIDE), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((WIDE, WIDE), jnp.float32)
MAP = ROWS * WIDE * 4  # Bytes of a map.


def keep(function, *arguments, constants=X):
    def loss(arguments, constants):
        return jnp.sum(function(constants, *arguments)), None

    return residuals.estimate(loss, arguments, constants)


def sizes(kept):
    return [each.bytes for each in kept]


def test_a_product_keeps_nothing_but_its_arguments():
    assert keep(lambda x, kernel: x @ kernel, KERNEL) == []


def test_of_an_elementwise_chain_the_array_is_kept_that_it_begins_with():
    def chain(x, kernel):
        return jnp.tanh(jax.nn.silu(3 * (x @ kernel)) ** 2) * 2

    assert sizes(keep(chain, KERNEL)) == [MAP], "the product, of some ten residuals"


def test_what_a_product_reads_is_written_and_kept():
    def two_layers(x, first, second):
        with jax.named_scope("second"):
            return jax.nn.relu(x @ first) @ second

    behind, passed = keep(two_layers, KERNEL, KERNEL)
    assert behind == residuals.Kept("second", (ROWS, WIDE), "float32", MAP)
    assert (passed.bytes, passed.dtype) == (MAP // 4, "bool"), "where the ReLU lets through"


def test_what_is_smaller_is_kept_of_two():
    narrow = jax.ShapeDtypeStruct((WIDE, NARROW), jnp.float32)

    def spread(x, kernel):
        wide = jnp.tanh(jnp.tile(x @ kernel, (1, 8)))
        return wide * jnp.arange(8.0 * NARROW)

    assert sizes(keep(spread, narrow)) == [ROWS * NARROW * 4]


def test_half_precision_is_half_and_casts_back_are_free():
    def half(x, first, second):
        y = x.astype(jnp.bfloat16) @ first.astype(jnp.bfloat16)
        return jax.nn.silu(y).astype(jnp.float32) @ second

    read, *narrow = keep(half, KERNEL, KERNEL)
    # What the second product reads; the first one's input as it read that, and what it made.
    assert (read.bytes, read.dtype) == (MAP, "float32")
    assert sizes(narrow) == [MAP // 2] * 2 and {each.dtype for each in narrow} == {"bfloat16"}


def test_rematerialised_blocks_keep_their_inputs_alone():
    def block(x, kernel):
        return jax.nn.relu(jnp.tanh(x @ kernel) @ kernel) @ kernel

    def two(block):
        return keep(lambda x, kernel: block(block(x, kernel), kernel), KERNEL)

    assert len(two(jax.checkpoint(block))) == 1 < len(two(block))


@pytest.mark.parametrize("function", [jnp.sin, lambda x: jax.jit(jnp.sin)(x)])
def test_programs_within_are_gone_through(function):
    assert keep(lambda x, kernel: function(kernel), KERNEL) == []
    assert sizes(keep(lambda x, kernel: function(x @ kernel), KERNEL)) == [MAP]


def test_nothing_is_kept_for_what_has_no_gradient():
    def frozen(x, kernel):
        return jax.lax.stop_gradient(jnp.tanh(x @ kernel) @ kernel) + kernel[0]

    assert keep(frozen, KERNEL) == []


def test_what_is_kept_grows_with_the_batch_alone():
    def network(x, first, second):
        return jax.nn.silu(x @ first) @ second.astype(jnp.bfloat16)

    def kept_of(count):
        batch = jax.ShapeDtypeStruct((count, WIDE), jnp.float32)
        return sum(sizes(keep(network, KERNEL, KERNEL, constants=batch)))

    one, two, four = map(kept_of, (1, 2, 4))
    assert four - two == 2 * (two - one) > 0
    # What does not grow is the kernel as the second product reads it, in bfloat16.
    assert 2 * one - two == 2 * KERNEL.size
