"""Detection methods, one file each, and how a config names them."""

from collections.abc import Callable
from typing import Any

from jaxdet.detectors import fast_rcnn, faster_rcnn, nested, retinanet, rpn, yolox
from jaxdet.types import Detector, UserError

DETECTORS: dict[str, Callable[..., Detector]] = {
    "fast_rcnn": fast_rcnn.fast_rcnn,
    "faster_rcnn": faster_rcnn.faster_rcnn,
    "retinanet": retinanet.retinanet,
    "rpn": rpn.rpn,
    "yolox": yolox.yolox,
}


def find_builder(name: str) -> Callable[..., Detector]:
    """The function that makes a detector.

    Raises:
        UserError: if the name is unknown; lists the known ones.
    """
    if name not in DETECTORS:
        raise UserError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]


def build(name: str, *, num_classes: int, **settings: Any) -> Detector:
    """Makes a detector by its name.

    Args:
        name: a key of `DETECTORS`.
        num_classes: K, from the data's class names.
        **settings: keyword arguments of the detector's function, or nested
            dictionaries of what differs from its defaults, such as
            `roi={"sample": {"num_samples": 64}}` (see `nested`).

    Raises:
        UserError: if the name, a setting or a module is unknown, or a value has
            another type; lists what is known.
        ValueError: for settings that do not work.
    """
    builder = find_builder(name)
    return builder(num_classes=num_classes, **nested.fill(builder, settings))
