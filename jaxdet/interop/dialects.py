"""What each of our modules is called in other systems.

`SYSTEMS` is the vocabulary: whose weights and settings they are. Two systems may
give their layers the same names, and one system's detectors may give one layer
different names; `RULES` are those of a dialect, which `dialect_of` finds.
"""

import re
from collections.abc import Iterable

# Whose weights -> whether they read BGR images.
SYSTEMS = {
    "mmdetection": False,
    "mmdetection_caffe": True,
    "torchvision": False,
    "yolox": True,  # Since its version 0.1.1, whose weights are the ones around.
    "yolox_legacy": False,
    "simple_faster_rcnn": False,
    "resnet": False,
    "vgg": False,
}
# What a classifier has of a detector is a part of it.
CLASSIFIERS = ("resnet", "vgg")
# Our module, as a pattern over its whole path -> its name in a ResNet file alone.
RESNET_RULES = {
    r"backbone/stem_conv": "conv1",
    r"backbone/stem_norm": "bn1",
    r"backbone/layer(\d)/block(\d+)/conv(\d)": r"layer\1.\2.conv\3",
    r"backbone/layer(\d)/block(\d+)/norm(\d)": r"layer\1.\2.bn\3",
    r"backbone/layer(\d)/block(\d+)/downsample_conv": r"layer\1.\2.downsample.0",
    r"backbone/layer(\d)/block(\d+)/downsample_norm": r"layer\1.\2.downsample.1",
}
# VGG-16: torchvision counts convolutions, ReLUs and poolings in one row.
VGG_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_RULES = {
    **{
        f"backbone/layer{stage}/conv{i}": f"features.{place}"
        for stage, places in enumerate(VGG_PLACES, 1)
        for i, place in enumerate(places, 1)
    },
    r"box_head/fc0": "classifier.0",
    r"box_head/fc1": "classifier.3",
}
# In YOLOX the neck is called backbone, and what it holds first is the backbone.
YOLOX_CSP_LAYERS = {
    **{f"backbone/dark{i}/csp": f"backbone.backbone.dark{i}.1" for i in (2, 3, 4)},
    "backbone/dark5/csp": "backbone.backbone.dark5.2",
    "neck/top_down4": "backbone.C3_p4",
    "neck/top_down3": "backbone.C3_p3",
    "neck/bottom_up4": "backbone.C3_n3",
    "neck/bottom_up5": "backbone.C3_n4",
}
YOLOX_CONV_BLOCKS = {
    r"backbone/stem": "backbone.backbone.stem.conv",
    r"backbone/dark(\d)/down": r"backbone.backbone.dark\1.0",
    r"backbone/dark5/spp/conv(\d)": r"backbone.backbone.dark5.1.conv\1",
    r"neck/reduce5": "backbone.lateral_conv0",
    r"neck/reduce4": "backbone.reduce_conv1",
    r"neck/down3": "backbone.bu_conv2",
    r"neck/down4": "backbone.bu_conv1",
    r"head/stem(\d)": r"head.stems.\1",
    r"head/class_conv(\d)_(\d)": r"head.cls_convs.\1.\2",
    r"head/box_conv(\d)_(\d)": r"head.reg_convs.\1.\2",
    **{rf"{ours}/conv(\d)": rf"{theirs}.conv\1" for ours, theirs in YOLOX_CSP_LAYERS.items()},
    **{
        rf"{ours}/block(\d+)_conv(\d)": rf"{theirs}.m.\1.conv\2"
        for ours, theirs in YOLOX_CSP_LAYERS.items()
    },
}
YOLOX_LAYERS = {
    "conv": "conv",
    "norm": "bn",
    "depthwise_conv": "dconv.conv",
    "depthwise_norm": "dconv.bn",
    "pointwise_conv": "pconv.conv",
    "pointwise_norm": "pconv.bn",
}
YOLOX_RULES = {
    **{
        f"{ours}/{layer}": f"{theirs}.{name}"
        for ours, theirs in YOLOX_CONV_BLOCKS.items()
        for layer, name in YOLOX_LAYERS.items()
    },
    r"head/logits(\d)": r"head.cls_preds.\1",
    r"head/boxes(\d)": r"head.reg_preds.\1",
    r"head/objectness(\d)": r"head.obj_preds.\1",
}
TORCHVISION_RULES = {
    **{ours: f"backbone.body.{theirs}" for ours, theirs in RESNET_RULES.items()},
    r"neck/lateral(\d)": r"backbone.fpn.inner_blocks.\1.0",
    r"neck/output(\d)": r"backbone.fpn.layer_blocks.\1.0",
}
RULES: dict[str, dict[str, str]] = {
    "mmdetection": {
        **{ours: f"backbone.{theirs}" for ours, theirs in RESNET_RULES.items()},
        r"neck/lateral(\d)": r"neck.lateral_convs.\1.conv",
        r"neck/output(\d)": r"neck.fpn_convs.\1.conv",
        r"rpn_head/conv": "rpn_head.rpn_conv",
        r"rpn_head/logits": "rpn_head.rpn_cls",
        r"rpn_head/deltas": "rpn_head.rpn_reg",
        r"box_head/conv(\d)": r"roi_head.bbox_head.shared_convs.\1.conv",
        r"box_head/norm(\d)": r"roi_head.bbox_head.shared_convs.\1.gn",
        r"box_head/fc(\d)": r"roi_head.bbox_head.shared_fcs.\1",
        r"box_head/class_conv(\d)": r"roi_head.bbox_head.cls_convs.\1.conv",
        r"box_head/class_norm(\d)": r"roi_head.bbox_head.cls_convs.\1.gn",
        r"box_head/class_fc(\d)": r"roi_head.bbox_head.cls_fcs.\1",
        r"box_head/box_conv(\d)": r"roi_head.bbox_head.reg_convs.\1.conv",
        r"box_head/box_norm(\d)": r"roi_head.bbox_head.reg_convs.\1.gn",
        r"box_head/box_fc(\d)": r"roi_head.bbox_head.reg_fcs.\1",
        r"box_head/logits": "roi_head.bbox_head.fc_cls",
        r"box_head/deltas": "roi_head.bbox_head.fc_reg",
        r"retina_head/class_conv(\d)": r"bbox_head.cls_convs.\1.conv",
        r"retina_head/box_conv(\d)": r"bbox_head.reg_convs.\1.conv",
        r"retina_head/logits": "bbox_head.retina_cls",
        r"retina_head/deltas": "bbox_head.retina_reg",
    },
    "torchvision": {
        **TORCHVISION_RULES,
        r"rpn_head/conv": "rpn.head.conv.0.0",
        r"rpn_head/logits": "rpn.head.cls_logits",
        r"rpn_head/deltas": "rpn.head.bbox_pred",
        r"box_head/fc0": "roi_heads.box_head.fc6",
        r"box_head/fc1": "roi_heads.box_head.fc7",
        r"box_head/logits": "roi_heads.box_predictor.cls_score",
        r"box_head/deltas": "roi_heads.box_predictor.bbox_pred",
    },
    "torchvision_retinanet": {
        **TORCHVISION_RULES,
        r"neck/output3": "backbone.fpn.extra_blocks.p6",
        r"neck/output4": "backbone.fpn.extra_blocks.p7",
        r"retina_head/class_conv(\d)": r"head.classification_head.conv.\1.0",
        r"retina_head/box_conv(\d)": r"head.regression_head.conv.\1.0",
        r"retina_head/logits": "head.classification_head.cls_logits",
        r"retina_head/deltas": "head.regression_head.bbox_reg",
    },
    "simple_faster_rcnn": {
        **{
            ours: theirs.replace("features", "extractor")
            for ours, theirs in VGG_RULES.items()
            if ours.startswith("backbone/")
        },
        r"rpn_head/conv": "rpn.conv1",
        r"rpn_head/logits": "rpn.score",
        r"rpn_head/deltas": "rpn.loc",
        r"box_head/fc0": "head.classifier.0",
        r"box_head/fc1": "head.classifier.2",
        r"box_head/logits": "head.score",
        r"box_head/deltas": "head.cls_loc",
    },
    "resnet": RESNET_RULES,
    "vgg": VGG_RULES,
    "yolox": YOLOX_RULES,
}
# Our leaf -> theirs.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Names in torchvision's detectors up to 0.12, its published weights among them -> those since.
OLD_TORCHVISION_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    # A ReLU behind each convolution was counted, too.
    *(
        (
            rf"head\.(\w+)_head\.conv\.{2 * i}\.(weight|bias)",
            rf"head.\1_head.conv.{i}.0.\2",
        )
        for i in range(4)
    ),
)


def dialect_of(system: str, paths: Iterable[str]) -> str:
    """The key of `RULES` for a detector.

    Args:
        system: a key of `SYSTEMS`.
        paths: of the detector's leaves, such as "params/neck/lateral0/kernel".
    """
    if system == "torchvision" and any("/retina_head/" in path for path in paths):
        return "torchvision_retinanet"
    return system.removesuffix("_caffe").removesuffix("_legacy")


def names_of(paths: Iterable[str], dialect: str) -> dict[str, str]:
    """Paths of leaves -> their names; those that have none are left out."""
    names = {}
    for path in paths:
        module, leaf = path.split("/", 1)[1].rsplit("/", 1)
        for pattern, replacement in RULES[dialect].items():
            if (match := re.fullmatch(pattern, module)) and leaf in LEAVES:
                names[path] = f"{match.expand(replacement)}.{LEAVES[leaf]}"
    return names


def current_name(name: str) -> str:
    """The name that torchvision has given since, of one that it gave before."""
    for pattern, replacement in OLD_TORCHVISION_NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name
