"""A model file of another system's weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet import detectors, interop, model_file
from jaxdet.detectors import nested
from jaxdet.model_file import Contents
from jaxdet.types import Detector, UserError

# What the names of these systems' weights do not tell.
WHICH = {
    "mmdetection": "the ResNet of mmdetection's detectors is of the style pytorch or caffe",
    "yolox": "YOLOX's weights are of version 0.1.1 or later, or of 0.1.0 (legacy)",
}

# Given with an image, of the detector that wants them; as our own configs have it.
MAX_PROPOSALS = {"fast_rcnn": 1000}
# Arrays of these are for more than boxes: without them the boxes are the same.
OTHER_TASKS = ("roi_head.mask_", "roi_heads.mask_", "roi_heads.keypoint_")


class Said(NamedTuple):
    """What a user says of a file of weights, each None or empty where it is to be found out.

    Attributes:
        names: whose: a key of `interop.dialects.SYSTEMS`.
        classes: see `interop.read_classes`.
        canvas: (height, width) that images are padded to.
        resize: (short, long) sides that they are resized to within it.
        bgr: whether the weights read BGR images.
        settings: of the detector, nested.
    """

    names: str | None = None
    classes: str | None = None
    canvas: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    bgr: bool | None = None
    settings: Mapping[str, Any] = {}


def describe(weights: interop.Weights, said: Said, source: str) -> tuple[Contents, str]:
    """All that a model file says, but for the weights; and whose they are, a key of `SYSTEMS`.

    Args:
        weights: as `interop.read_file` gives them.
        said: comes before what the file says.
        source: what to call them in messages.

    Raises:
        UserError: for what can't be found in the file and is not said, with the
            flag that says it; and for what is said and does not fit.
    """
    found = interop.recognise(weights.tensors, source=source)
    known = " or ".join(f"--names={system}" for system in found.systems)
    if said.names is None and len(found.systems) > 1:
        raise UserError(
            f"{source}: {WHICH[found.systems[0]]}, which the names of their weights do not tell: "
            f"say {known}"
        )
    names = said.names or found.systems[0]
    if names not in found.systems:
        raise UserError(f"{source}: its weights have the names of {known}, found --names={names}")
    settings = interop.merged(interop.settings_for(names, found.detector), found.settings)
    settings = interop.merged(settings, said.settings)
    settings = nested.complete(detectors.find_builder(found.detector), settings)
    class_names, category_ids = _classes(weights, said, found, names, source)
    canvas, resize = interop.canvas_for(found.detector, settings)
    if said.canvas:
        canvas = said.canvas
        resize = (min(canvas), max(canvas))
    contents = Contents(
        detector=found.detector,
        settings=settings,
        class_names=class_names,
        canvas=canvas,
        resize=said.resize or resize,
        variables={},
        category_ids=category_ids,
        max_proposals=MAX_PROPOSALS.get(found.detector, 0),
        resize_rule=interop.resize_rule_for(names),
    )
    return contents, names


def _classes(
    weights: interop.Weights, said: Said, found: interop.Recognised, names: str, source: str
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """The names of the classes, and their numbers in the data's own files."""
    if found.detector == "rpn":
        return ("object",), None
    if said.classes is not None:
        return interop.read_classes(said.classes, found.num_classes)
    flags = "--classes=coco, --classes=voc, --classes=\"('cat', 'dog')\" or --classes=FILE"
    if weights.class_names is None:
        raise UserError(
            f"{source}: {names}'s {found.detector} of {found.num_classes} classes, whose names the "
            f"file does not have: say {flags} with a name a line"
        )
    if len(weights.class_names) != found.num_classes:
        raise UserError(
            f"{source}: its meta names {len(weights.class_names)} classes, its weights are of "
            f"{found.num_classes} classes: say {flags} with a name a line"
        )
    return weights.class_names, interop.number_classes(weights.class_names)


def fill(
    contents: Contents, tensors: Mapping[str, np.ndarray], *, bgr: bool, source: str
) -> tuple[Contents, interop.LoadReport]:
    """Puts weights into what is said of them.

    Args:
        contents: from `describe`; its variables play no part.
        tensors: as `interop.load_file` gives them.
        bgr: whether they read BGR images.
        source: what to call them in messages.

    Raises:
        UserError: if the settings do not work.
    """
    detector = build(contents, source)
    images = model_file.blank_images(
        1, contents.canvas, contents.max_proposals, contents.resize_rule
    )
    try:
        shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{source}: {contents.detector}: {error}") from error
    variables, report = interop.from_torch(tensors, shapes, source=source, bgr=bgr, strict=False)
    return contents._replace(variables=variables), report


def build(contents: Contents, source: str) -> Detector:
    """The detector that a model file describes.

    Raises:
        UserError: if its settings do not work.
    """
    try:
        return detectors.build(
            contents.detector, num_classes=len(contents.class_names), **contents.settings
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{source}: {contents.detector}: {error}") from error


def check_whole(report: interop.LoadReport, source: str) -> None:
    """Refuses weights that leave a part of the detector as it would be drawn, or have more parts.

    Raises:
        UserError: with the first such part.
    """
    if report.misfits:
        raise UserError(report.misfits[0])
    if report.missing:
        raise UserError(
            f"{source}: nothing in it fills {report.missing[0]}, one of {len(report.missing)} such "
            "parts: a detector with random parts is not a model"
        )
    stray = [name for name in report.unused if not name.startswith(OTHER_TASKS)]
    if stray:
        raise UserError(
            f"{source}: {stray[0]}, one of {len(stray)} such arrays, has no place in the detector, "
            "which would find something else without it"
        )
