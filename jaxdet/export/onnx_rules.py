"""How each primitive of JAX is said in ONNX: what computes each element by itself.

A rule is `(graph, equation, *values) -> value or values`. Shapes, sums and products are in
`onnx_shapes.py`, what moves data about by indices is in `onnx_indexing.py`, and what contains
programs in `onnx_control.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jaxdet.export.onnx_graph import Graph, Value, constant, element_type, size
from jaxdet.types import UserError

RULES: dict[str, Callable] = {}

# Of one array, or of two that broadcast.
SAME_OP = {
    "abs": "Abs",
    "add": "Add",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
OF_BOOLEANS = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}
# These compute each element by itself, so that a constant of theirs need not be repeated.
ELEMENTWISE = {
    *SAME_OP,
    *OF_BOOLEANS,
    *"clamp convert_element_type integer_pow is_finite max ne rem round rsqrt".split(),
    *"select_n square sub".split(),
}


def rule(*names: str) -> Callable:
    """Says which primitives a function is for."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def refuse(equation: Any, reason: str) -> UserError:
    """What to raise where a primitive is used in a way that has no rule."""
    return UserError(f"cannot be said in ONNX: {equation.primitive.name} {reason}")


def elementwise(graph: Graph, op: str, *values: Value, **attributes: Any) -> Value:
    """Applies an ONNX operator that broadcasts, in the order of axes of its largest input."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    plain = tuple(range(len(shape)))
    held = [v for v in values if not v.is_constant and len(v.shape) == len(shape)]
    axes = max(held, key=lambda v: size(v.shape)).axes if held else plain
    inputs = [graph.arrange(v, axes) if v.shape else v.data for v in values]
    return Value(graph.emit(op, *inputs, **attributes), shape, axes)


def cast(graph: Graph, value: Value, dtype: Any) -> Value:
    """A value of another type."""
    return elementwise(graph, "Cast", value, to=element_type(dtype))


def _apply(op, graph, equation, *values):
    return elementwise(graph, op, *values)


for _name, _op in SAME_OP.items():
    RULES[_name] = partial(_apply, _op)


@rule(*OF_BOOLEANS)
def _logic(graph, equation, *values):
    name = equation.primitive.name
    if equation.outvars[0].aval.dtype != np.bool_:
        raise refuse(equation, "of bits")
    return elementwise(graph, OF_BOOLEANS[name], *values)


@rule("sub")
def _sub(graph, equation, left, right):
    # Runtimes join an addition to the convolution before it.
    if right.is_constant and np.issubdtype(right.data.dtype, np.floating):
        return elementwise(graph, "Add", left, constant(-right.data))
    return elementwise(graph, "Sub", left, right)


@rule("max")
def _max(graph, equation, left, right):
    # Runtimes join this one to a convolution, too.
    for one, other in ((left, right), (right, left)):
        if other.is_constant and other.data.dtype == np.float32 and not other.data.any():
            if size(other.shape) == 1:
                return elementwise(graph, "Relu", one)
    return elementwise(graph, "Max", left, right)


@rule("ne")
def _ne(graph, equation, *values):
    return elementwise(graph, "Not", elementwise(graph, "Equal", *values))


@rule("rem")
def _rem(graph, equation, *values):
    return elementwise(graph, "Mod", *values, fmod=1)  # With the dividend's sign.


@rule("rsqrt")
def _rsqrt(graph, equation, value):
    return elementwise(graph, "Reciprocal", elementwise(graph, "Sqrt", value))


@rule("log2")
def _log2(graph, equation, value):
    inverse = constant(np.array(1 / np.log(2), equation.invars[0].aval.dtype))
    return elementwise(graph, "Mul", elementwise(graph, "Log", value), inverse)


@rule("square")
def _square(graph, equation, value):
    return elementwise(graph, "Mul", value, value)


@rule("integer_pow")
def _integer_pow(graph, equation, value):
    exponent, result = equation.params["y"], value
    if exponent < 1:
        raise refuse(equation, f"with the exponent {exponent}")
    for _ in range(exponent - 1):
        result = elementwise(graph, "Mul", result, value)
    return result


@rule("is_finite")
def _is_finite(graph, equation, value):
    odd = [elementwise(graph, op, value) for op in ("IsNaN", "IsInf")]
    return elementwise(graph, "Not", elementwise(graph, "Or", *odd))


@rule("round")
def _round(graph, equation, value):
    if int(equation.params["rounding_method"]) != 1:
        raise refuse(equation, "of halves away from 0")
    return elementwise(graph, "Round", value)


@rule("clamp")
def _clamp(graph, equation, low, value, high):
    return elementwise(graph, "Min", elementwise(graph, "Max", value, low), high)


@rule("select_n")
def _select(graph, equation, which, *cases):
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise refuse(equation, f"among {len(cases)} by numbers")
    return choose(graph, which, cases[1], cases[0], equation.outvars[0].aval.dtype)


def choose(graph: Graph, which: Value, yes: Value, no: Value, dtype: np.dtype) -> Value:
    """One of two, element by element."""
    if dtype != np.bool_:
        return elementwise(graph, "Where", which, yes, no)
    # onnxruntime has no Where of booleans on a CPU.
    chosen = elementwise(graph, "And", which, yes)
    other = elementwise(graph, "And", elementwise(graph, "Not", which), no)
    return elementwise(graph, "Or", chosen, other)


@rule("convert_element_type")
def _convert(graph, equation, value):
    dtype = equation.params["new_dtype"]
    return value if dtype == equation.invars[0].aval.dtype else cast(graph, value, dtype)


@rule("copy", "copy_p", "reduce_precision", "stop_gradient")
def _same(graph, equation, value):
    return value


@rule("optimization_barrier")
def _all_the_same(graph, equation, *values):
    return list(values)
