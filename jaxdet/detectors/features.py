"""Where every detector starts: from uint8 images to a feature pyramid."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdet.models import resnet, vgg
from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import ResNet
from jaxdet.models.vgg import VGG
from jaxdet.ops import box_coder, pixels
from jaxdet.ops.contracts import check_at_least
from jaxdet.types import Images

BACKBONES = ("resnet", "vgg")
FPN_STRIDES = (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The part of a detector's settings that is about classes and pixels.

    Attributes:
        num_classes: K, without background.
        dtype: of the networks' computation, "float32" or "bfloat16".
        pixel_mean: of RGB in 0..255, subtracted from every pixel.
        pixel_std: of RGB, which pixels are divided by.
        pixel_padding: value of the pixels beside an image, in 0..255; None
            makes them 0 after mean and std.
    """

    num_classes: int
    dtype: str = "float32"
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    pixel_padding: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings(ImageSettings):
    """The part of an anchor-based detector's settings that is about its features.

    Attributes:
        backbone: "resnet", with an FPN behind it, or "vgg", whose last map is all.
        depth: of a ResNet: 10, 18, 34, 50 or 101; of a VGG: 16.
        width: channels of the backbone's first layer.
        norm: "frozen", "batch", "sync" or "group"; "frozen" needs pretrained
            weights. Of a VGG "none" instead of "frozen".
        style: "pytorch" or "caffe": where a ResNet's bottlenecks stride; the
            weights of "caffe" read BGR and are turned when they are loaded.
        frozen_stages: leading backbone stages that do not train, 0..4, or 0..5
            of a VGG; 0 freezes nothing, where mmdetection's 0 freezes the stem.
        zero_init_residual: a ResNet's blocks start as the identity.
        fpn_channels: of the pyramid and of the heads on all of its cells; a
            VGG's heads have the channels of its last map.
        size_divisor: an image's sides are rounded up to it, and anchors beyond
            are unused; a VGG has no cell that its image does not fill.
        max_ratio: largest change of a side that a delta makes; 0 for no limit.

    Raises:
        ValueError: for a setting out of range.
    """

    backbone: str = "resnet"
    depth: int = 50
    width: int = 64
    norm: str = "frozen"
    style: str = "pytorch"
    frozen_stages: int = 0
    zero_init_residual: bool = False
    fpn_channels: int = 256
    size_divisor: int = 32
    max_ratio: float = box_coder.MAX_RATIO

    def __post_init__(self):
        """Checks what nothing else would name."""
        check_at_least(1, width=self.width, fpn_channels=self.fpn_channels)
        check_at_least(0, max_ratio=self.max_ratio)

    @property
    def largest_ratio(self) -> float:
        """`max_ratio` as the coder takes it."""
        return self.max_ratio or math.inf

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell of each map, finest first."""
        return FPN_STRIDES if self.backbone == "resnet" else (vgg.STRIDE,)

    @property
    def channels(self) -> int:
        """Of every map."""
        return self.fpn_channels if self.backbone == "resnet" else self.width * vgg.WIDTHS[-1]


def make_backbone(s: FeatureSettings, axis_name: str | None) -> nn.Module:
    """The backbone that the settings describe.

    Raises:
        ValueError: if its name is unknown, or its depth.
    """
    if s.backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; found {s.backbone!r}")
    common = dict(
        width=s.width,
        norm=s.norm,
        frozen_stages=s.frozen_stages,
        axis_name=axis_name,
        dtype=jnp.dtype(s.dtype),
    )
    if s.backbone == "resnet":
        residual = dict(style=s.style, zero_init_residual=s.zero_init_residual)
        return ResNet(depth=s.depth, **residual, **common)
    if s.depth != vgg.DEPTH:
        raise ValueError(f"depth of a vgg must be {vgg.DEPTH}; found {s.depth}")
    return VGG(**common)


def make_neck(s: FeatureSettings, num_levels: int, **settings: Any) -> Callable:
    """The FPN that the settings describe, or nothing behind a VGG.

    Args:
        s: the detector's settings.
        num_levels: maps of the pyramid.
        **settings: other attributes of `FPN`.
    """
    if s.backbone == "vgg":
        return lambda maps: maps
    dtype = jnp.dtype(s.dtype)
    return FPN(channels=s.fpn_channels, num_levels=num_levels, dtype=dtype, **settings)


def frozen_parameters(backbone: str, frozen_stages: int) -> tuple[str, ...]:
    """Path prefixes below "params" that a detector's `frozen_stages` freezes."""
    module = vgg if backbone == "vgg" else resnet
    return module.frozen_parameters(frozen_stages)


class Network(nn.Module):
    """Backbone and neck, which the network of every detector begins with.

    Attributes:
        settings: those of the detector.
        axis_name: the mapped axis over which "sync" averages while training.
    """

    settings: FeatureSettings
    axis_name: str | None = None

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        self.backbone = make_backbone(self.settings, self.axis_name)
        self.neck = make_neck(self.settings, self.num_levels)

    @property
    def num_levels(self) -> int:
        """Maps of the pyramid."""
        return len(self.settings.strides)

    def features(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Array, ...]:
        """The pyramid of normalised images, finest level first."""
        return self.neck(self.backbone(x, train=train))


def normalize(s: ImageSettings, images: Images) -> Float[Array, "B H W 3"]:
    """Pixels as the backbone reads them, the canvas beside the images overwritten."""
    one = partial(pixels.normalize, mean=s.pixel_mean, std=s.pixel_std, padding=s.pixel_padding)
    return jax.vmap(one)(images.pixels, images.sizes)


def initialize(network: nn.Module, key: Key[Array, ""], images: Images) -> dict:
    """The first variables of a detector's network, whose `settings` say what it expects."""
    # Under jit only the parameters are computed: the forward pass is dead code.
    return jax.jit(network.init)(key, normalize(network.settings, images))


def extract(
    network: nn.Module,
    variables: dict,
    x: Float[Array, "B H W 3"],
    *,
    train: bool,
    method: str = "features",
) -> tuple[tuple[Array, ...], dict]:
    """The network's pyramid of normalised images, finest level first.

    Args:
        network: a detector's.
        variables: of the network.
        x: as `normalize` gives it.
        train: whether the statistics of the norms come from the batch.
        method: of the network; another one than "features" may do more of it.

    Returns:
        What the method returns, and the running statistics after it: those
        given, changed by a training batch; {} for networks that have none.
    """
    mutable = ["batch_stats"] if train and "batch_stats" in variables else False
    result = network.apply(variables, x, train=train, method=method, mutable=mutable)
    outputs, updates = result if mutable else (result, variables)
    return outputs, updates.get("batch_stats", {})
