"""Writes a trained detector as one file that finds objects without jaxdet.

    jaxdet export runs/quickstart --to=onnx
    jaxdet export model.safetensors --to=stablehlo --batch=4 --size=480x640 --out=cells.stablehlo

The file takes photographs, uint8 RGB, as they are: they are resized, normalised and
suppressed inside, and the boxes are in their pixels. It holds the class names, too.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxdet import loading, model_file
from jaxdet.commands import ending
from jaxdet.export import program
from jaxdet.prediction import Predictor
from jaxdet.types import UserError

# Of each format: the module that writes it, what that needs, and the extra that brings it.
FORMATS = {
    "onnx": ("onnx_file", "onnx", "onnx"),
    "stablehlo": ("stablehlo", "flatbuffers", "export"),
}
LARGEST_SIDE = 2**14  # Of an image; products of two sides are counted in 32 bits.


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    with ending.in_one_line(argv):
        flags = _parser(argv[0]).parse_args(argv[1:])
        out = flags.out and Path(flags.out).expanduser()
        export(flags.model, flags.to, out, batch=_batch(flags.batch), size=_size(flags.size))
        sys.exit(0)


def export(
    model: str,
    to: str,
    out: Path | None,
    *,
    batch: int | str = 1,
    size: tuple[int, int] | None = None,
) -> None:
    """Writes the file and says what is in it; see `program.make` for `batch` and `size`.

    Raises:
        UserError: if the model cannot be read, cannot be written in the format,
            or what is needed for that is not installed.
    """
    name, needed, extra = FORMATS[to]
    if importlib.util.find_spec(needed) is None:
        raise UserError(f'--to={to} needs {needed}: pip install "jaxdet[{extra}]"')
    contents, detector = loading.read(model)
    if to == "onnx":  # Runtimes have no bfloat16 on a CPU.
        detector = program.in_float32(contents, detector)
    shown = Predictor(contents, detector)
    made = program.make(
        contents,
        detector,
        class_names=shown.class_names,
        category_ids=shown.category_ids,
        batch=batch,
        size=size,
    )
    path = out or _beside(Path(model).expanduser(), to)
    source = _beside(Path(model).expanduser(), "safetensors")
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"--out wants another name than the model, {source}, which would be lost")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in importlib.import_module(f"jaxdet.export.{name}").write(made, path):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    print(f"takes pixels: {made.about['pixels']}; gives {', '.join(program.OUTPUTS)}")


def _beside(model: Path, to: str) -> Path:
    """Where the file goes if nothing is said: beside the model."""
    file = model / model_file.NAME if model.is_dir() else model
    return file.with_suffix(f".{to}")


def _batch(text: str) -> int | str:
    if text == program.DYNAMIC:
        return text
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise UserError(
            f"--batch wants a number from 1 to 9999 or {program.DYNAMIC}, found {text!r}"
        )
    return int(text)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = re.fullmatch("([0-9]+)x([0-9]+)", text)
    if not sides or not all(0 < int(side) <= LARGEST_SIDE for side in sides.groups()):
        raise UserError(
            f"--size wants HEIGHTxWIDTH in pixels up to {LARGEST_SIDE}, such as 480x640, "
            f"found {text!r}"
        )
    return int(sides[1]), int(sides[2])


def _parser(program_name: str) -> ending.Parser:
    parser = ending.Parser(program_name, __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model.safetensors, or the folder of a run")
    add("--to", required=True, choices=FORMATS, help="for onnxruntime and its like, or for JAX")
    add("--batch", default="1", metavar="N|dynamic", help="images at once; 1")
    add("--size", metavar="HxW", help="height and width of the images; any, if it is not given")
    add("--out", metavar="FILE", help="beside the model, if it is not given")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
