"""jaxdet: object detection as pure, jitted JAX functions on fixed-size padded arrays.

What is named here loads when it is first used: importing jaxdet loads not even JAX.
"""

# ruff: noqa: F401 - the imports are what editors and type checkers read.

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet import detectors, models, ops
    from jaxdet.detectors import build
    from jaxdet.detectors.fast_rcnn import fast_rcnn
    from jaxdet.detectors.faster_rcnn import faster_rcnn
    from jaxdet.detectors.retinanet import retinanet
    from jaxdet.detectors.rpn import rpn
    from jaxdet.detectors.yolox import yolox
    from jaxdet.loading import load
    from jaxdet.types import Batch, Detections, Detector, Images, Proposals, UserError

    __version__: str

_MODULES = ("detectors", "models", "ops")
# Name -> the module that it is taken from.
_HOMES = {
    "build": "detectors",
    "fast_rcnn": "detectors.fast_rcnn",
    "faster_rcnn": "detectors.faster_rcnn",
    "load": "loading",
    "retinanet": "detectors.retinanet",
    "rpn": "detectors.rpn",
    "yolox": "detectors.yolox",
    "Batch": "types",
    "Detections": "types",
    "Detector": "types",
    "Images": "types",
    "Proposals": "types",
    "UserError": "types",
}
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxdet.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxdet.{_HOMES[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxdet")
    raise AttributeError(f"module 'jaxdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
