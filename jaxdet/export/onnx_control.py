"""From a JAX program to ONNX: equation by equation, with programs inside programs.

What does not depend on the input is computed here, by JAX, and becomes a constant.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from onnx import helper

from jaxdet.export import onnx_indexing, onnx_shapes  # noqa: F401 (their rules are registered)
from jaxdet.export.onnx_graph import (
    MOST_HELD,
    Graph,
    Value,
    constant,
    describe,
    named,
    named_or_constant,
    size,
)
from jaxdet.export.onnx_rules import (
    ELEMENTWISE,
    RULES,
    cast,
    choose,
    refuse,
    rule,
)
from jaxdet.types import UserError

# These say themselves what becomes of a constant.
LAZY = {"broadcast_in_dim", "iota", "reshape", "squeeze", "transpose", "copy", "stop_gradient"}
# These are the same in NumPy, to the last bit, which compiles nothing.
BY_NUMPY = {
    "add": np.add,
    "convert_element_type": np.asarray,
    "eq": np.equal,
    "ge": np.greater_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "sub": np.subtract,
}
BOOL = np.dtype(bool)
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
CALLS += ("custom_vjp_call_jaxpr", "checkpoint", "remat2")


def convert(graph: Graph, program: Any, constants: Sequence, values: Sequence[Value]) -> list:
    """Adds a program to a graph.

    Args:
        graph: where its nodes go.
        program: a jaxpr.
        constants: what it closes over: arrays, or values.
        values: its inputs.

    Returns:
        Its outputs.

    Raises:
        UserError: for a primitive that has no rule.
    """
    bound = [each if isinstance(each, Value) else constant(each) for each in constants]
    known = dict(zip((*program.constvars, *program.invars), (*bound, *values), strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            return constant(np.asarray(atom.val, atom.aval.dtype))
        return known[atom]

    for equation in program.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _fold(equation, inputs)
        if outputs is None:
            name = equation.primitive.name
            if name not in RULES:
                raise UserError(f"cannot be said in ONNX: the primitive {name} has no rule")
            outputs = RULES[name](graph, equation, *inputs)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in program.outvars]


def _fold(equation, inputs):
    """The results where they are constants, else None."""
    name = equation.primitive.name
    if not all(value.is_constant for value in inputs) or name in LAZY or _holds_program(equation):
        return None
    if name in ELEMENTWISE:
        shape = np.broadcast_shapes(*(value.shape for value in inputs))
        if name in BY_NUMPY:
            result = BY_NUMPY[name](*(value.data for value in inputs))
            return [constant(np.asarray(result, equation.outvars[0].aval.dtype))]
        arrays = [np.broadcast_to(value.data, shape) for value in inputs]
    else:
        most = max(MOST_HELD, sum(size(value.shape) for value in inputs))
        if sum(size(variable.aval.shape) for variable in equation.outvars) > most:
            return None
        shapes = [variable.aval.shape for variable in equation.invars]
        arrays = [np.broadcast_to(v.data, s) for v, s in zip(inputs, shapes, strict=True)]
    results = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    many = equation.primitive.multiple_results
    return [constant(each) for each in (results if many else [results])]


def _holds_program(equation):
    return equation.primitive.name in CALLS or any(
        hasattr(each, "eqns") or hasattr(each, "jaxpr")
        for parameter in equation.params.values()
        for each in (parameter if isinstance(parameter, tuple | list) else [parameter])
    )


@rule(*CALLS)
def _call(graph, equation, *values):
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next(equation.params[key] for key in keys if key in equation.params)
    return _inline(graph, inner, values)


def _inline(graph, inner, values):
    """Adds a jaxpr, closed or not."""
    if hasattr(inner, "consts"):
        return convert(graph, inner.jaxpr, inner.consts, values)
    return convert(graph, inner, [], values)


def _avals(variables):
    return [variable.aval for variable in variables]


def _whole(graph, values, avals):
    """Values laid out as other graphs read them, with their types."""
    return [(graph.full(v, a.shape), a.dtype) for v, a in zip(values, avals, strict=True)]


def _enter(graph, avals):
    """Names and values of the inputs of a graph within the graph."""
    inputs = [(graph.name(), aval.dtype, aval.shape) for aval in avals]
    return inputs, [named(name, shape) for name, _, shape in inputs]


def _leave(names, avals):
    names = [names] if isinstance(names, str) else names
    return [named(name, aval.shape) for name, aval in zip(names, avals, strict=True)]


@rule("while")
def _loop(graph, equation, *values):
    params, avals = equation.params, _avals(equation.outvars)
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    asked, constants, carried = values[:first], values[first:second], values[second:]
    (flag,) = params["cond_jaxpr"].out_avals  # With an axis where rows have a loop each.

    def ask(state):
        return _inline(graph, params["cond_jaxpr"], (*asked, *state))[0]

    start = [graph.full(value, aval.shape) for value, aval in zip(carried, avals, strict=True)]
    goes = ask(carried)
    with graph.body():
        inputs, (going, *state) = _enter(graph, [flag, *avals])
        after = _inline(graph, params["body_jaxpr"], (*constants, *state))
        if size(flag.shape) > 1:
            after = [_stay(graph, going, *each) for each in zip(after, state, avals, strict=True)]
        more = ask(after)
        outputs = [(_any(graph, more, flag), BOOL), *_whole(graph, [more, *after], [flag, *avals])]
        own = [(graph.name(), np.dtype(np.int64), ()), (graph.name(), BOOL, ())]
        body = graph.close_body([*own, *inputs], outputs)
    start = graph.full(goes, flag.shape), *start
    names = graph.emit("Loop", "", _any(graph, goes, flag), *start, outputs=len(start), body=body)
    return _leave(names[1:], avals)


def _any(graph, value, flag):
    """Whether any row goes on."""
    if not flag.shape:
        return value.data
    data = graph.full(cast(graph, value, np.int32), flag.shape)
    axes = np.arange(len(flag.shape))
    return cast(graph, named(graph.emit("ReduceMax", data, axes, keepdims=0), ()), BOOL).data


def _stay(graph, going, after, before, aval):
    """What is after the step, in rows that go on, else what was before."""
    spread = (*going.shape, *[1] * (len(aval.shape) - len(going.shape)))
    return choose(graph, graph.reshape(going, spread), after, before, aval.dtype)


@rule("scan")
def _scan(graph, equation, *values):
    params, inner = equation.params, equation.params["jaxpr"]
    # What is scanned has an axis more outside; the versions of JAX name the numbers differently.
    carries = _alike(equation.outvars, inner.out_avals)
    first = _alike(equation.invars, inner.in_avals) - carries
    constants, carried = values[:first], values[first : first + carries]
    ins, outs = inner.in_avals[first:], inner.out_avals
    if params["length"] == 1:
        slices = zip(values[first + carries :], ins[carries:], strict=True)
        ones = [_reshape(graph, v, (1, *aval.shape), aval.shape) for v, aval in slices]
        results = _inline(graph, inner, (*constants, *carried, *ones))
        slices = zip(results[carries:], outs[carries:], strict=True)
        ones = [_reshape(graph, v, aval.shape, (1, *aval.shape)) for v, aval in slices]
        return [*results[:carries], *ones]
    start = _whole(graph, values[first:], _avals(equation.invars)[first:])
    with graph.body():
        inputs, state = _enter(graph, ins)
        state = _inline(graph, inner, (*constants, *state))
        # The sides of what is scanned may be unknown.
        inputs = [*inputs[:carries], *(each[:2] for each in inputs[carries:])]
        body = graph.close_body(inputs, _whole(graph, state, outs))
    backwards = int(params["reverse"])
    if len(ins) == carries:  # Nothing is scanned: steps are counted.
        return _count(graph, equation, body, [data for data, _ in start])
    names = graph.emit(
        "Scan",
        *(data for data, _ in start),
        outputs=len(outs),
        body=body,
        num_scan_inputs=len(ins) - carries,
        scan_input_directions=[backwards] * (len(ins) - carries),
        scan_output_directions=[backwards] * (len(outs) - carries),
    )
    return _leave(names, _avals(equation.outvars))


def _alike(outside, inside):
    pairs = zip(_avals(outside), inside, strict=True)
    return sum(len(one.shape) == len(other.shape) for one, other in pairs)


def _count(graph, equation, body, start):
    """A loop of so many steps; it takes a body as of a scan."""
    if len(equation.outvars) > len(start):
        raise refuse(equation, "of nothing into rows")
    again, count = graph.name(), graph.name()
    body.input.insert(0, describe(again, BOOL, ()))
    body.input.insert(0, describe(count, np.int64, ()))
    body.output.insert(0, describe(f"{again}_on", BOOL, ()))
    body.node.append(helper.make_node("Identity", [again], [f"{again}_on"]))
    steps, goes = np.array(equation.params["length"], np.int64), np.array(True)
    names = graph.emit("Loop", steps, goes, *start, outputs=len(start), body=body)
    return _leave(names, _avals(equation.outvars))


def _reshape(graph, value, before, after):
    return graph.reshape(named_or_constant(graph.full(value, before), before), after)


@rule("platform_index")
def _of_no_platform(graph, equation):
    """Stands where `_choose` takes the branch of other platforms, and asks for none."""
    return [constant(np.int32(0))]


@rule("cond")
def _choose(graph, equation, which, *values):
    branches, avals = equation.params["branches"], _avals(equation.outvars)
    platforms = equation.params.get("branches_platforms")
    if platforms:  # An ONNX runtime is none that JAX knows; None has no names.
        return _inline(graph, branches[platforms.index(None)], values)
    if len(branches) != 2:
        raise refuse(equation, f"of {len(branches)} branches")
    bodies = []
    for branch in branches:
        with graph.body():
            results = _inline(graph, branch, values)
            bodies.append(graph.close_body([], _whole(graph, results, avals)))
    no, yes = bodies
    flag = cast(graph, which, np.bool_).data
    names = graph.emit("If", flag, outputs=len(avals), then_branch=yes, else_branch=no)
    return _leave(names, avals)
