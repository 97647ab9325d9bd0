import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from jaxdet.export import onnx_control
from jaxdet.export.onnx_graph import Graph, describe, named
from jaxdet.export.onnx_rules import RULES
from jaxdet.types import UserError

# Names that the same primitives have in one version of JAX or another, or in no small program.
ALIASES = {
    *("jit", "pjit", "closed_call", "core_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    *("checkpoint", "remat2", "copy_p", "copy", "tile", "expand_dims", "scatter_max"),
    *("scatter_add", "scatter_min", "scatter_mul", "square", "integer_pow", "split"),
    *("stack", "unstack", "log2"),
}

rng = np.random.default_rng(0)
X = rng.normal(size=(3, 4)).astype(np.float32)
Y = rng.normal(size=(3, 4)).astype(np.float32)
I = rng.integers(-9, 9, (3, 4)).astype(np.int32)  # noqa: E741
J = rng.integers(1, 5, (3, 4)).astype(np.int32)
B = X > 0
C = Y > 0
TIES = np.float32([[1, 0, 1, 2, 0], [3, 3, 3, 1, 2]])
IMAGE = rng.normal(size=(1, 6, 7, 4)).astype(np.float32)
KERNEL = rng.normal(size=(3, 3, 4, 8)).astype(np.float32)
DEPTHWISE = rng.normal(size=(3, 3, 1, 8)).astype(np.float32)
NHWC = ("NHWC", "HWIO", "NHWC")
ROWS = np.int32([[2, 0, 5], [1, -7, 2]])  # Some point beside the array.


def conv(x, k, **settings):
    settings = {"window_strides": (1, 1), "padding": "SAME"} | settings
    return lax.conv_general_dilated(x, k, dimension_numbers=NHWC, **settings)


def block(x, k):
    """Stays in the layout of convolutions until it is reshaped."""
    y = jax.nn.relu(conv(x, k) * 2 - jnp.arange(8.0))
    y = jnp.concatenate([y, y[:, ::2, :, :].repeat(2, 1)], axis=-1)[..., 1:]
    z = jnp.pad(y, [(0, 0), (1, 0), (0, 2), (0, 0)], constant_values=1) + 1
    return z.reshape(-1, 5), jnp.split(z, 3, axis=-1), z.transpose(0, 3, 1, 2)


def pointwise(x, k, w):
    return conv(x, k) @ w


def triangle(n):
    return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] + s[0]), (0, 0))


def collatz(x):
    """Each row stops at its own time."""
    even = lambda n: jnp.where(n % 2 == 0, n // 2, 3 * n + 1)  # noqa: E731
    start = (x, jnp.int32(0))
    return lax.while_loop(lambda s: s[0] != 1, lambda s: (even(s[0]), s[1] + 1), start)


def scanned(x, reverse=False):
    step = lambda c, row: (c + row, c * row)  # noqa: E731
    return lax.scan(step, x[0], x, reverse=reverse)


@jax.custom_jvp
def own_derivative(x):
    return x * 2


own_derivative.defjvp(lambda primals, tangents: (own_derivative(*primals), tangents[0]))

CASES = {
    "arithmetic": (lambda x, y: (x + y, x - y, x * y, x / y, -x, abs(x), jnp.sign(x)), X, Y),
    "constants": (lambda x: (x - 1, 1 - x, x + jnp.arange(4.0), x * jnp.ones((3, 1))), X),
    "integers": (lambda i, j: (i + j, i - j, lax.div(i, j), lax.rem(i, j), i // j, i % j), I, J),
    "functions": (
        lambda x: (jnp.exp(x), jnp.log(abs(x)), jnp.sqrt(abs(x)), lax.rsqrt(abs(x)), jnp.tanh(x)),
        X,
    ),
    "logarithms": (lambda x: (jnp.log2(abs(x)), jnp.log2(jnp.float32([0.25, 8, 1e-3]))), X),
    "waves": (lambda x: (jnp.sin(x), jnp.cos(x), lax.erf(x), jax.nn.sigmoid(x)), X),
    "powers": (lambda x, y: (x**2, x**3, jnp.square(x), abs(x) ** y), X, Y),
    "rounding": (lambda x: (jnp.floor(x), jnp.ceil(x), jnp.round(x * 4) / 4, jnp.trunc(x)), X),
    "halves": (lambda x: jnp.round(x), np.float32([0.5, 1.5, 2.5, -0.5, -1.5])),
    "extremes": (lambda x, y: (jnp.maximum(x, y), jnp.minimum(x, y), jnp.clip(x, -1, 0.5)), X, Y),
    "clamp": (lambda x, i: (lax.clamp(-0.5, x, 0.5), lax.clamp(0, i, 3)), X, I),
    "relu": (lambda x, i: (jnp.maximum(x, 0), jnp.maximum(0.0, x), jnp.maximum(i, 0)), X, I),
    "comparisons": (lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y), X, Y),
    "of integers": (lambda i, j: (i < j, i <= j, i > j, i >= j, i == j, i != j), I, J),
    "logic": (lambda b, c: (b & c, b | c, b ^ c, ~b, b == c, b != c), B, C),
    "choice": (lambda b, x, y: (jnp.where(b, x, y), jnp.where(b, x, 0)), B, X, Y),
    "choice of booleans": (lambda b, c: jnp.where(b, c, ~b), B, C),
    "choice of integers": (lambda b, i, j: jnp.where(b, i, j), B, I, J),
    "finite": (lambda x: jnp.isfinite(x / jnp.float32([0, 1, 1, 1])), X),
    "types": (
        lambda x, i, b: (x.astype(int), i.astype(jnp.float32), b * 1.0, i.astype(bool)),
        X,
        I,
        B,
    ),
    "same": (
        lambda x: (
            lax.stop_gradient(x),
            lax.optimization_barrier(x),
            lax.reduce_precision(x, 8, 23),
        ),
        X,
    ),
    "iota": (lambda x: x + lax.broadcasted_iota(jnp.float32, (3, 4), 1), X),
    "axes": (
        lambda x: (x[None, :, None], x.T, jnp.expand_dims(x, 1), x.reshape(2, 6), x[None][0]),
        X,
    ),
    "repeated": (lambda x: (jnp.broadcast_to(x[:, :1], (3, 5)) + 0, jnp.ones((3, 4)) * x[0, 0]), X),
    "repeated, cut": (lambda x: jnp.broadcast_to(x[:, None], (3, 6, 4))[:, 1:5:2, 1:], X),
    "cut": (lambda x: (x[1:], x[::2, 1:3], x[0], x[::-1], x[:, ::-1]), X),
    "joined": (
        lambda x, y: (jnp.concatenate([x, y], 1), jnp.stack([x, y], 1), jnp.split(x, 2, 1)),
        X,
        Y,
    ),
    "taken apart": (lambda x: (*x, *jnp.unstack(x, axis=1), *x[None].T[1]), X),
    "padded": (
        lambda x, b: (
            jnp.pad(x, [(1, 2), (0, 1)]),
            lax.pad(x, 2.0, [(0, -1, 0), (-1, 1, 0)]),
            jnp.pad(b, 1),
        ),
        X,
        B,
    ),
    "reduced": (lambda x: (x.sum(1), x.max(0), x.min((0, 1)), x.prod(1), x.mean(0)), X),
    "of booleans": (lambda b: (b.any(1), b.all(0), b.sum(0)), B),
    "places of extremes": (lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 1), jnp.argmax(x, 0)), TIES),
    "running sums": (lambda i: (jnp.cumsum(i, 0), lax.cumsum(i, axis=1, reverse=True)), I),
    "products": (
        lambda x, y: (x @ y.T, jnp.einsum("ij,ij->i", x, y), jnp.einsum("ij,kj->ki", x, y)),
        X,
        Y,
    ),
    "products of batches": (
        lambda a, b: (jnp.einsum("bijc,bjkc->cbik", a, b), jnp.tensordot(a, b, 3)),
        *rng.normal(size=(2, 2, 2, 2, 2)).astype(np.float32),
    ),
    "convolution": (lambda x, k: conv(x, k), IMAGE, KERNEL),
    "strides": (
        lambda x, k: conv(x, k, window_strides=(2, 1), padding=[(2, 1), (0, 1)]),
        IMAGE,
        KERNEL,
    ),
    "dilation": (lambda x, k: conv(x, k, rhs_dilation=(2, 2)), IMAGE, KERNEL),
    "groups": (lambda x, k: conv(x, k, feature_group_count=4), IMAGE, DEPTHWISE),
    "channels first": (block, IMAGE, KERNEL),
    "pointwise": (pointwise, IMAGE, KERNEL, rng.normal(size=(8, 5)).astype(np.float32)),
    "rows": (lambda x, i: (x[i % 3], x[:, i % 4], jnp.take(x, i, axis=1, mode="clip")), X, ROWS),
    "rows of pairs": (
        lambda x, i, j: (x[i % 3, j % 4], x.at[i, j].get(mode="fill", fill_value=7)),
        X,
        ROWS,
        ROWS,
    ),
    "rows of batches": (
        jax.vmap(lambda x, i: (x[i], x.at[i].get(mode="promise_in_bounds"))),
        np.stack([X, Y]),
        abs(ROWS) % 3,
    ),
    "along an axis": (
        lambda x, i: (jnp.take_along_axis(x, i, 1), jnp.take_along_axis(x, i, 1, mode="clip")),
        X,
        J,
    ),
    "written": (
        lambda x, i: (
            x.at[i].set(9),
            x.at[:, i].add(1),
            x.at[i].mul(2),
            x.at[i].max(0.1),
            x.at[i].min(0),
        ),
        X,
        np.int32([2, 5]),
    ),
    "written, clipped": (lambda x, i: x.at[i].set(9, mode="clip"), X, np.int32([0, 5])),
    "written in batches": (
        jax.vmap(lambda x, i: x.at[i].max(0.5)),
        np.stack([X, Y]),
        np.int32([[0, 2], [1, 8]]),
    ),
    "order of equals": (
        lambda x: (jnp.argsort(x, stable=True), jnp.argsort(x, descending=True)),
        TIES,
    ),
    "sorted": (lambda x, y: lax.sort((x, y), dimension=0, num_keys=1), X, Y),
    "sorted booleans": (lambda b: (jnp.argsort(~b, stable=True), jnp.sort(b, axis=0)), B),
    "best": (lambda x: lax.top_k(x, 3), TIES),
    "loop": (triangle, np.int32(7)),
    "loop that does not start": (triangle, np.int32(-1)),
    "loop of each row": (jax.vmap(collatz), np.int32([6, 1, 7])),
    "loop with a count": (lambda x: lax.fori_loop(0, 3, lambda i, c: c * x + i, x), X),
    "scan": (scanned, X),
    "scan backwards": (lambda x: scanned(x, reverse=True), X),
    "scan of one": (lambda x: lax.scan(lambda c, r: (c + r, r * 2), x[0], x[None, 1]), X),
    "condition": (
        lambda x: lax.cond(x[0, 0] > 0, lambda x: x + 1, lambda x: x.T.reshape(3, 4), x),
        X,
    ),
    "form of other platforms": (
        # The CPU's has no rule: that of all others is taken.
        lambda x: lax.platform_dependent(
            x, cpu=lambda x: 2 * x + 0 * lax.erf_inv(0 * x), default=lambda x: x + x
        ),
        X,
    ),
    "other condition": (lambda x: lax.cond(x[0, 0] < 0, lambda x: x + 1, lambda x: x - 1, x), X),
    "inner programs": (
        lambda x: (jax.jit(jnp.tanh)(x), own_derivative(x), jax.checkpoint(jnp.sin)(x)),
        X,
    ),
}


def in_onnx(function, *arrays):
    """What onnxruntime computes, and the primitives that it was told of."""
    arrays = [np.asarray(array) for array in arrays]
    closed, graph = jax.make_jaxpr(function)(*arrays), Graph()
    names = [f"x{place}" for place in range(len(arrays))]
    inputs = [named(name, array.shape) for name, array in zip(names, arrays, strict=True)]
    infos = [describe(n, a.dtype, a.shape) for n, a in zip(names, arrays, strict=True)]
    values = onnx_control.convert(graph, closed.jaxpr, closed.consts, inputs)
    outputs = []
    for value, aval in zip(values, closed.out_avals, strict=True):
        name = graph.emit("Identity", graph.full(value, aval.shape))
        outputs.append(describe(name, aval.dtype, aval.shape))
    model = graph.model(infos, outputs, {}).SerializeToString()
    session = onnxruntime.InferenceSession(model)
    return session.run(None, dict(zip(names, arrays, strict=True)))


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_computes_what_jax_does(case):
    function, *arrays = CASES[case]
    wanted = jax.tree.leaves(jax.jit(function)(*arrays))

    found = in_onnx(function, *arrays)

    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        # What is left of a sum of larger numbers has their rounding.
        largest = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=1)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * float(largest))


def primitives_of(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from primitives_of(getattr(inner, "jaxpr", inner))


def test_every_rule_is_tested():
    seen = set()
    for function, *arrays in CASES.values():
        seen |= set(primitives_of(jax.make_jaxpr(function)(*arrays).jaxpr))

    assert set(RULES) - seen - ALIASES == set()


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: lax.erf_inv(x), "the primitive erf_inv has no rule"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 1), (0, 0, 0)]), "pad between elements"),
        (lambda x: lax.sort((x, x), num_keys=2), "sort by several keys"),
        (lambda x: x.astype(int) & 3, "and of bits"),
        (lambda x: lax.round(x), "round of halves away from 0"),
        (lambda x: x**-1, "integer_pow with the exponent -1"),
        (lambda x: lax.switch(x[0, 0].astype(int), [jnp.sin] * 3, x), "cond of 3 branches"),
        (
            lambda x: lax.gather(
                x,
                jnp.int32([[0]]) + x[0, 0].astype(int),
                lax.GatherDimensionNumbers((1, 2), (), (0,)),
                (2, 4),
            ),
            "gather of windows that move",
        ),
    ],
)
def test_what_cannot_be_said_is_named(function, message):
    with pytest.raises(UserError, match=message):
        in_onnx(function, X)
