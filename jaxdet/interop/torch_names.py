"""Torch weights <-> jaxdet variables, by the names that other systems give their layers.

`RULES` says what each of our modules is called there, and `_to_torch_layout`
and `_from_torch_layout` how its arrays lie there; both directions follow them.

    ours, Linen                       theirs, torch
    conv kernel (H, W, I, O)          weight (O, I, H, W)
    FC's kernel on a map (H, W, C, O) weight (O, C * H * W)
    FC kernel (I, O)                  weight (O, I)
    scale, bias                       weight, bias
    mean, var (in "batch_stats")      running_mean, running_var

Background is the last class here and in mmdetection, the first in torchvision and
simple-faster-rcnn, which also keep a box for it: dropped on the way in, zeros on
the way out. The latter's deltas are (dy, dx, dh, dw).

Some differences are not in the names. mmdetection's "caffe" backbones expect BGR
images, less their mean but not divided: convert them with `bgr=True`, and give the
detector style="caffe" and pixel_std=(1, 1, 1). torchvision's published detectors
compute with a batch norm epsilon of 0. YOLOX's, from its version 0.1.1 on, expect BGR
images of 0..255 as they are: `bgr=True`, and nothing to subtract or divide by.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.types import UserError

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
# Dialects of a classifier, which has names for a part of a detector only.
CLASSIFIERS = ("resnet", "vgg")
# Dialects whose box heads have background first, and a box for it.
BACKGROUND_FIRST = ("torchvision", "simple_faster_rcnn")
# Dialects whose deltas are (dy, dx, dh, dw).
YXYX_DIALECTS = ("simple_faster_rcnn",)
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
# What reads the image's colours, of a ResNet, of a VGG and of a CSPDarknet.
STEMS = (
    "params/backbone/stem_conv/kernel",
    "params/backbone/layer1/conv1/kernel",
    "params/backbone/stem/conv/kernel",
)
# Of YOLOX since 0.1.1, whose weights are the ones around.
BGR_DIALECTS = ("yolox",)
# Layers whose outputs are as many as the classes.
CLASS_LAYERS = re.compile(r"(box_head/(logits|deltas)|retina_head/logits|/head/logits\d)/")
STEP_COUNTER = "num_batches_tracked"  # Torch's batch norm counts its steps; nothing here does.
NAMES_SHOWN = 3  # Enough of a foreign file to recognise it by.


class LoadReport(NamedTuple):
    """What became of the arrays, as sorted names."""

    loaded: tuple[str, ...]  # Leaves of ours that were filled.
    missing: tuple[str, ...]  # Leaves of ours that the file does not have.
    unused: tuple[str, ...]  # Arrays of the file that nothing of ours corresponds to.

    def __str__(self) -> str:
        """The numbers in a line; leaves that the file lacks keep what they were drawn as."""
        return (
            f"{len(self.loaded)} arrays loaded, {len(self.missing)} drawn at random, "
            f"{len(self.unused)} unused"
        )


def from_torch(
    tensors: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    source: str = "weights",
    bgr: bool | None = None,
) -> tuple[dict[str, Any], LoadReport]:
    """Fills the variables of a detector from torch weights, as far as names match.

    The kind of names is the one that matches most leaves: mmdetection, YOLOX,
    simple-faster-rcnn, torchvision, or one of its classifiers alone: a ResNet fills just the
    backbone, a VGG-16 also the fully connected layers of a box head of its size.

    Args:
        tensors: arrays in torch's names and layouts, as `load_file` gives them.
        variables: "params" and perhaps "batch_stats"; arrays or the shapes
            that `jax.eval_shape` gives.
        source: what to call the tensors in messages, such as the file's path.
        bgr: whether the weights read BGR images; the input channels of the
            stem, where the file has it, are reversed for our RGB. None is True
            for YOLOX's names, else False.

    Returns:
        The variables, with NumPy arrays of the leaf's own type where filled
        and the leaf as it was elsewhere; and what was filled. Layers for
        another number of classes are not: the rest serves as a start for
        classes of one's own.

    Raises:
        UserError: if an array has another shape than its leaf, no name
            matches, or the weights of a batch norm would go to a group norm.
    """
    tensors = {_current_name(name): value for name, value in tensors.items()}
    leaves = flatten_dict(dict(variables), sep="/")
    named = {dialect: _torch_names(leaves, dialect) for dialect in RULES}
    dialect = max(named, key=lambda d: sum(name in tensors for name in named[d].values()))
    names = {path: name for path, name in named[dialect].items() if name in tensors}
    if not names:
        found = ", ".join(sorted(tensors)[:NAMES_SHOWN]) or "nothing"
        wanted = ", ".join(f"{d}'s {next(iter(n.values()))}" for d, n in named.items() if n)
        raise UserError(f"{source}: no name is known; wanted names such as {wanted}; found {found}")
    _check_norms(names, tensors, source)
    filled = {}
    for path, name in names.items():
        value, leaf = np.asarray(tensors[name]), leaves[path]
        wanted_shape = _torch_shape(path, leaf.shape, dialect)
        if value.shape != wanted_shape and _starts_anew(path, value, wanted_shape, dialect):
            continue
        if value.shape != wanted_shape:
            raise UserError(
                f"{source}: {name} does not fit {path}: wanted the shape {wanted_shape}, "
                f"found {value.shape}"
            )
        filled[path] = _from_torch_layout(path, value, leaf.shape, dialect).astype(leaf.dtype)
    if dialect in BGR_DIALECTS if bgr is None else bgr:
        filled |= {path: _turn_colours(filled[path]) for path in STEMS if path in filled}
    used = set(names.values())
    report = LoadReport(
        loaded=tuple(sorted(filled)),
        missing=tuple(sorted(leaves.keys() - filled.keys())),
        unused=tuple(sorted(n for n in tensors if n not in used and STEP_COUNTER not in n)),
    )
    return unflatten_dict({**leaves, **filled}, sep="/"), report


def to_torch(
    variables: Mapping[str, Any], *, names: str = "mmdetection", bgr: bool | None = None
) -> dict[str, np.ndarray]:
    """Gives the variables of a detector the names and layouts of torch.

    Args:
        variables: "params" and perhaps "batch_stats", as arrays.
        names: "mmdetection", "torchvision" (Faster R-CNN), "torchvision_retinanet",
            "yolox", "simple_faster_rcnn", or "resnet" or "vgg" for what
            torchvision's classifiers have of a detector.
        bgr: whether the weights are to read BGR images; see `from_torch`.

    Returns:
        NumPy arrays by name; batch norm's step counters are left out.

    Raises:
        UserError: if `names` is unknown, or a leaf has no such name.
    """
    if names not in RULES:
        raise UserError(f"names must be one of {', '.join(RULES)}; found {names!r}")
    leaves = flatten_dict(dict(variables), sep="/")
    if names in CLASSIFIERS:
        leaves = {path: leaves[path] for path in _torch_names(leaves, names)}
    if names in BGR_DIALECTS if bgr is None else bgr:
        turned = {path: _turn_colours(leaves[path]) for path in STEMS if path in leaves}
        leaves = leaves | turned
    named = _torch_names(leaves, names)
    if unnamed := sorted(leaves.keys() - named.keys()):
        raise UserError(f"{names} has no name for {', '.join(unnamed)}")
    return {
        name: _to_torch_layout(path, np.asarray(leaves[path]), names)
        for path, name in named.items()
    }


def _torch_names(leaves: Mapping[str, Any], dialect: str) -> dict[str, str]:
    """Path of a leaf, such as "params/neck/lateral0/kernel" -> its name; unknown ones left out."""
    names = {}
    for path in leaves:
        module, leaf = path.split("/", 1)[1].rsplit("/", 1)
        for pattern, replacement in RULES[dialect].items():
            if (match := re.fullmatch(pattern, module)) and leaf in LEAVES:
                names[path] = f"{match.expand(replacement)}.{LEAVES[leaf]}"
    return names


def _check_norms(names: Mapping[str, str], tensors: Mapping[str, Any], source: str) -> None:
    """Refuses statistics beside a scale of ours that has none: they would silently be unused."""
    unplaced = tensors.keys() - set(names.values())
    for path, name in names.items():
        statistics = f"{name.removesuffix('weight')}running_mean"
        if path.endswith("/scale") and statistics in unplaced:
            raise UserError(
                f"{source}: {statistics} has no place, because {path} is a group norm's, which "
                "batch norm weights do not fit: set norm to 'frozen', 'batch' or 'sync', or name "
                "weights that were trained with group norm"
            )


def _current_name(name: str) -> str:
    for pattern, replacement in OLD_TORCHVISION_NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _turn_colours(kernel: Any) -> Any:
    """RGB <-> BGR for each pixel that a stem reads at once: one, or four behind `focus`."""
    height, width, channels, features = kernel.shape
    pixels = kernel.reshape(height, width, channels // 3, 3, features)
    return pixels[:, :, :, ::-1].reshape(kernel.shape)


def _swap_axes(value: np.ndarray) -> np.ndarray:
    """Rows (dx, dy, dw, dh) <-> (dy, dx, dh, dw), of every box."""
    rows = value.reshape(-1, 2, 2, *value.shape[1:])
    return rows[:, :, ::-1].reshape(value.shape)


def _to_torch_layout(path: str, value: np.ndarray, dialect: str) -> np.ndarray:
    value = value.transpose((3, 2, 0, 1)) if value.ndim == 4 else value.T
    if _is_linear(path) and value.ndim == 4:
        value = value.reshape(len(value), -1)
    if dialect in YXYX_DIALECTS and "/deltas/" in path:
        value = _swap_axes(value)
    if dialect in BACKGROUND_FIRST and "box_head/logits/" in path:
        value = np.roll(value, 1, axis=0)
    if dialect in BACKGROUND_FIRST and "box_head/deltas/" in path:
        value = np.concatenate([np.zeros_like(value[:4]), value])
    return value


def _from_torch_layout(
    path: str, value: np.ndarray, shape: tuple[int, ...], dialect: str
) -> np.ndarray:
    """Undoes `_to_torch_layout`; `shape` is the leaf's."""
    if dialect in BACKGROUND_FIRST and "box_head/logits/" in path:
        value = np.roll(value, -1, axis=0)
    if dialect in BACKGROUND_FIRST and "box_head/deltas/" in path:
        value = value[4:]
    if dialect in YXYX_DIALECTS and "/deltas/" in path:
        value = _swap_axes(value)
    if len(shape) < 4:
        return value.T
    height, width, channels, features = shape
    return value.reshape(features, channels, height, width).transpose((2, 3, 1, 0))


def _torch_shape(path: str, shape: tuple[int, ...], dialect: str) -> tuple[int, ...]:
    """The shape that `_to_torch_layout` gives to a leaf of `shape`."""
    if len(shape) == 4:
        height, width, channels, features = shape
        inner = (channels, height, width)
        if _is_linear(path):
            inner = (channels * height * width,)
        return (features, *inner)
    first, *rest = reversed(shape)
    if dialect in BACKGROUND_FIRST and "box_head/deltas/" in path:
        first += 4
    return (first, *rest)


def _starts_anew(path, value, wanted_shape, dialect):
    """Whether a head of another size, or of another number of classes, may start at random."""
    if dialect in CLASSIFIERS:
        return "/box_head/" in path
    return value.shape[1:] == wanted_shape[1:] and CLASS_LAYERS.search(path) is not None


def _is_linear(path: str) -> bool:
    """Whether a kernel that reads a map is a fully connected layer's, not a convolution's."""
    return "box_head/" in path and not re.search(r"conv\d/kernel$", path)
