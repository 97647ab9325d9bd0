"""The settings of detectors that equal the published ones of other systems."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from jaxdet.types import UserError

GROWTH_ALONE = {"limit_shrinking": False}
# Depth and width of YOLOX's sizes.
YOLOX_SIZES = {
    "nano": {"depth": 0.33, "width": 0.25, "depthwise": True},
    "tiny": {"depth": 0.33, "width": 0.375},
    "s": {"depth": 0.33, "width": 0.5},
    "m": {"depth": 0.67, "width": 0.75},
    "l": {"depth": 1.0, "width": 1.0},
    "x": {"depth": 1.33, "width": 1.25},
}
RPN_ALONE = {"rpn": {"test": {"pre_nms": 2000}}}
CAFFE = {"pixels": {"std": (1.0, 1.0, 1.0)}, "backbone": {"style": "caffe"}}
# (whose names, detector) -> what differs from the detector's defaults, which are mmdetection's.
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("mmdetection", "faster_rcnn"): {},
    ("mmdetection", "fast_rcnn"): {},
    ("mmdetection", "retinanet"): {},
    ("mmdetection", "rpn"): RPN_ALONE,
    ("mmdetection_caffe", "faster_rcnn"): CAFFE,
    ("mmdetection_caffe", "fast_rcnn"): CAFFE,
    ("mmdetection_caffe", "retinanet"): CAFFE,
    ("mmdetection_caffe", "rpn"): CAFFE | RPN_ALONE,
    ("yolox", "yolox"): {},
    ("yolox_legacy", "yolox"): {
        "pixels": {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    },
    ("torchvision", "faster_rcnn"): {
        "backbone": {"norm_epsilon": 0.0},
        "rpn": {
            "anchors": {"rounded": True},
            "coder": GROWTH_ALONE,
            "test": {"min_size": 1e-3},
        },
        "roi": {
            "pool": {"sampling_ratio": 2, "aligned": False},
            "coder": GROWTH_ALONE,
            "suppress": {"min_size": 1e-2},
        },
    },
    ("torchvision", "retinanet"): {
        "backbone": {"norm_epsilon": 0.0},
        "neck": {"extra": "on_output", "relu_before_extra": True},
        "anchors": {"rounded": True},
        "coder": GROWTH_ALONE,
        "pre_nms_pairs": True,
        # As many as the best 1000 pairs of five levels.
        "suppress": {"max_detections": 300, "max_candidates": 5000},
    },
    ("simple_faster_rcnn", "faster_rcnn"): {
        "backbone": {"name": "vgg"},
        "neck": {"name": "none"},
        "rpn": {
            "head": {"softmax": True, "channels": 512},
            "anchors": {
                "scales": (8.0, 16.0, 32.0),
                "centre": 0.5,
                "divisor": 16,
                "whole_cells": True,
            },
            "coder": {"max_ratio": math.inf},
            "test": {
                "pre_nms": 6000,
                "num_proposals": 300,
                "min_size": 16.0,
                "min_size_of_original": True,
                "filter_first": True,
            },
        },
        "roi": {
            "pool": {"kind": "pool"},
            "head": {"hidden": 4096},
            "coder": {"max_ratio": math.inf},
            # All that it finds; as many as the best pairs that are looked at.
            "suppress": {"iou_threshold": 0.3, "max_detections": 2000},
        },
    },
}


def settings_for(names: str, detector: str, *, size: str | None = None) -> dict[str, Any]:
    """The settings with which a detector predicts as another system's published one.

    They are of prediction; how it was trained they do not say. How images are resized
    is no setting of a detector: `resize_rule_for` says that. For the very numbers of
    the reference give its canvas, too: mmdetection and torchvision pad a batch to its
    largest sides, rounded up to 32, which torchvision's steps between cells depend on.
    Images of simple-faster-rcnn's end where they end: give each a canvas of its own
    size, as regions at the border of a smaller one read the canvas beside it.

    >>> settings_for("mmdetection_caffe", "retinanet")
    {'pixels': {'std': (1.0, 1.0, 1.0)}, 'backbone': {'style': 'caffe'}}

    Args:
        names: whose: "mmdetection", "mmdetection_caffe", "torchvision",
            "simple_faster_rcnn", "yolox" or, for those of its version 0.1.0,
            "yolox_legacy".
        detector: "faster_rcnn", "fast_rcnn", "retinanet", "rpn" or "yolox", as `jaxdet.build`
            takes it.
        size: of YOLOX: "nano", "tiny", "s", "m", "l" or "x".

    Returns:
        Nested dictionaries, as `jaxdet.build` takes them, of what differs from the defaults.

    Raises:
        UserError: if there is no such detector or size.
    """
    if (names, detector) not in PUBLISHED:
        known = ", ".join(map(" ".join, PUBLISHED))
        raise UserError(f"nothing is known of {names} {detector}; known: {known}")
    if size is not None and (detector != "yolox" or size not in YOLOX_SIZES):
        raise UserError(
            f"size wants one of yolox's, {', '.join(YOLOX_SIZES)}; found {size!r} of {detector}"
        )
    sizes = {"blocks": YOLOX_SIZES[size]} if size else {}
    return copy.deepcopy(PUBLISHED[names, detector] | sizes)


def merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others in their places."""
    found = {**settings, **more}
    for key in settings.keys() & more.keys():
        if isinstance(settings[key], Mapping) and isinstance(more[key], Mapping):
            found[key] = merged(settings[key], more[key])
    return found


def canvas_for(detector: str, settings: Mapping[str, Any]) -> tuple[tuple[int, int], tuple]:
    """The canvas on which a published detector is used, and (short, long) sides of images on it.

    Args:
        detector: as `jaxdet.build` takes it.
        settings: its own.
    """
    if detector == "yolox":
        side = 640 if settings.get("blocks", {}).get("width", 1.0) >= 0.5 else 416
        return (side, side), (side, side)
    if settings.get("backbone", {}).get("name") == "vgg":
        return (1008, 1008), (600, 1000)
    return (1344, 1344), (800, 1333)


def resize_rule_for(names: str) -> str:
    """How another system resizes images, as a model file and a config's data say it.

    >>> resize_rule_for("torchvision")
    'torchvision'

    Args:
        names: as of `settings_for`.

    Returns:
        One of `types.RESIZE_RULES`.

    Raises:
        UserError: if there is no such system.
    """
    known = dict.fromkeys(whose for whose, _ in PUBLISHED)
    if names not in known:
        raise UserError(f"nothing is known of {names}'s images; known: {', '.join(known)}")
    return "torchvision" if names == "torchvision" else "rounded"
