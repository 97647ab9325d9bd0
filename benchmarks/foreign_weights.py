"""Weights of other systems, drawn at random, under the names and in the files that those write.

Names and shapes of torchvision's are those of its own models, those of YOLOX of its own code;
of mmdetection and simple-faster-rcnn `interop.to_torch` writes them.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torchvision

import jaxdet
from jaxdet import interop, model_file
from jaxdet.interop.class_names import COCO
from jaxdet.interop.published import YOLOX_SIZES

# Normal numbers, such that features keep their size, and heads find something: (of the last
# pattern that a name has) weights are multiplied by the first and moved by the second.
SCALES = [
    (r"bn3\.weight", 0.2, 0),
    (r"(rpn_cls|rpn\.head\.cls_logits)\.weight", 0.3, 0),
    (r"(rpn_cls|rpn\.head\.cls_logits)\.bias", 1, -1),
    (r"(rpn_reg|rpn\.head\.bbox_pred)\.weight", 0.1, 0),
    (r"(fc_reg|box_predictor\.bbox_pred)\.weight", 0.3, 0),
    (r"(retina_cls|classification_head\.cls_logits)\.weight", 1.5, 0),
    (r"(retina_cls|classification_head\.cls_logits)\.bias", 1, -8),
    (r"(retina_reg|regression_head\.bbox_reg)\.weight", 0.12, 0),
    (r"^(extractor\.\d+|rpn\.conv1|head\.classifier\.\d)\.weight", 1.2, 0),
    (r"^rpn\.score\.weight", 0.5, 0),
    (r"^rpn\.loc\.weight", 0.08, 0),
    (r"^head\.cls_loc\.weight", 0.3, 0),
    (r"^backbone\.backbone\..*\.conv\.weight|^backbone\.\w+\d\..*\.conv\.weight", 1.1, 0),
    (r"\.m\.\d+\.conv2\.(pconv\.)?bn\.weight", 0.4, 0),
    (r"reg_preds\.\d\.weight", 0.16, 0),
    (r"reg_preds\.\d\.bias", 1, 1.5),
    (r"obj_preds\.\d\.bias", 1, -4),
]
# Of systems whose pixels are in 0..255 where the first layer reads them.
STEMS = {
    "mmdetection_caffe": (r"backbone\.conv1\.weight", 0.017, 0),
    "yolox": (r"stem\.conv\.conv\.weight", 0.012, 0),
}


def draw(shapes: Mapping[str, Any], scales: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Numbers of these shapes, each from the place of its name; counters stay as they are."""
    rng, drawn = np.random.default_rng(0), {}
    for name, value in shapes.items():
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            drawn[name] = np.int64(7)
            continue
        numbers = rng.standard_normal(shape, np.float32)
        if len(shape) > 1:
            fan_in = int(np.prod(shape[1:]))
            rows = tuple(range(1, len(shape)))
            # Else what a ReLU gives all features would be all that is seen.
            numbers -= numbers.mean(rows, keepdims=True) if fan_in > 9 else 0
            numbers *= np.float32(np.sqrt(2 / fan_in))
        elif name.endswith(("weight", "running_var")):
            numbers = rng.random(shape, np.float32) + np.float32(0.5)
        else:
            numbers *= np.float32(0.1)
        for _, scale, shift in [each for each in scales if re.search(each[0], name)][-1:]:
            numbers = numbers * np.float32(scale) + np.float32(shift)
        drawn[name] = numbers
    return drawn


def write(path: Path, names: str, detector: str, kind: str, yolox_code: str) -> None:
    """Writes a .pth as the system does it.

    Args:
        path: of the file.
        names: whose: a key of `interop.dialects.SYSTEMS`.
        detector: as `jaxdet.build` takes it, or "" for a classifier.
        kind: the size of a YOLOX, or what torchvision calls its model.
        yolox_code: a folder of YOLOX's own code.
    """
    if names in ("torchvision", "resnet", "vgg"):
        shapes = _torchvision(detector, kind)
    elif detector == "yolox":
        shapes = _yolox(kind, yolox_code)
    else:
        shapes = _named(names, detector)
    tensors = draw(shapes, [*SCALES, *filter(None, [STEMS.get(names)])])
    content = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    if names.startswith("mmdetection"):
        meta = {"CLASSES": tuple(COCO.values()), "mmdet_version": "2.11.0", "epoch": 12}
        content = {"meta": meta, "state_dict": content}
    elif detector == "yolox":
        content = {"model": content, "start_epoch": 300}
    torch.save(content, path)


def _torchvision(detector: str, kind: str) -> dict[str, Any]:
    models = torchvision.models.detection if detector else torchvision.models
    with torch.device("meta"):
        more = {"weights_backbone": None} if detector else {}
        return getattr(models, kind)(weights=None, **more).state_dict()


def _yolox(kind: str, code: str) -> dict[str, Any]:
    sys.path.insert(0, code)
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead

    size = {"depthwise": False} | YOLOX_SIZES[kind]
    depth, rest = size.pop("depth"), {"in_channels": [256, 512, 1024]} | size
    head = YOLOXHead(80, **rest)
    return YOLOX(YOLOPAFPN(depth, **rest), head).state_dict()


def _named(names: str, detector: str) -> dict[str, Any]:
    settings = interop.settings_for(names, detector)
    count = {"simple_faster_rcnn": 20}.get(names, 1 if detector == "rpn" else 80)
    images = model_file.blank_images(1, (64, 64), 8 if detector == "fast_rcnn" else 0)
    built = jaxdet.build(detector, num_classes=count, **settings)
    shapes = jax.eval_shape(built.init, jax.random.key(0), images)
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return interop.to_torch(blank, names=names)
