"""How gathering, scattering and sorting are said in ONNX; see `onnx_rules.py`."""

from typing import Any, NamedTuple

import numpy as np

from jaxdet.export.onnx_graph import Graph, Value, constant, named, named_or_constant
from jaxdet.export.onnx_rules import cast, elementwise, refuse, rule

FILL_OR_DROP, CLIP = "FILL_OR_DROP", "CLIP"


class _Window(NamedTuple):
    """Which axes of an array are indexed, in the words of a gather.

    Attributes:
        batch: axes that array and indices share.
        indexed: axes that the indices point into, in the order of their numbers.
        rest: axes that are taken whole.
        index_batch: axes of the indices that are shared.
        index_rest: their other axes, but the last, which holds the numbers.
    """

    batch: list[int]
    indexed: list[int]
    rest: list[int]
    index_batch: list[int]
    index_rest: list[int]


def _window(equation, numbers, batch, index_batch, indexed, gone, index_rank):
    batch, indexed, index_batch = ([int(i) for i in each] for each in (batch, indexed, index_batch))
    if sorted(indexed) != sorted(int(i) for i in gone):
        raise refuse(equation, "of windows that move")
    rank = len(equation.invars[0].aval.shape)
    rest = [i for i in range(rank) if i not in (*batch, *indexed)]
    others = [i for i in range(index_rank - 1) if i not in index_batch]
    return _Window(batch, indexed, rest, index_batch, others)


@rule("gather")
def _gather(graph, equation, array, indices):
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"].name
    shape, index_shape = (variable.aval.shape for variable in equation.invars)
    window = _window(
        equation,
        numbers,
        numbers.operand_batching_dims,
        numbers.start_indices_batching_dims,
        numbers.start_index_map,
        numbers.collapsed_slice_dims,
        len(index_shape),
    )
    taken = [equation.params["slice_sizes"][i] for i in window.rest]
    if taken != [shape[i] for i in window.rest]:
        raise refuse(equation, "of parts of a row")
    out_shape = equation.outvars[0].aval.shape
    if mode not in (FILL_OR_DROP, CLIP) and len(window.indexed) == 1 and not window.batch:
        return _take(graph, array, indices, window, numbers, out_shape, equation)

    places = Value(graph.full(indices, index_shape), index_shape, tuple(range(len(index_shape))))
    inside = None
    if mode in (FILL_OR_DROP, CLIP):
        last = _numbers(shape, window, len(index_shape)) - 1
        inside = _inside(graph, places, last, index_shape) if mode == FILL_OR_DROP else None
        places = elementwise(
            graph, "Min", elementwise(graph, "Max", places, _zero()), constant(last)
        )
    order = (*window.index_batch, *window.index_rest, len(index_shape) - 1)
    data = graph.emit(
        "GatherND",
        graph.arrange(array, (*window.batch, *window.indexed, *window.rest), shape),
        graph.arrange(cast(graph, places, np.int64), order),
        batch_dims=len(window.batch),
    )
    out_axes = _out_axes(window, numbers.offset_dims, len(out_shape))
    result = Value(data, out_shape, out_axes)
    if inside is None:
        return result
    spread = [1] * len(out_shape)
    free = [i for i in range(len(out_shape)) if i not in numbers.offset_dims]
    for place, side in zip(free, index_shape[:-1], strict=True):
        spread[place] = side
    filling = _filling(equation.params["fill_value"], equation.outvars[0].aval.dtype)
    return elementwise(graph, "Where", graph.reshape(inside, spread), result, constant(filling))


def _take(graph, array, indices, window, numbers, out_shape, equation):
    """Whole rows along one axis: nothing else of the array's shape needs to be known."""
    (axis,), index_shape = window.indexed, equation.invars[1].aval.shape
    data = graph.full(array, equation.invars[0].aval.shape)
    whole = named_or_constant(graph.full(indices, index_shape), index_shape)
    places = graph.reshape(whole, index_shape[:-1])
    name = graph.emit("Gather", data, places.data, axis=axis)
    # In ONNX the places stand where the axis was.
    free = [i for i in range(len(out_shape)) if i not in numbers.offset_dims]
    offset = [int(i) for i in numbers.offset_dims]
    return Value(name, out_shape, (*offset[:axis], *free, *offset[axis:]))


def _out_axes(window, offset_dims, rank):
    """Axes of the result in ONNX's order: shared ones, those of the indices, the rest."""
    free = [i for i in range(rank) if i not in offset_dims]
    first = [free[i] for i in (*window.index_batch, *window.index_rest)]
    return (*first, *(int(i) for i in offset_dims))


def _numbers(shape, window, rank):
    """Sizes of the indexed axes, as they stand beside the indices."""
    sizes = np.int32([shape[i] for i in window.indexed])
    return sizes.reshape(*[1] * (rank - 1), len(sizes))


def _inside(graph: Graph, places: Value, last: np.ndarray, index_shape: Any) -> Value:
    """Which indices point into the array, all of their numbers."""
    low = elementwise(graph, "GreaterOrEqual", places, _zero())
    high = elementwise(graph, "LessOrEqual", places, constant(last))
    each = cast(graph, elementwise(graph, "And", low, high), np.int32)
    data = graph.arrange(each, range(len(index_shape)))
    least = graph.emit("ReduceMin", data, np.int64([-1]), keepdims=0)
    return cast(graph, named(least, index_shape[:-1]), np.bool_)


def _zero() -> Value:
    return constant(np.int32(0))


def _filling(value, dtype):
    if value is None:
        if dtype == np.bool_:
            value = True
        elif np.issubdtype(dtype, np.floating):
            value = np.nan
        else:
            info = np.iinfo(dtype)
            value = info.min if info.min < 0 else info.max
    return np.array(value, dtype)


SCATTERS = {
    "scatter": "none",
    "scatter-add": "add",
    "scatter_add": "add",
    "scatter-max": "max",
    "scatter_max": "max",
    "scatter-min": "min",
    "scatter_min": "min",
    "scatter-mul": "mul",
    "scatter_mul": "mul",
}


@rule(*SCATTERS)
def _scatter(graph, equation, array, indices, updates):
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"].name
    shape, index_shape, update_shape = (variable.aval.shape for variable in equation.invars)
    window = _window(
        equation,
        numbers,
        numbers.operand_batching_dims,
        numbers.scatter_indices_batching_dims,
        numbers.scatter_dims_to_operand_dims,
        numbers.inserted_window_dims,
        len(index_shape),
    )
    places = Value(graph.full(indices, index_shape), index_shape, tuple(range(len(index_shape))))
    drop = mode == FILL_OR_DROP
    order = (*window.batch, *window.indexed, *window.rest)
    target = graph.arrange(array, order, shape)
    sides = [shape[i] for i in order]
    if drop or mode == CLIP:
        sizes = _numbers(shape, window, len(index_shape))
        last = sizes - 1
        outside = elementwise(graph, "Not", _inside(graph, places, last, index_shape))
        places = elementwise(
            graph, "Min", elementwise(graph, "Max", places, _zero()), constant(last)
        )
    if drop:  # What points outside goes to a line behind the last one, which is cut off.
        spread = graph.reshape(outside, (*index_shape[:-1], 1))
        places = elementwise(graph, "Where", spread, constant(sizes), places)
        more = [int(i in window.indexed) for i in order]
        target = graph.emit("Pad", target, np.int64([0] * len(order) + more))
    index_order = (*window.index_batch, *window.index_rest, len(index_shape) - 1)
    numbers_at = graph.arrange(cast(graph, places, np.int64), index_order)
    if window.batch:
        numbers_at = _with_batch(graph, numbers_at, [index_shape[i] for i in index_order], window)
    windows = [int(i) for i in numbers.update_window_dims]
    free = [i for i in range(len(update_shape)) if i not in windows]
    first = [free[i] for i in (*window.index_batch, *window.index_rest)]
    new = graph.arrange(updates, (*first, *windows), update_shape)
    reduction = SCATTERS[equation.primitive.name]
    data = graph.emit("ScatterND", target, numbers_at, new, reduction=reduction)
    if drop:
        axes = np.arange(len(order))
        data = graph.emit("Slice", data, np.zeros_like(axes), np.int64(sides), axes)
    return Value(data, tuple(shape), tuple(order))


def _with_batch(graph, places, sides, window):
    """Indices that say the shared axes, too: ONNX's scatter knows none."""
    grid = np.indices(sides[: len(window.batch)])
    parts = []
    for numbers in grid:
        spread = numbers.reshape(*numbers.shape, *[1] * (len(sides) - numbers.ndim))
        parts.append(np.broadcast_to(spread, (*sides[:-1], 1)).astype(np.int64))
    return graph.emit("Concat", *parts, places, axis=-1)


@rule("sort")
def _sort(graph, equation, *values):
    if equation.params["num_keys"] != 1:
        raise refuse(equation, "by several keys")
    axis, aval = equation.params["dimension"], equation.invars[0].aval
    key = cast(graph, values[0], np.int32) if aval.dtype == np.bool_ else values[0]
    length = np.int64([aval.shape[axis]])
    data = graph.full(key, aval.shape)
    # Of equal keys the first comes first, as in a stable sort.
    best, order = graph.emit("TopK", data, length, axis=axis, largest=0, outputs=2)
    first = named(best, aval.shape)
    results = [cast(graph, first, np.bool_) if aval.dtype == np.bool_ else first]
    for value in values[1:]:
        whole = graph.full(value, aval.shape)
        results.append(named(graph.emit("GatherElements", whole, order, axis=axis), aval.shape))
    return results


@rule("top_k")
def _top_k(graph, equation, value):
    aval = equation.invars[0].aval
    axis = equation.params.get("axis", len(aval.shape) - 1)
    count = np.int64([equation.params["k"]])
    data = graph.full(value, aval.shape)
    best, places = graph.emit("TopK", data, count, axis=int(axis), outputs=2)
    shape = equation.outvars[0].aval.shape
    return [named(best, shape), cast(graph, named(places, shape), np.int32)]
