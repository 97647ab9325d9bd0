"""Detection methods, one file each, and how a config names them."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxdet.detectors import fast_rcnn, faster_rcnn, retinanet, rpn, yolox
from jaxdet.types import Detector, UserError

# Name -> the function that makes the detector, and the class of its settings.
DETECTORS: dict[str, tuple[Callable[..., Detector], type]] = {
    "fast_rcnn": (fast_rcnn.fast_rcnn, fast_rcnn.Settings),
    "faster_rcnn": (faster_rcnn.faster_rcnn, faster_rcnn.Settings),
    "retinanet": (retinanet.retinanet, retinanet.Settings),
    "rpn": (rpn.rpn, rpn.Settings),
    "yolox": (yolox.yolox, yolox.Settings),
}
# They find objects of one class, label 0, whatever classes the data has.
CLASS_BLIND = ("rpn",)


def build(name: str, *, num_classes: int, **settings: Any) -> Detector:
    """Makes the detector that a config names.

    Args:
        name: a key of `DETECTORS`.
        num_classes: K, from the data's class names.
        **settings: keyword arguments of the detector function.

    Raises:
        UserError: if the name or a setting is unknown; lists the known ones.
    """
    known = setting_names(name)
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise UserError(
            f"{name} has no setting {', '.join(map(repr, unknown))}; known: {', '.join(known)}"
        )
    return DETECTORS[name][0](num_classes=num_classes, **settings)


def setting_names(name: str) -> list[str]:
    """The settings of a detector, without `num_classes`.

    Raises:
        UserError: if the name is unknown; lists the known ones.
    """
    if name not in DETECTORS:
        raise UserError(f"unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    parameters = inspect.signature(DETECTORS[name][1]).parameters
    return [key for key in parameters if key != "num_classes"]
