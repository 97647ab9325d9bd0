"""Saves what a YOLOX decides on, before its suppression, as a file that runs wherever JAX does.

    python examples/export_detector.py --model=runs/quickstart_yolox --out=raw.jax

`jaxdet export` writes whole detectors (docs/export.md). This is for a suppression of one's
own: it takes any number of uint8 RGB canvases and each image's (height, width) on them, and
gives class logits, raw boxes and objectness of all grid points (`yolox.Outputs`).

    program = jax.export.deserialize(bytearray(pathlib.Path("raw.jax").read_bytes()))
    logits, offsets, objectness = program.call(pixels, sizes)

Writing and reading the file takes flatbuffers (`pip install -e ".[export]"`).
"""

import argparse
import pathlib

import jax
import jax.export
import jax.numpy as jnp

from jaxdet import loading
from jaxdet.types import Images, UserError


def export(model: str) -> bytes:
    """A model's raw outputs as a serialised program.

    Raises:
        UserError: if the detector has none.
    """
    contents, detector = loading.read(model)
    if detector.raw is None:
        raise UserError(f"{model}: raw outputs want a yolox, found {contents.detector}")
    variables = jax.tree.map(jnp.asarray, contents.variables)

    def run(pixels, sizes):
        images = Images(pixels, sizes, jnp.ones(pixels.shape[:1]))
        return tuple(detector.raw(variables, images)[:3])  # Without the points: constants.

    batch = jax.export.symbolic_shape("batch")[0]
    pixels = jax.ShapeDtypeStruct((batch, *contents.canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    return jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
        pixels, sizes
    ).serialize()


def main() -> None:
    """Reads the arguments, writes the file and says how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model.safetensors, or a run's folder")
    parser.add_argument("--out", required=True, help="file to write")
    arguments = parser.parse_args()
    try:
        program = export(arguments.model)
    except UserError as error:
        parser.error(str(error))
    pathlib.Path(arguments.out).write_bytes(program)
    print(f"{arguments.out}: {len(program) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
