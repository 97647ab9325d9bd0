"""A program as an ONNX file, with a writer of our own for the primitives that it uses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from jaxdet.export import onnx_control
from jaxdet.export.onnx_graph import Graph, describe, named
from jaxdet.export.program import DYNAMIC, OUTPUTS, Program, texts
from jaxdet.types import UserError

MOST_BYTES = 2**31 - 1  # A protocol buffer is not larger.


def write(program: Program, path: Path) -> list[Path]:
    """Writes the program; gives its path.

    Raises:
        UserError: if it is too large, or uses a primitive that has no rule.
    """
    model = to_model(program)
    if model.ByteSize() > MOST_BYTES:
        raise UserError(f"{path}: ONNX files of more than 2 GB are not written")
    path.write_bytes(model.SerializeToString())
    return [path]


def to_model(program: Program) -> onnx.ModelProto:
    """The program as an ONNX model.

    Raises:
        UserError: for a primitive that has no rule.
    """
    # Sides that are not known stand for any: the program reads them from its inputs.
    batch = 2 if program.batch == DYNAMIC else program.batch
    height, width = program.size or (64, 64)
    pixels = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    graph = Graph()
    inputs = [named("pixels", pixels.shape)]
    if program.size is None:
        side = jax.ShapeDtypeStruct((), jnp.int32)
        closed = jax.make_jaxpr(lambda *values: tuple(program.call(*values)))(pixels, side, side)
        inputs += [_side(graph, axis) for axis in (1, 2)]
    else:
        closed = jax.make_jaxpr(lambda p: tuple(program.call(p, height, width)))(pixels)
    values = onnx_control.convert(graph, closed.jaxpr, closed.consts, inputs)

    avals = [variable.aval for variable in closed.jaxpr.outvars]
    infos = []
    rows = "batch" if program.batch == DYNAMIC else program.batch
    for name, value, aval in zip(OUTPUTS, values, avals, strict=True):
        graph.emit("Identity", graph.full(value, aval.shape), outputs=[name])
        infos.append(describe(name, aval.dtype, (rows, *aval.shape[1:])))
    shape = (rows, *(program.size or ("height", "width")), 3)
    return graph.model([describe("pixels", np.uint8, shape)], infos, texts(program.about))


def _side(graph: Graph, axis: int):
    """The length of an axis of the input."""
    shape = graph.emit("Shape", "pixels", start=axis, end=axis + 1)
    length = graph.emit("Squeeze", shape)
    return named(graph.emit("Cast", length, to=onnx.TensorProto.INT32), ())
