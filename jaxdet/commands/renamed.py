"""The flat keys of config.model in jaxdet 0.1, and where they are now.

A run of that version keeps them in its config.json: they are read by this table.
A user who types one of them is told its new place.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxdet.ops.anchors import octave_scales

_FEATURES = {
    "pixel_mean": "pixels.mean",
    "pixel_std": "pixels.std",
    "pixel_padding": "pixels.padding",
}
_BACKBONE = {
    **_FEATURES,
    "backbone": "backbone.name",
    "depth": "backbone.depth",
    "width": "backbone.width",
    "norm": "backbone.norm",
    "style": "backbone.style",
    "frozen_stages": "backbone.frozen_stages",
    "zero_init_residual": "backbone.zero_init_residual",
    "fpn_channels": "neck.channels",
}
_RPN = {
    "anchor_scales": "rpn.anchors.scales",
    "anchor_ratios": "rpn.anchors.ratios",
    "anchor_centre": "rpn.anchors.centre",
    "size_divisor": "rpn.anchors.divisor",
    "allowed_border": "rpn.inside.allowed_border",
    "count_touching": "rpn.inside.count_touching",
    "ignore_iof_threshold": "rpn.assign.ignore_iof_threshold",
    "rpn_positive_iou": "rpn.assign.positive_iou",
    "rpn_negative_iou": "rpn.assign.negative_iou",
    "rpn_min_positive_iou": "rpn.assign.min_positive_iou",
    "rpn_reassign_low_quality": "rpn.assign.reassign_low_quality",
    "rpn_num_samples": "rpn.sample.num_samples",
    "rpn_positive_fraction": "rpn.sample.positive_fraction",
    "rpn_max_negatives_per_positive": "rpn.sample.max_negatives_per_positive",
    "rpn_least_samples": "rpn.loss.least_samples",
    "rpn_positive_weight": "rpn.loss.positive_weight",
    "rpn_softmax": "rpn.head.softmax",
    "rpn_class_weight": "rpn.loss.class_weight",
    "rpn_box_loss": "rpn.loss.box.kind",
    "rpn_beta": "rpn.loss.box.beta",
    "rpn_box_normalizer": "rpn.loss.box_normalizer",
    "rpn_box_weight": "rpn.loss.box_weight",
    "rpn_pre_nms": "rpn.train.pre_nms",
    "rpn_pre_nms_test": "rpn.test.pre_nms",
    "rpn_nms_iou": ("rpn.train.iou_threshold", "rpn.test.iou_threshold"),
    "num_proposals": "rpn.train.num_proposals",
    "num_proposals_test": "rpn.test.num_proposals",
    "min_proposal_size": ("rpn.train.min_size", "rpn.test.min_size"),
    "min_size_of_original": ("rpn.train.min_size_of_original", "rpn.test.min_size_of_original"),
    "filter_first": ("rpn.train.filter_first", "rpn.test.filter_first"),
    "max_ratio": "rpn.coder.max_ratio",
    "confusion": "rpn.confusion",
}
_ROI = {
    "ignore_iof_threshold": "roi.assign.ignore_iof_threshold",
    "roi_positive_iou": "roi.assign.positive_iou",
    "roi_negative_iou": "roi.assign.negative_iou",
    "roi_add_ground_truth": "roi.add_ground_truth",
    "roi_num_samples": "roi.sample.num_samples",
    "roi_positive_fraction": "roi.sample.positive_fraction",
    "roi_max_negatives_per_positive": "roi.sample.max_negatives_per_positive",
    "roi_positive_weight": "roi.loss.positive_weight",
    "roi_pooling": "roi.pool.kind",
    "roi_size": "roi.pool.output_size",
    "roi_scale": "roi.pool.scale",
    "sampling_ratio": "roi.pool.sampling_ratio",
    "max_sampling": "roi.pool.max_sampling",
    "finest_scale": "roi.pool.finest_scale",
    "hidden": "roi.head.hidden",
    "head_convs": ("roi.head.shared_convs", "roi.head.class_convs", "roi.head.box_convs"),
    "head_fcs": ("roi.head.shared_fcs", "roi.head.class_fcs", "roi.head.box_fcs"),
    "head_channels": "roi.head.conv_channels",
    "head_norm": "roi.head.norm",
    "head_average_pool": "roi.head.average_pool",
    "head_dropout": "roi.head.dropout",
    "class_agnostic": "roi.head.class_agnostic",
    "box_means": "roi.coder.means",
    "box_stds": "roi.coder.stds",
    "max_ratio": "roi.coder.max_ratio",
    "class_weight": "roi.loss.class_weight",
    "box_loss": "roi.loss.box.kind",
    "box_beta": "roi.loss.box.beta",
    "box_weight": "roi.loss.box_weight",
    "score_threshold": "roi.suppress.score_threshold",
    "nms_iou": "roi.suppress.iou_threshold",
    "max_detections": "roi.suppress.max_detections",
    "max_candidates": "roi.suppress.max_candidates",
    "confusion": "roi.confusion",
}
_SUPPRESS = {
    "score_threshold": "suppress.score_threshold",
    "nms_iou": "suppress.iou_threshold",
    "max_detections": "suppress.max_detections",
    "max_candidates": "suppress.max_candidates",
}
_RETINANET = {
    **_BACKBONE,
    **_SUPPRESS,
    "octave_base_scale": "anchors.scales",
    "scales_per_octave": "anchors.scales",
    "anchor_ratios": "anchors.ratios",
    "size_divisor": "anchors.divisor",
    "allowed_border": "inside.allowed_border",
    "ignore_iof_threshold": "assign.ignore_iof_threshold",
    "positive_iou": "assign.positive_iou",
    "negative_iou": "assign.negative_iou",
    "min_positive_iou": "assign.min_positive_iou",
    "tower_convs": "head.num_convs",
    "focal_alpha": "loss.alpha",
    "focal_gamma": "loss.gamma",
    "class_weight": "loss.class_weight",
    "box_loss": "loss.box.kind",
    "box_beta": "loss.box.beta",
    "box_weight": "loss.box_weight",
    "max_ratio": "coder.max_ratio",
}
_YOLOX = {
    **_FEATURES,
    **_SUPPRESS,
    "depth": "blocks.depth",
    "width": "blocks.width",
    "depthwise": "blocks.depthwise",
    "activation": "blocks.activation",
    "norm": "blocks.norm",
    "centre_radius": "assign.centre_radius",
    "inside_boxes": "assign.inside_boxes",
    "penalty": "assign.penalty",
    "iou_cost": "assign.iou_weight",
    "num_candidates": "assign.num_candidates",
    "box_loss": "loss.box_kind",
    "box_weight": "loss.box_weight",
    "objectness_weight": "loss.objectness_weight",
    "class_weight": "loss.class_weight",
    "l1_weight": "loss.l1_weight",
    "class_agnostic": "suppress.class_agnostic",
}


def _places(*tables: Mapping[str, str | tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Old name -> new places, of all tables together."""
    found: dict[str, tuple[str, ...]] = {}
    for old, new in (item for table in tables for item in table.items()):
        found[old] = found.get(old, ()) + ((new,) if isinstance(new, str) else new)
    return found


# Detector -> old name -> new places, below config.model.
RENAMED = {
    "rpn": _places(_BACKBONE, _RPN),
    "fast_rcnn": _places(_BACKBONE, _ROI),
    "faster_rcnn": _places(_BACKBONE, _RPN, _ROI),
    "retinanet": _places(_RETINANET),
    "yolox": _places(_YOLOX),
}
# Several old numbers in one, for as many places.
_TRIPLES = ("head_convs", "head_fcs")
# They said nothing: of a detector's maps that had none.
_UNUSED = {"fast_rcnn": ("size_divisor",), "yolox": ("l1_from_step",)}
# What another backbone than a ResNet does not have.
_OF_RESNET = ("backbone.depth", "backbone.style", "backbone.zero_init_residual", "neck.channels")


def upgrade(detector: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The section "model" of a config that may be of version 0.1.

    Args:
        detector: whose settings these are.
        model: nested settings, or the flat ones of 0.1.

    Returns:
        Nested settings; those of today as they are.
    """
    table = RENAMED.get(detector, {})
    flat = {key: value for key, value in model.items() if not isinstance(value, Mapping)}
    if not flat.keys() & table.keys():
        return dict(model)
    new: dict[str, Any] = {}
    for key, value in flat.items():
        if key in _UNUSED.get(detector, ()):
            continue
        values = _values(detector, key, value, flat)
        for place, each in zip(table.get(key, (key,)), values, strict=False):
            _put(new, place, each)
    if flat.get("backbone") == "vgg":
        for place in _OF_RESNET:
            _drop(new, place)
        _put(new, "neck.name", "none")
        if "rpn" in new:
            _put(new, "rpn.anchors.whole_cells", True)
    return new


def _values(detector, key, value, flat):
    """The value for each new place of an old key."""
    if key in _TRIPLES:
        return value
    if key == "max_ratio" and value == 0:
        value = math.inf
    if key in ("octave_base_scale", "scales_per_octave"):
        value = octave_scales(flat["octave_base_scale"], flat["scales_per_octave"])
    if (detector, key, value) == ("yolox", "box_loss", "iou"):
        value = "iou_square"
    return (value,) * len(RENAMED[detector].get(key, (key,)))


def _put(tree, path, value):
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _drop(tree, path):
    section, _, name = path.partition(".")
    tree.get(section, {}).pop(name, None)
