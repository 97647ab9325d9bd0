"""The flat keys of config.model in jaxdet 0.1, and where they are now.

A run of that version keeps them in its config.json: they are read by this table.
A user who types one of them is told its new place.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxdet.detectors.moved import moved
from jaxdet.ops.anchors import octave_scales

# Where they are now: what they were.
_PIXELS = {"pixels": "mean:pixel_mean std:pixel_std padding:pixel_padding"}
_BACKBONE = _PIXELS | {
    "backbone": "name:backbone depth width norm style frozen_stages zero_init_residual",
    "neck": "channels:fpn_channels",
}
_SUPPRESS = "score_threshold iou_threshold:nms_iou max_detections max_candidates"
_LOSS = "class_weight box.kind:box_loss box.beta:box_beta box_weight"
_PROPOSE = "iou_threshold:rpn_nms_iou min_size:min_proposal_size min_size_of_original filter_first"
_RPN = {
    "rpn": "confusion",
    "rpn.head": "softmax:rpn_softmax",
    "rpn.anchors": "scales:anchor_scales ratios:anchor_ratios centre:anchor_centre "
    "divisor:size_divisor",
    "rpn.inside": "allowed_border count_touching",
    "rpn.assign": "ignore_iof_threshold positive_iou:rpn_positive_iou "
    "negative_iou:rpn_negative_iou min_positive_iou:rpn_min_positive_iou "
    "reassign_low_quality:rpn_reassign_low_quality",
    "rpn.sample": "num_samples:rpn_num_samples positive_fraction:rpn_positive_fraction "
    "max_negatives_per_positive:rpn_max_negatives_per_positive",
    "rpn.coder": "max_ratio",
    "rpn.loss": "class_weight:rpn_class_weight positive_weight:rpn_positive_weight "
    "box.kind:rpn_box_loss box.beta:rpn_beta box_weight:rpn_box_weight "
    "box_normalizer:rpn_box_normalizer least_samples:rpn_least_samples",
    "rpn.train": f"{_PROPOSE} pre_nms:rpn_pre_nms num_proposals",
    "rpn.test": f"{_PROPOSE} pre_nms:rpn_pre_nms_test num_proposals:num_proposals_test",
}
_ROI = {
    "roi": "confusion add_ground_truth:roi_add_ground_truth",
    "roi.assign": "ignore_iof_threshold positive_iou:roi_positive_iou "
    "negative_iou:roi_negative_iou",
    "roi.sample": "num_samples:roi_num_samples positive_fraction:roi_positive_fraction "
    "max_negatives_per_positive:roi_max_negatives_per_positive",
    "roi.pool": "kind:roi_pooling output_size:roi_size scale:roi_scale sampling_ratio "
    "max_sampling finest_scale",
    "roi.head": "hidden shared_convs:head_convs class_convs:head_convs box_convs:head_convs "
    "shared_fcs:head_fcs class_fcs:head_fcs box_fcs:head_fcs conv_channels:head_channels "
    "norm:head_norm average_pool:head_average_pool dropout:head_dropout class_agnostic",
    "roi.coder": "means:box_means stds:box_stds max_ratio",
    "roi.loss": f"{_LOSS} positive_weight:roi_positive_weight",
    "roi.suppress": _SUPPRESS,
}
_RETINANET = _BACKBONE | {
    "head": "num_convs:tower_convs",
    "anchors": "scales:octave_base_scale ratios:anchor_ratios divisor:size_divisor",
    "inside": "allowed_border",
    "assign": "ignore_iof_threshold positive_iou negative_iou min_positive_iou",
    "coder": "max_ratio",
    "loss": f"{_LOSS} alpha:focal_alpha gamma:focal_gamma",
    "suppress": _SUPPRESS,
}
_YOLOX = _PIXELS | {
    "blocks": "depth width depthwise activation norm",
    "assign": "centre_radius inside_boxes penalty iou_weight:iou_cost num_candidates",
    "loss": "box_kind:box_loss box_weight objectness_weight class_weight l1_weight",
    "suppress": f"{_SUPPRESS} class_agnostic",
}
# What had no meaning of its own.
_UNUSED = ("l1_from_step", "scales_per_octave", "size_divisor")
# What another backbone than a ResNet does not have.
_OF_RESNET = ("backbone.depth", "backbone.style", "backbone.zero_init_residual", "neck.channels")


def _places(table: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Old name -> new places."""
    found: dict[str, tuple[str, ...]] = {}
    for section, names in table.items():
        for new, _, old in (name.partition(":") for name in names.split()):
            found[old or new] = (*found.get(old or new, ()), f"{section}.{new}")
    return found


# Detector -> old name -> new places, below config.model.
RENAMED = {
    "rpn": _places(_BACKBONE | _RPN),
    "fast_rcnn": _places(_BACKBONE | _ROI),
    "faster_rcnn": _places(_BACKBONE | _RPN | _ROI),
    "retinanet": _places(_RETINANET),
    "yolox": _places(_YOLOX),
}


def upgrade(detector: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The section "model" of a config that may be of version 0.1.

    Args:
        detector: whose settings these are.
        model: nested settings, or the flat ones of 0.1.

    Returns:
        Nested settings, in the places of today.
    """
    table = RENAMED.get(detector, {})
    flat = {key: value for key, value in model.items() if not isinstance(value, Mapping)}
    if not flat.keys() & table.keys():
        return moved(model)
    vgg, new = flat.get("backbone") == "vgg", {}
    for key, value in flat.items():
        for i, place in enumerate(table.get(key, () if key in _UNUSED else (key,))):
            if not (vgg and place in _OF_RESNET):
                _put(new, place, _value(key, value, i, flat))
    if vgg:
        _put(new, "neck.name", "none")
    if vgg and "rpn" in new:
        _put(new, "rpn.anchors.whole_cells", True)
    return new


def _value(key: str, value: Any, i: int, flat: Mapping[str, Any]) -> Any:
    """An old value in the i-th of its new places."""
    if key in ("head_convs", "head_fcs"):
        return value[i]
    if key == "max_ratio" and value == 0:
        return math.inf
    if key == "octave_base_scale":
        return octave_scales(value, flat["scales_per_octave"])
    # YOLOX alone has an objectness, and its "iou" was another one.
    if key == "box_loss" and value == "iou" and "objectness_weight" in flat:
        return "iou_square"
    return value


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value
