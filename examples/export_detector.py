"""Saves a trained detector as one file that runs wherever JAX does, without jaxdet.

    python examples/export_detector.py --workdir=runs/yolox_bccd --out=cells.jax

The file holds the program and the weights, for CPUs, GPUs and TPUs. It takes uint8 RGB
images of the run's canvas and each one's (height, width): any number of them, or, as the
detectors of two stages need it, as many as --batch_size says.

    program = jax.export.deserialize(pathlib.Path("cells.jax").read_bytes())
    boxes, scores, labels, valid = program.call(pixels, sizes)

Writing and reading the file takes flatbuffers (`pip install -e ".[train,export]"`).
With --raw, a YOLOX gives what its suppression starts from instead: class logits, raw boxes
and objectness of all grid points (`yolox.Outputs`).
"""

import argparse
import pathlib

import jax
import jax.export
import jax.numpy as jnp

from jaxdet.commands import command_line, opening
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.types import Images, UserError

TWO_STAGES = ("fast_rcnn", "faster_rcnn")
PLATFORMS = ("cpu", "cuda", "tpu")


def export(workdir: str, *, raw: bool, batch_size: int = 0) -> bytes:
    """The best checkpoint of a run as a serialised program.

    Raises:
        UserError: if raw outputs are wanted of a detector that has none, or any
            number of images (`batch_size` 0) of one that pools them in turns.
    """
    config = command_line.read(["", f"--workdir={workdir}"]).config
    if raw and config.detector != "yolox":
        raise UserError(f"--raw wants a run of yolox, found {config.detector}")
    if config.detector in TWO_STAGES and not batch_size:
        raise UserError(f"{config.detector} wants a --batch_size")
    opened = opening.open_run(config)
    checkpoints = Checkpoints(pathlib.Path(workdir, "checkpoints"))
    variables = checkpoints.restore_variables("best", like=opened.variables)
    variables = jax.tree.map(jnp.asarray, variables)
    checkpoints.close()

    def run(pixels, sizes):
        images = Images(pixels, sizes, jnp.ones(pixels.shape[:1]))
        if raw:  # Without the grid points, which are constants.
            return tuple(opened.detector.raw(variables, images)[:3])
        return tuple(opened.detector.predict(variables, images))

    batch = batch_size or jax.export.symbolic_shape("batch")[0]
    pixels = jax.ShapeDtypeStruct((batch, *config.data.canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(pixels, sizes).serialize()


def main() -> None:
    """Reads the arguments, writes the file and says how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--batch_size", type=int, default=0, help="0 for any number")
    parser.add_argument("--raw", action="store_true", help="outputs before suppression")
    arguments = parser.parse_args()
    try:
        program = export(arguments.workdir, raw=arguments.raw, batch_size=arguments.batch_size)
    except UserError as error:
        parser.error(str(error))
    pathlib.Path(arguments.out).write_bytes(program)
    print(f"{arguments.out}: {len(program) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
