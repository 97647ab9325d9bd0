"""An ONNX graph while it is written: nodes, weights, and values that are not laid out yet.

A value is kept as small as it can be. What JAX broadcasts stays as it was before,
as ONNX broadcasts by itself; what JAX transposes only says so, so that a chain of
convolutions, which ONNX wants with channels first, is transposed at its ends; and
what does not depend on the input is a constant.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

OPSET = 18  # The first whose reductions, pads and scatters are all that is wanted.
IR_VERSION = 8  # The one that came with it: older runtimes read that.
DOMAIN = "jaxdet"
# A constant of more elements than this, and than what it is made of, is made by the reader.
MOST_HELD = 2**16


class Value(NamedTuple):
    """An array of the program.

    Attributes:
        data: the name of what stands for it in the graph, or a constant.
        shape: in JAX's order of axes; 1 where the array is still to be repeated.
        axes: of the array, in the order in which the graph holds them.
    """

    data: str | np.ndarray
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the input."""
        return not isinstance(self.data, str)


def constant(array: Any) -> Value:
    """A constant."""
    array = np.asarray(array)
    return Value(array, array.shape, tuple(range(array.ndim)))


def named(name: str, shape: Sequence[int]) -> Value:
    """What the graph holds under a name, in JAX's order of axes."""
    return Value(name, tuple(shape), tuple(range(len(shape))))


def named_or_constant(data: str | np.ndarray, shape: Sequence[int]) -> Value:
    """The value of what is laid out in JAX's order."""
    return named(data, shape) if isinstance(data, str) else constant(data)


class Graph:
    """Nodes in the order in which they run, and the constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[Any, onnx.TensorProto] = {}
        self._count = 0

    def name(self) -> str:
        """A new name."""
        self._count += 1
        return f"v{self._count}"

    def emit(
        self,
        op: str,
        *inputs: str | np.ndarray,
        outputs: int | Sequence[str] = 1,
        **attributes: Any,
    ) -> str | list[str]:
        """Adds a node; gives the name of what it computes, or several.

        Args:
            op: an ONNX operator.
            *inputs: names, or constants.
            outputs: how many there are, or their names.
            **attributes: of the operator.
        """
        names = [value if isinstance(value, str) else self._hold(value) for value in inputs]
        if isinstance(outputs, int):
            outputs = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, outputs, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def arrange(
        self, value: Value, axes: Sequence[int], shape: Sequence[int] | None = None
    ) -> str | np.ndarray:
        """The value with its axes in an order; repeated to `shape`, in JAX's order, if given."""
        data, order = value.data, [value.axes.index(axis) for axis in axes]
        if order != list(range(len(order))):
            transpose = np.transpose if value.is_constant else self._transpose
            data = transpose(data, order)
        if shape is None or tuple(shape) == value.shape:
            return data
        sides = [int(shape[axis]) for axis in axes]
        if value.is_constant and size(sides) <= MOST_HELD:
            return np.broadcast_to(data, sides)
        return self.emit("Expand", data, _int64(sides))

    def full(self, value: Value, shape: Sequence[int]) -> str | np.ndarray:
        """The whole value, in JAX's order of axes."""
        return self.arrange(value, range(len(shape)), shape)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """A value of which nothing is to be repeated any more, in another shape."""
        data = self.arrange(value, range(len(value.shape)))
        if value.is_constant:
            return constant(data.reshape(shape))
        if value.shape == tuple(shape):
            return named(data, shape)
        return named(self.emit("Reshape", data, _int64(shape)), shape)

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes are added to a graph within this one meanwhile."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def close_body(
        self, inputs: Sequence[tuple], outputs: Sequence[tuple[Any, np.dtype]]
    ) -> onnx.GraphProto:
        """The graph of the nodes added since `body`; each output gets a node of its own."""
        results = [self.emit("Identity", data) for data, _ in outputs]
        infos = [describe(name, dtype) for name, (_, dtype) in zip(results, outputs, strict=True)]
        nodes = _needed(self.nodes, results)
        return helper.make_graph(nodes, "body", [describe(*each) for each in inputs], infos)

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        properties: dict[str, str],
    ) -> onnx.ModelProto:
        """The whole model; what no output needs is left out."""
        nodes = _needed(self.nodes, [output.name for output in outputs])
        read = set().union(*map(_reads, nodes))
        constants = [each for each in self._constants.values() if each.name in read]
        graph = helper.make_graph(nodes, DOMAIN, inputs, outputs, constants)
        model = helper.make_model(
            graph,
            producer_name=DOMAIN,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, properties)
        return model

    def _transpose(self, name: str, order: Sequence[int]) -> str:
        return self.emit("Transpose", name, perm=order)

    def _hold(self, array: np.ndarray) -> str:
        """The name of a constant; equal ones are held once."""
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), self.name())
            # The helper makes a vector of what has no axis.
            self._constants[key] = tensor if array.ndim else _scalar(array, tensor.name)
        return self._constants[key].name


def describe(name: str, dtype: Any, shape: Sequence[int | str] | None = None) -> Any:
    """What ONNX wants to know of an input or output; texts are sizes that are not fixed."""
    return helper.make_tensor_value_info(name, element_type(dtype), shape)


def element_type(dtype: Any) -> int:
    """ONNX's number of a type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def size(shape: Sequence[int]) -> int:
    """Elements of an array."""
    return math.prod(shape)


def _int64(numbers: Any) -> np.ndarray:
    return np.array([int(number) for number in numbers], np.int64)


def _scalar(array: np.ndarray, name: str) -> onnx.TensorProto:
    return helper.make_tensor(name, element_type(array.dtype), [], array.tobytes(), raw=True)


def _needed(nodes: Sequence[onnx.NodeProto], results: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the results depend on."""
    wanted, kept = set(results), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= _reads(node)
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> set[str]:
    """All that a node, or a graph within it, reads."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner = [_reads(each) for body in bodies for each in body.node]
    return set(node.input).union(*inner)
