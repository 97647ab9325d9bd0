"""The settings of detectors that equal the published ones of other systems."""

import copy
from typing import Any

from jaxdet.types import UserError

CAFFE = {"pixels": {"std": (1.0, 1.0, 1.0)}, "backbone": {"style": "caffe"}}
# (whose names, detector) -> what differs from the detector's defaults, which are mmdetection's.
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("mmdetection", "faster_rcnn"): {},
    ("mmdetection", "retinanet"): {},
    ("mmdetection_caffe", "faster_rcnn"): CAFFE,
    ("mmdetection_caffe", "retinanet"): CAFFE,
    ("torchvision", "faster_rcnn"): {
        "backbone": {"norm_epsilon": 0.0},
        "rpn": {"anchors": {"rounded": True}, "test": {"min_size": 1e-3}},
        "roi": {
            "pool": {"sampling_ratio": 2, "aligned": False},
            "suppress": {"min_size": 1e-2},
        },
    },
    ("torchvision", "retinanet"): {
        "backbone": {"norm_epsilon": 0.0},
        "neck": {"extra": "on_output", "relu_before_extra": True},
        "anchors": {"rounded": True},
        "pre_nms_pairs": True,
        # As many as the best 1000 pairs of five levels.
        "suppress": {"max_detections": 300, "max_candidates": 5000},
    },
}


def settings_for(names: str, detector: str) -> dict[str, Any]:
    """The settings with which a detector predicts as another system's published one.

    They are of prediction; how it was trained they do not say. Three things of
    torchvision's are no settings: it resizes images as floats, after normalising,
    takes boxes back by the ratio of each side, and lets deltas shrink a side to
    less than 1 / 62.5.

    >>> settings_for("mmdetection_caffe", "retinanet")
    {'pixels': {'std': (1.0, 1.0, 1.0)}, 'backbone': {'style': 'caffe'}}

    Args:
        names: whose: "mmdetection", "mmdetection_caffe" or "torchvision".
        detector: "faster_rcnn" or "retinanet", as `jaxdet.build` takes it.

    Returns:
        Nested dictionaries, as `jaxdet.build` takes them, of what differs from the defaults.

    Raises:
        UserError: if there is no such detector.
    """
    if (names, detector) not in PUBLISHED:
        known = ", ".join(map(" ".join, PUBLISHED))
        raise UserError(f"nothing is known of {names} {detector}; known: {known}")
    return copy.deepcopy(PUBLISHED[names, detector])
