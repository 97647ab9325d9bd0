"""Whose weights these are, of which detector, and of what size, from names and shapes alone."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdet.interop.dialects import current_name
from jaxdet.interop.filling import STEP_COUNTER
from jaxdet.models.resnet import DEPTHS
from jaxdet.types import UserError

Shapes = Mapping[str, tuple[int, ...]]

BOX_PARTS = {"shared": "shared", "class": "cls", "box": "reg"}  # Ours -> mmdetection's.
# Blocks of YOLOX's first stage -> the depth that its code calls so.
YOLOX_DEPTHS = {1: 0.33, 2: 0.67, 3: 1.0, 4: 1.33}
YOLOX_STEM = 64  # Channels at width 1.
# What only this system's detectors have, and what tells its detectors apart.
SIGNS = {
    "backbone.backbone.stem.conv.conv.weight": (("yolox", "yolox_legacy"), "yolox"),
    "extractor.0.weight": (("simple_faster_rcnn",), "faster_rcnn"),
    "head.classification_head.cls_logits.weight": (("torchvision",), "retinanet"),
    "roi_heads.box_predictor.cls_score.weight": (("torchvision",), "faster_rcnn"),
    "bbox_head.retina_cls.weight": (("mmdetection", "mmdetection_caffe"), "retinanet"),
    "roi_head.bbox_head.fc_cls.weight": (("mmdetection", "mmdetection_caffe"), "faster_rcnn"),
    "rpn_head.rpn_cls.weight": (("mmdetection", "mmdetection_caffe"), "rpn"),
}
CLASSIFIER_SIGNS = ("fc.weight", "layer1.0.conv1.weight", "features.0.weight")


class Recognised(NamedTuple):
    """What names and shapes say of a file of weights.

    Attributes:
        systems: keys of `SYSTEMS`; several where they give all layers the same names.
        detector: as `jaxdet.build` takes it.
        settings: of the detector, as far as shapes say them.
        num_classes: without background.
    """

    systems: tuple[str, ...]
    detector: str
    settings: dict[str, Any]
    num_classes: int


def recognise(tensors: Mapping[str, Any], *, source: str = "weights") -> Recognised:
    """Finds out what a file of weights is of.

    Args:
        tensors: as `load_file` gives them.
        source: what to call them in messages, such as the file's path.

    Raises:
        UserError: if they are no detector's that is known.
    """
    shapes = {current_name(name): tuple(np.shape(value)) for name, value in tensors.items()}
    for sign, (systems, detector) in SIGNS.items():
        if sign not in shapes:
            continue
        try:
            settings, num_classes = _SIZES[systems[0]](shapes)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        except KeyError as error:
            raise UserError(
                f"{source}: these look like weights of {systems[0]}'s {detector}, but "
                f"{error.args[0]} is missing or has another form"
            ) from None
        if "mmdetection" in systems and detector == "faster_rcnn" and "rpn" not in settings:
            detector = "fast_rcnn"
        return Recognised(systems, detector, settings, num_classes)
    if any(sign in shapes for sign in CLASSIFIER_SIGNS):
        raise UserError(
            f"{source}: these are weights of a classifier, which are no detector: a training "
            "starts from them with --config.init_from"
        )
    found = ", ".join(sorted(shapes)[:3]) or "nothing"
    raise UserError(f"{source}: no detector is known by these names; found {found}")


def _mmdetection(shapes: Shapes) -> tuple[dict[str, Any], int]:
    settings: dict[str, Any] = {"backbone": _resnet(shapes, "backbone.")}
    settings["neck"] = _fpn(shapes, "neck.lateral_convs.{}.conv", "neck.fpn_convs.{}.conv")
    if "bbox_head.retina_cls.weight" in shapes:
        head, num_classes = _retina_head(
            shapes, "bbox_head.cls_convs.{}.conv", "bbox_head.retina_cls", "bbox_head.retina_reg"
        )
        return settings | {"head": head}, num_classes
    if any(name.startswith("rpn_head.") for name in shapes):
        settings["rpn"] = {"head": {"channels": _weights(shapes, "rpn_head.rpn_conv")[0]}}
    if "roi_head.bbox_head.fc_cls.weight" not in shapes:
        return settings, 1
    prefix, head = "roi_head.bbox_head", {}
    for ours, theirs in BOX_PARTS.items():
        head[f"{ours}_convs"] = _count(shapes, f"{prefix}.{theirs}_convs.{{}}.conv")
        head[f"{ours}_fcs"] = _count(shapes, f"{prefix}.{theirs}_fcs.{{}}")
        for i in range(head[f"{ours}_convs"]):
            head["conv_channels"] = _weights(shapes, f"{prefix}.{theirs}_convs.{i}.conv")[0]
        for i in range(head[f"{ours}_fcs"]):
            head["hidden"] = _weights(shapes, f"{prefix}.{theirs}_fcs.{i}")[0]
    if any(name.startswith(prefix) and ".gn." in name for name in shapes):
        head["norm"] = "group"
    num_classes = _weights(shapes, f"{prefix}.fc_cls")[0] - 1
    head["class_agnostic"] = _weights(shapes, f"{prefix}.fc_reg")[0] == 4 != 4 * num_classes
    settings["roi"] = {"head": head}
    return settings, num_classes


def _torchvision(shapes: Shapes) -> tuple[dict[str, Any], int]:
    settings: dict[str, Any] = {"backbone": _resnet(shapes, "backbone.body.")}
    if any(STEP_COUNTER in name for name in shapes):
        # Norms that count their steps are those of a detector without published weights.
        settings["backbone"]["norm_epsilon"] = 1e-5
    blocks = "backbone.fpn.{}_blocks.{{}}.0"
    settings["neck"] = _fpn(shapes, blocks.format("inner"), blocks.format("layer"))
    if "head.classification_head.cls_logits.weight" in shapes:
        settings["neck"]["num_levels"] = 5
        features, channels = _weights(shapes, "backbone.fpn.extra_blocks.p6")[:2]
        settings["neck"]["extra"] = "on_output" if features == channels else "on_input"
        head, num_classes = _retina_head(
            shapes,
            "head.classification_head.conv.{}.0",
            "head.classification_head.cls_logits",
            "head.regression_head.bbox_reg",
        )
        return settings | {"head": head}, num_classes
    settings["rpn"] = {"head": {"channels": _weights(shapes, "rpn.head.conv.0.0")[0]}}
    settings["roi"] = {"head": {"hidden": _weights(shapes, "roi_heads.box_head.fc6")[0]}}
    return settings, _weights(shapes, "roi_heads.box_predictor.cls_score")[0] - 1


def _simple_faster_rcnn(shapes: Shapes) -> tuple[dict[str, Any], int]:
    settings = {
        "backbone": {"width": _weights(shapes, "extractor.0")[0]},
        "rpn": {"head": {"channels": _weights(shapes, "rpn.conv1")[0]}},
        "roi": {"head": {"hidden": _weights(shapes, "head.classifier.0")[0]}},
    }
    return settings, _weights(shapes, "head.score")[0] - 1


def _yolox(shapes: Shapes) -> tuple[dict[str, Any], int]:
    blocks = _count(shapes, "backbone.backbone.dark2.1.m.{}.conv1.conv")
    settings = {
        "depth": YOLOX_DEPTHS.get(blocks, blocks / 3),
        "width": _weights(shapes, "backbone.backbone.stem.conv.conv")[0] / YOLOX_STEM,
        "depthwise": any(".dconv." in name for name in shapes),
    }
    return {"blocks": settings}, _weights(shapes, "head.cls_preds.0")[0]


_SIZES = {
    "mmdetection": _mmdetection,
    "torchvision": _torchvision,
    "simple_faster_rcnn": _simple_faster_rcnn,
    "yolox": _yolox,
}


def _resnet(shapes: Shapes, prefix: str) -> dict[str, Any]:
    blocks = tuple(_count(shapes, f"{prefix}layer{i}.{{}}.conv1") for i in (1, 2, 3, 4))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in shapes
    depths = [depth for depth, kind in DEPTHS.items() if kind == (blocks, bottleneck)]
    if not depths:
        raise UserError(
            f"its ResNet has {blocks} blocks in its stages; known are the depths "
            f"{', '.join(map(str, DEPTHS))}"
        )
    return {"depth": depths[0], "width": _weights(shapes, f"{prefix}conv1")[0]}


def _fpn(shapes: Shapes, lateral: str, output: str) -> dict[str, Any]:
    settings = {"channels": _weights(shapes, lateral.format(0))[0]}
    if _count(shapes, output) > _count(shapes, lateral):
        settings["num_levels"] = _count(shapes, output)
    return settings


def _retina_head(shapes: Shapes, conv: str, logits: str, deltas: str) -> tuple[dict[str, Any], int]:
    num_convs, num_anchors = _count(shapes, conv), _weights(shapes, deltas)[0] // 4
    settings = {"num_convs": num_convs}
    if num_convs:
        settings["channels"] = _weights(shapes, conv.format(0))[0]
    return settings, _weights(shapes, logits)[0] // max(num_anchors, 1)


def _weights(shapes: Shapes, layer: str) -> tuple[int, ...]:
    """The shape of a layer's weights, which have two sides or more; a KeyError names others."""
    name = f"{layer}.weight"
    if len(shapes[name]) < 2:
        raise KeyError(name)
    return shapes[name]


def _count(shapes: Shapes, name: str) -> int:
    """How many layers there are of a name with a number in it."""
    pattern = re.escape(name).replace(r"\{\}", r"(\d+)") + r"\.weight"
    return len({match[1] for shape in shapes if (match := re.fullmatch(pattern, shape))})
