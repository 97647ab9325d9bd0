"""How shapes, reductions and products are said in ONNX; see `onnx_rules.py`."""

import numpy as np

from jaxdet.export.onnx_graph import Value, constant, named, named_or_constant, size
from jaxdet.export.onnx_rules import cast, refuse, rule


@rule("iota")
def _iota(graph, equation):
    shape, dimension = equation.params["shape"], equation.params["dimension"]
    numbers = np.arange(shape[dimension], dtype=equation.params["dtype"])
    return constant(numbers.reshape([-1 if i == dimension else 1 for i in range(len(shape))]))


@rule("broadcast_in_dim")
def _broadcast(graph, equation, value):
    places = equation.params["broadcast_dimensions"]
    shape = [1] * len(equation.params["shape"])
    for place, side in zip(places, value.shape, strict=True):
        shape[place] = side
    if tuple(places) == tuple(range(len(shape))):
        return value
    if value.is_constant:
        return graph.reshape(value, shape)
    data = graph.arrange(value, range(len(value.shape)))
    added = [axis for axis in range(len(shape)) if axis not in places]
    return named(graph.emit("Unsqueeze", data, np.int64(added)), shape)


@rule("reshape")
def _reshape(graph, equation, value):
    before, shape = equation.invars[0].aval.shape, equation.params["new_sizes"]
    if size(value.shape) == 1:
        return graph.reshape(value, [1] * len(shape))
    data = graph.full(value, before)
    whole = constant(data) if not isinstance(data, str) else named(data, before)
    return graph.reshape(whole, shape)


@rule("squeeze")
def _squeeze(graph, equation, value):
    gone = equation.params["dimensions"]
    return graph.reshape(value, [s for i, s in enumerate(value.shape) if i not in gone])


@rule("expand_dims")
def _expand_dims(graph, equation, value):
    shape = list(value.shape)
    for place in sorted(equation.params["dimensions"]):
        shape.insert(place, 1)
    return graph.reshape(value, shape)


@rule("transpose")
def _transpose(graph, equation, value):
    order = equation.params["permutation"]
    shape = tuple(value.shape[axis] for axis in order)
    if value.is_constant:
        return constant(value.data.transpose(order))
    return Value(value.data, shape, tuple(order.index(axis) for axis in value.axes))


@rule("slice")
def _slice(graph, equation, value):
    start, stop = equation.params["start_indices"], equation.params["limit_indices"]
    step = equation.params["strides"] or [1] * len(start)
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    whole = [(0, side, 1) for side in before]
    cut = [i for i, each in enumerate(zip(start, stop, step, strict=True)) if each != whole[i]]
    cut = [i for i in cut if value.shape[i] > 1 or before[i] == 1]  # The others are repeated.
    shape = tuple(after[i] if i in cut else side for i, side in enumerate(value.shape))
    if not cut:
        return value
    numbers = ([each[i] for i in cut] for each in (start, stop))
    places = [value.axes.index(i) for i in cut]
    arrays = [np.int64(each) for each in (*numbers, places, [step[i] for i in cut])]
    return Value(graph.emit("Slice", value.data, *arrays), shape, value.axes)


@rule("rev")
def _rev(graph, equation, value):
    axes = [i for i in equation.params["dimensions"] if value.shape[i] > 1]
    ones, places = np.ones(len(axes), np.int64), [value.axes.index(i) for i in axes]
    ends = ones * np.iinfo(np.int64).min
    data = graph.emit("Slice", value.data, -ones, ends, np.int64(places), -ones)
    return Value(data, value.shape, value.axes)


@rule("pad")
def _pad(graph, equation, value, filling):
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise refuse(equation, "between elements")
    axes = value.axes
    data = graph.arrange(value, axes, equation.invars[0].aval.shape)
    amounts = np.int64([each[axis] for each in (low, high) for axis in axes])
    shape = equation.outvars[0].aval.shape
    return Value(graph.emit("Pad", data, amounts, filling.data), shape, axes)


@rule("concatenate")
def _concatenate(graph, equation, *values):
    held = [value for value in values if not value.is_constant]
    axes = max(held or values, key=lambda v: size(v.shape)).axes
    shapes = [variable.aval.shape for variable in equation.invars]
    parts = [graph.arrange(v, axes, s) for v, s in zip(values, shapes, strict=True)]
    place = axes.index(equation.params["dimension"])
    return Value(graph.emit("Concat", *parts, axis=place), equation.outvars[0].aval.shape, axes)


@rule("stack")
def _stack(graph, equation, *values):
    axis, shape = equation.params["axis"], equation.outvars[0].aval.shape
    one = [1 if i == axis else side for i, side in enumerate(shape)]
    before = equation.invars[0].aval.shape
    wholes = [named_or_constant(graph.full(value, before), before) for value in values]
    parts = [graph.reshape(whole, one).data for whole in wholes]
    return named(graph.emit("Concat", *parts, axis=axis), shape)


@rule("unstack")
def _unstack(graph, equation, value):
    axis, data = equation.params["axis"], graph.full(value, equation.invars[0].aval.shape)
    return [
        named(graph.emit("Gather", data, np.array(place, np.int64), axis=axis), variable.aval.shape)
        for place, variable in enumerate(equation.outvars)
    ]


@rule("split")
def _split(graph, equation, value):
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    data = graph.arrange(value, value.axes, equation.invars[0].aval.shape)
    place, count = value.axes.index(axis), len(sizes)
    names = graph.emit("Split", data, np.int64(sizes), axis=place, outputs=count)
    names = names if count > 1 else [names]
    shapes = [variable.aval.shape for variable in equation.outvars]
    return [Value(name, shape, value.axes) for name, shape in zip(names, shapes, strict=True)]


@rule("reduce_max", "reduce_min", "reduce_sum", "reduce_prod", "reduce_or", "reduce_and")
def _reduce(graph, equation, value):
    name, aval = equation.primitive.name, equation.invars[0].aval
    axes, shape = np.int64(equation.params["axes"]), equation.outvars[0].aval.shape
    logical = aval.dtype == np.bool_
    op = {"or": "Max", "and": "Min"}.get(name[7:], name[7:].capitalize())
    data = graph.full(cast(graph, value, np.uint8) if logical else value, aval.shape)
    result = named(graph.emit(f"Reduce{op}", data, axes, keepdims=0), shape)
    return cast(graph, result, np.bool_) if logical else result


@rule("argmax", "argmin")
def _arg(graph, equation, value):
    (axis,) = equation.params["axes"]
    op = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    data = graph.full(value, equation.invars[0].aval.shape)
    result = graph.emit(op, data, axis=int(axis), keepdims=0)
    return cast(
        graph, named(result, equation.outvars[0].aval.shape), equation.params["index_dtype"]
    )


@rule("cumsum")
def _cumsum(graph, equation, value):
    aval, reverse = equation.invars[0].aval, int(equation.params["reverse"])
    data = graph.full(value, aval.shape)
    axis = np.array(equation.params["axis"], np.int64)
    return named(graph.emit("CumSum", data, axis, reverse=reverse), aval.shape)


@rule("conv_general_dilated")
def _convolve(graph, equation, image, kernel):
    params, shape = equation.params, equation.outvars[0].aval.shape
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) - {1}:
        raise refuse(equation, "of a transposed convolution")
    specs = params["dimension_numbers"]
    low, high = zip(*params["padding"], strict=True)
    result = graph.emit(
        "Conv",
        graph.arrange(image, specs.lhs_spec, equation.invars[0].aval.shape),
        graph.arrange(kernel, specs.rhs_spec, equation.invars[1].aval.shape),
        strides=params["window_strides"],
        pads=[*low, *high],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return Value(result, shape, tuple(specs.out_spec))


@rule("dot_general")
def _multiply(graph, equation, left, right):
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_shape, right_shape = (variable.aval.shape for variable in equation.invars)
    shape = equation.outvars[0].aval.shape
    if _is_pointwise(left, left_sum, right_shape, left_batch):
        # A convolution of one pixel, on what is laid out for the others already.
        order = (1, 0) if tuple(right_sum) == (0,) else (0, 1)
        sides = (shape[-1], left_shape[-1])
        kernel = named_or_constant(graph.arrange(right, order, right_shape), sides)
        kernel = graph.reshape(kernel, (*sides, 1, 1))
        data = graph.emit("Conv", graph.arrange(left, left.axes, left_shape), kernel.data)
        return Value(data, shape, left.axes)
    left_free = [i for i in range(len(left_shape)) if i not in (*left_batch, *left_sum)]
    right_free = [i for i in range(len(right_shape)) if i not in (*right_batch, *right_sum)]

    def matrix(value, full, *groups):
        order = [int(axis) for group in groups for axis in group]
        data = graph.arrange(value, order, full)
        now = [full[axis] for axis in order]
        sides = [full[axis] for axis in groups[0]]
        sides += [size([full[axis] for axis in group]) for group in groups[1:]]
        return graph.reshape(named_or_constant(data, now), sides)

    one = matrix(left, left_shape, left_batch, left_free, left_sum)
    other = matrix(right, right_shape, right_batch, right_sum, right_free)
    product = graph.emit("MatMul", one.data, other.data)
    sides = (*one.shape[:-1], other.shape[-1])
    return graph.reshape(named(product, sides), shape)


def _is_pointwise(left, left_sum, right_shape, left_batch):
    channels_first = left.axes == (0, 3, 1, 2)
    return channels_first and tuple(left_sum) == (3,) and len(right_shape) == 2 and not left_batch
