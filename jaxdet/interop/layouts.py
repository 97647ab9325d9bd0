"""How our arrays lie in torch, and back.

    ours, Linen                       theirs, torch
    conv kernel (H, W, I, O)          weight (O, I, H, W)
    FC's kernel on a map (H, W, C, O) weight (O, C * H * W)
    FC kernel (I, O)                  weight (O, I)
    scale, bias                       weight, bias
    mean, var (in "batch_stats")      running_mean, running_var

Background is the last class here and in mmdetection, the first in torchvision and
simple-faster-rcnn, which also keep a box for it: dropped on the way in, zeros on
the way out. The latter's deltas are (dy, dx, dh, dw).
"""

import re
from typing import Any

import numpy as np

# Dialects whose box heads have background first, and a box for it.
BACKGROUND_FIRST = ("torchvision", "simple_faster_rcnn")
# Dialects whose deltas are (dy, dx, dh, dw).
YXYX_DIALECTS = ("simple_faster_rcnn",)
# What reads the image's colours, of a ResNet, of a VGG and of a CSPDarknet.
STEMS = (
    "params/backbone/stem_conv/kernel",
    "params/backbone/layer1/conv1/kernel",
    "params/backbone/stem/conv/kernel",
)


def to_torch_layout(path: str, value: np.ndarray, dialect: str) -> np.ndarray:
    """A leaf as torch has it."""
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


def from_torch_layout(
    path: str, value: np.ndarray, shape: tuple[int, ...], dialect: str
) -> np.ndarray:
    """Undoes `to_torch_layout`; `shape` is the leaf's."""
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


def torch_shape(path: str, shape: tuple[int, ...], dialect: str) -> tuple[int, ...]:
    """The shape that `to_torch_layout` gives to a leaf of `shape`."""
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


def turn_colours(kernel: Any) -> Any:
    """RGB <-> BGR for each pixel that a stem reads at once: one, or four behind `focus`."""
    height, width, channels, features = kernel.shape
    pixels = kernel.reshape(height, width, channels // 3, 3, features)
    return pixels[:, :, :, ::-1].reshape(kernel.shape)


def _swap_axes(value: np.ndarray) -> np.ndarray:
    """Rows (dx, dy, dw, dh) <-> (dy, dx, dh, dw), of every box."""
    rows = value.reshape(-1, 2, 2, *value.shape[1:])
    return rows[:, :, ::-1].reshape(value.shape)


def _is_linear(path: str) -> bool:
    """Whether a kernel that reads a map is a fully connected layer's, not a convolution's."""
    return "box_head/" in path and not re.search(r"conv\d/kernel$", path)
