"""A program as a file for JAX: on CPUs, GPUs and TPUs, without jaxdet.

Beside the file lies a JSON of the same name with what its reader has to know.
"""

import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from jaxdet.export.program import DYNAMIC, Program

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: Path) -> list[Path]:
    """Writes the program and its description; gives their paths."""

    def run(pixels):
        if program.size is not None:
            return tuple(program.call(pixels, *program.size))
        sides = (jnp.asarray(side, jnp.int32) for side in pixels.shape[1:3])
        return tuple(program.call(pixels, *sides))

    batch, height, width = jax.export.symbolic_shape("batch, height, width")
    batch = batch if program.batch == DYNAMIC else program.batch
    shape = (batch, *(program.size or (height, width)), 3)
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(pixels)
    path.write_bytes(exported.serialize())
    about = path.with_name(path.name + ".json")
    about.write_text(json.dumps(program.about, indent=2, ensure_ascii=False) + "\n")
    return [path, about]
