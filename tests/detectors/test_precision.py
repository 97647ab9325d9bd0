"""What stays float32 in a bfloat16 detector: docs/precision.md, row by row."""

import collections

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import SETTINGS, build, draw_batch

from jaxdet.training import state
from jaxdet.training.optimizer import build_optimizer

# What bfloat16 maps go through: products, sums of two, the larger of two, and moving about.
IN_HALF = {
    *("conv_general_dilated", "dot_general", "add", "max", "logistic", "mul"),
    *("broadcast_in_dim", "concatenate", "gather", "optimization_barrier", "pad", "reshape"),
    *("slice", "squeeze", "transpose"),
}
PRODUCTS = {"conv_general_dilated", "dot_general"}
OUTPUTS = {  # The last layers of the heads: what they give is decided on.
    "rpn": {"rpn_head"},  # In one product for both.
    "retinanet": {"logits", "deltas"},
    "fast_rcnn": {"logits", "deltas"},
    "faster_rcnn": {"rpn_head", "logits", "deltas"},
    "yolox": {f"{name}{level}" for name in ("boxes", "logits", "objectness") for level in range(3)},
}


@pytest.fixture(scope="module", params=SETTINGS)
def half(request):
    """The loss of a bfloat16 detector with running statistics, traced."""
    name = request.param
    blocks = {"blocks": {"norm": "batch", "activation": "silu"}}
    norm = blocks if name == "yolox" else {"backbone": {"norm": "batch"}}
    detector, batch = build(name, dtype="bfloat16", **norm), draw_batch(name, 2)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
    trace = jax.make_jaxpr(detector.loss, return_shape=True)
    program, result = trace(variables, batch, jax.random.key(0))
    return name, detector, batch, variables, program.jaxpr, result


def types_of(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def equations(jaxpr, outside=""):
    """All equations, those of programs within included, and the part of the network of each."""
    for equation in jaxpr.eqns:
        place = f"{outside}/{equation.source_info.name_stack}"
        values = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        within = [value for value in values if is_program(value)]
        for program in within:
            yield from equations(getattr(program, "jaxpr", program), place)
        if not within:
            yield equation, [part for part in place.split("/") if part]


def is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def floats_of(equation):
    values = [*equation.invars, *equation.outvars]
    return {str(v.aval.dtype) for v in values if jnp.issubdtype(v.aval.dtype, jnp.floating)}


def test_parameters_statistics_losses_and_boxes_are_float32(half):
    _, detector, batch, variables, _, (total, (metrics, statistics)) = half
    assert variables.keys() == {"params", "batch_stats"}
    for tree in (variables, total, metrics.means, statistics):
        assert types_of(tree) == {"float32"}
    found = jax.eval_shape(detector.predict, variables, batch.images)
    assert types_of((found.boxes, found.scores)) == {"float32"}


def test_in_bfloat16_nothing_is_summed_divided_or_raised_but_inside_products(half):
    _, _, _, _, program, _ = half
    used = {
        equation.primitive.name
        for equation, _ in equations(program)
        if "bfloat16" in floats_of(equation)
    }
    assert "conv_general_dilated" in used or "dot_general" in used
    assert used - {"convert_element_type"} <= IN_HALF


def test_the_gradient_sums_no_more_in_bfloat16_than_the_pixels_of_an_upsampling(half):
    """A sum of many numbers stays where it is once they are less than 1/256 of it."""
    _, detector, batch, variables, _, _ = half

    def loss(params, others):
        return detector.loss(others | {"params": params}, batch, jax.random.key(0))[0]

    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], variables).jaxpr
    for equation, place in equations(program):
        name = equation.primitive.name
        if "bfloat16" in floats_of(equation) and name.startswith(("reduce", "cum", "scatter")):
            assert name == "reduce_precision" or _summed(equation) <= 4, (name, place)


def _summed(equation):
    return equation.invars[0].aval.size // max(equation.outvars[0].aval.size, 1)


def test_products_are_bfloat16_but_for_the_outputs_of_the_heads(half):
    name, _, _, _, program, _ = half
    products = collections.defaultdict(set)
    for equation, place in equations(program):
        if equation.primitive.name in PRODUCTS:
            products[str(equation.outvars[0].aval.dtype)].add(place[-1])
            assert types_of([v.aval for v in equation.invars]) in ({"bfloat16"}, {"float32"})
    assert products.keys() == {"bfloat16", "float32"}
    assert products["float32"] == OUTPUTS[name]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_averages_and_the_norm_of_the_gradient_are_float32(name):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    tx, _ = build_optimizer(
        learning_rate=0.1, base_batch_size=1, batch_size=1, num_steps=2, name=name
    )
    first = state.create({"params": params}, tx, ema=True)
    updates, opt_state = tx.update(params, first.opt_state, params)
    moved = optax.apply_updates(params, updates)
    for tree in (first.ema, opt_state, moved):
        assert types_of(tree) <= {"float32", "int32"} and "float32" in types_of(tree)
