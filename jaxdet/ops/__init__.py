"""Pure functions of one image: static sizes, padded and masked, jit- and vmap-safe.

A name that says enough by itself stands here: `ops.nms`, `ops.roi_align`. The
others keep their module in front: `ops.boxes.iou`, `ops.losses.l1`. A module
loads when something of it is first used.
"""

# ruff: noqa: F401 - the imports are what editors and type checkers read.

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet.ops import (
        anchors,
        assignment,
        box_coder,
        box_losses,
        boxes,
        losses,
        pixels,
        proposals,
        roi_pooling,
        sampling,
        simota,
        suppression,
    )
    from jaxdet.ops.anchors import (
        GridPoints,
        base_anchors,
        grid_anchors,
        grid_points,
        pyramid_anchors,
    )
    from jaxdet.ops.assignment import (
        IGNORE,
        NEGATIVE,
        POSITIVE,
        Assignment,
        append_ground_truth,
        assign_by_iou,
    )
    from jaxdet.ops.box_losses import diou_loss, giou_loss, iou_loss
    from jaxdet.ops.proposals import generate_proposals
    from jaxdet.ops.roi_pooling import (
        FlatPyramid,
        flatten_pyramid,
        pyramid_roi_align,
        pyramid_roi_pool,
        roi_align,
        roi_pool,
    )
    from jaxdet.ops.sampling import Samples, sample_labels
    from jaxdet.ops.simota import SimotaAssignment, SimotaCosts, assign_simota, simota_costs
    from jaxdet.ops.suppression import (
        SoftNms,
        nms,
        nms_best_class,
        nms_per_class,
        nms_sorted,
        soft_nms,
    )

# Module -> the names of it that stand here.
_MODULES = {
    "anchors": "GridPoints base_anchors grid_anchors grid_points pyramid_anchors",
    "assignment": "IGNORE NEGATIVE POSITIVE Assignment append_ground_truth assign_by_iou",
    "box_coder": "",
    "box_losses": "diou_loss giou_loss iou_loss",
    "boxes": "",
    "losses": "",
    "pixels": "",
    "proposals": "generate_proposals",
    "roi_pooling": "FlatPyramid flatten_pyramid pyramid_roi_align pyramid_roi_pool roi_align "
    "roi_pool",
    "sampling": "Samples sample_labels",
    "simota": "SimotaAssignment SimotaCosts assign_simota simota_costs",
    "suppression": "SoftNms nms nms_best_class nms_per_class nms_sorted soft_nms",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxdet.ops.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxdet.ops.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxdet.ops' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_HOMES, *_MODULES]
