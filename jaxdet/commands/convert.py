"""Converts weights: from other systems into a model file, and back.

    jaxdet convert SRC DST.safetensors [--names=SYSTEM] [--classes=NAMES] [--model.SETTING=VALUE]
    jaxdet convert SRC DST.pth|.npz|.safetensors --to=SYSTEM

SRC is a .pth, .pt, .safetensors or .npz with the weights of torchvision
(fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn), mmdetection (faster_rcnn, fast_rcnn,
retinanet, rpn on a ResNet-FPN), YOLOX (nano to x) or simple-faster-rcnn; or a model file
of jaxdet, or the folder of a run. DST is a model file, which jaxdet predict and
jaxdet.load take; with --to, weights under that system's names.

Whose weights they are, of which detector, how deep, how wide and of how many classes
is found out from names and shapes; the settings are those of the published detector.
--names says what names and shapes do not tell: mmdetection or mmdetection_caffe (the
style of the ResNet), yolox or yolox_legacy (version 0.1.0); --classes the names of the
classes: coco, voc, "('cat', 'dog')", or a text file with a name a line; without it they
are those that a .pth of mmdetection's names in its meta. Any setting of the detector is
changed by --model.SETTING=VALUE, such as --model.rpn.test.pre_nms=300; docs/settings.md
lists them. docs/weights.md has a command for each system.

What became of each array is counted, and listed with --verbose: "+" it is taken, "-" it
is left, "!" its shape does not fit, "?" a part of the detector that nothing fills: then
there is no model file.
"""

import argparse
import collections
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdet import detectors, interop, loading, model_file
from jaxdet.commands import ending, foreign_model
from jaxdet.commands.foreign_model import Said
from jaxdet.detectors import nested
from jaxdet.interop.dialects import CLASSIFIERS, SYSTEMS
from jaxdet.interop.pretrained import READERS
from jaxdet.literals import read_literal
from jaxdet.model_file import Contents
from jaxdet.types import Detector, UserError

SETTING = "--model."
MODEL_ENDING = ".safetensors"
# Of the report's lines.
SIGNS = {"+": "arrays taken", "-": "left", "!": "of another shape", "?": "parts not filled"}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    with ending.in_one_line(argv):
        settings, rest = _split(argv[1:])
        flags = _parser(argv[0]).parse_args(rest)
        said = Said(flags.names, flags.classes, flags.canvas, flags.resize, flags.bgr, settings)
        sys.exit(convert(Path(flags.source), Path(flags.to_file), said, flags.to, flags.verbose))


def convert(source: Path, target: Path, said: Said, to: str | None, verbose: bool) -> int:
    """Converts a file, says what became of it; gives the exit status."""
    source, target = source.expanduser(), target.expanduser()
    wanted = READERS if to else (MODEL_ENDING,)
    if target.suffix not in wanted:
        hint = "" if to else "; --to=SYSTEM writes weights under another system's names"
        raise UserError(f"DST wants to end in {', '.join(wanted)}, found {target}{hint}")
    origin = source / model_file.NAME if source.is_dir() else source
    if target.exists() and origin.exists() and target.samefile(origin):
        raise UserError(f"DST wants another name than SRC, {source}, which would be lost")
    if source.is_dir() or model_file.is_model(source):
        contents, detector = _read_own(source, said, to)
    else:
        contents, detector = _read_foreign(source, said, verbose)
    target.parent.mkdir(parents=True, exist_ok=True)
    if to:
        return _write_foreign(target, contents, detector, to, said.bgr)
    model_file.write(target, contents)
    print(
        f"written to {target}: {contents.detector} of {len(contents.class_names)} classes, canvas "
        f"{contents.canvas}, images resized to {contents.resize}"
    )
    return 0


def _read_own(source: Path, said: Said, to: str | None) -> tuple[Contents, Detector]:
    """A model file or a run, with what is said of it otherwise."""
    if said.names:
        raise UserError(f"--names is of other systems' weights, {source} is jaxdet's own")
    if said.bgr is not None and not to:
        raise UserError(f"--bgr is of other systems' weights, {source} is jaxdet's own and RGB")
    contents, detector = loading.read(source)
    if said.classes:
        names, numbers = interop.read_classes(said.classes, len(contents.class_names))
        # Other names alone are no other numbers.
        numbers = numbers or contents.category_ids
        contents = contents._replace(class_names=names, category_ids=numbers)
    if said.canvas:
        resize = (min(said.canvas), max(said.canvas))
        contents = contents._replace(canvas=said.canvas, more_canvases=(), resize=resize)
    if said.resize:
        contents = contents._replace(resize=said.resize)
    settings = interop.merged(contents.settings, said.settings)
    contents = contents._replace(
        settings=nested.complete(detectors.find_builder(contents.detector), settings)
    )
    return contents, foreign_model.build(contents, str(source))


def _read_foreign(source: Path, said: Said, verbose: bool) -> tuple[Contents, Detector]:
    """Another system's weights as a model, all of whose parts they fill; says what it found."""
    weights = interop.read_file(source)
    contents, names = foreign_model.describe(weights, said, str(source))
    bgr = SYSTEMS[names] if said.bgr is None else said.bgr
    contents, report = foreign_model.fill(contents, weights.tensors, bgr=bgr, source=str(source))
    print(
        f"{source}: {contents.detector} of {len(contents.class_names)} classes with the names of "
        f"{names}, which read {_colours(bgr)} images"
    )
    if verbose:
        print("\n".join(report.lines))
    counts = collections.Counter(line[0] for line in report.lines)
    print(", ".join(f"{sign} {counts[sign]} {meaning}" for sign, meaning in SIGNS.items()))
    foreign_model.check_whole(report, str(source))
    return contents, foreign_model.build(contents, str(source))


def _write_foreign(
    target: Path, contents: Contents, detector: Detector, to: str, bgr: bool | None
) -> int:
    """Writes the weights under another system's names; says how the settings differ there."""
    if bgr is None and to in CLASSIFIERS:  # In these names there are backbones of either kind.
        bgr = detector.bgr_weights
    tensors = interop.to_torch(contents.variables, names=to, bgr=bgr)
    interop.save_file(target, tensors)
    print(
        f"written to {target}: {len(tensors)} arrays under the names of {to}, which read "
        f"{_colours(SYSTEMS[to] if bgr is None else bgr)} images"
    )
    for line in _differences(contents, tensors, to):
        print(line)
    return 0


def _colours(bgr: bool | None) -> str:
    return "BGR" if bgr else "RGB"


def _differences(contents: Contents, tensors: Mapping[str, Any], to: str) -> list[str]:
    """What names and shapes don't say: the settings that the published detector has otherwise."""
    if to in CLASSIFIERS:
        return []
    try:
        published = interop.merged(
            interop.settings_for(to, contents.detector), interop.recognise(tensors).settings
        )
    except UserError as error:
        return [f"its settings are not compared: {error}"]
    builder = detectors.find_builder(contents.detector)
    here = _leaves(nested.complete(builder, contents.settings))
    there = _leaves(nested.complete(builder, published))
    return [
        f"~ {path} is {here.get(path)!r}, of the published one {there.get(path)!r}"
        for path in sorted(here.keys() | there.keys())
        if here.get(path) != there.get(path)
    ]


def _leaves(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        part = (
            _leaves(value, f"{path}{key}.")
            if isinstance(value, Mapping)
            else {path + key: nested.with_tuples(value)}  # A file has lists.
        )
        found |= part
    return found


def _split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the detector, nested, and all other arguments."""
    settings: dict[str, Any] = {}
    rest, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith(SETTING):
            rest.append(argument)
            continue
        path, equals, text = argument.removeprefix(SETTING).partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{SETTING}{path} wants a value")
            text = waiting.pop(0)
        setting: Any = _read_value(text)
        for name in reversed(path.split(".")):
            setting = {name: setting}
        settings = interop.merged(settings, setting)
    return settings, rest


def _read_value(text: str) -> Any:
    known = {"true": True, "false": False, "inf": math.inf}
    return known[text] if text in known else read_literal(text)


def _sides(text: str) -> tuple[int, int]:
    """Two numbers: "800x1333" or "(800, 1333)"."""
    match = re.fullmatch(r"\(?\s*(\d+)\s*[x,]\s*(\d+)\s*\)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"wants two numbers such as 800x1333, found {text!r}")
    return int(match[1]), int(match[2])


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"wants true or false, found {text!r}")
    return text == "true"


def _parser(name: str) -> ending.Parser:
    parser = ending.Parser(name, __doc__)
    add = parser.add_argument
    add("source", metavar="SRC", help="weights, a model.safetensors, or the folder of a run")
    add("to_file", metavar="DST", help="the file that is written")
    systems = [system for system in SYSTEMS if system not in CLASSIFIERS]
    add("--names", metavar="SYSTEM", choices=systems, help=f"whose: {', '.join(systems)}")
    add("--classes", metavar="NAMES", help="coco, voc, a tuple of names, or a file with one a line")
    add("--canvas", metavar="HxW", type=_sides, help="that images are padded to; as published")
    add("--resize", metavar="SHORTxLONG", type=_sides, help="sides of images; as published")
    add("--bgr", metavar="true|false", type=_truth, help="whether the weights read BGR images")
    add("--to", metavar="SYSTEM", choices=[*SYSTEMS], help=f"whose names: {', '.join(SYSTEMS)}")
    add("--verbose", action="store_true", help="list what became of each array")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
