"""Where every detector on a ResNet-FPN starts: from uint8 images to a feature pyramid."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import ResNet
from jaxdet.ops import pixels
from jaxdet.types import Images


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """The part of a detector's settings that is about its features.

    Attributes:
        num_classes: K, without background.
        depth: of the ResNet: 10, 18, 34, 50 or 101.
        width: channels of its stem.
        norm: "frozen", "batch", "sync" or "group"; "frozen" needs pretrained weights.
        style: "pytorch" or "caffe": where bottlenecks stride.
        frozen_stages: leading backbone stages that do not train, 0..4.
        zero_init_residual: blocks start as the identity.
        fpn_channels: of the pyramid and of the heads on all of its cells.
        dtype: of the networks' computation, "float32" or "bfloat16".
        pixel_mean: of RGB in 0..255, subtracted from every pixel.
        pixel_std: of RGB, which pixels are divided by.
        size_divisor: an image's sides are rounded up to it; anchors beyond are unused.
    """

    num_classes: int
    depth: int = 50
    width: int = 64
    norm: str = "frozen"
    style: str = "pytorch"
    frozen_stages: int = 0
    zero_init_residual: bool = False
    fpn_channels: int = 256
    dtype: str = "float32"
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    size_divisor: int = 32


def make_backbone(s: FeatureSettings, axis_name: str | None) -> ResNet:
    """The ResNet that the settings describe."""
    return ResNet(
        depth=s.depth,
        width=s.width,
        norm=s.norm,
        style=s.style,
        frozen_stages=s.frozen_stages,
        zero_init_residual=s.zero_init_residual,
        axis_name=axis_name,
        dtype=jnp.dtype(s.dtype),
    )


def make_neck(s: FeatureSettings, *, num_levels: int) -> FPN:
    """The FPN that the settings describe; levels beyond the backbone's are pooled."""
    return FPN(channels=s.fpn_channels, num_levels=num_levels, dtype=jnp.dtype(s.dtype))


def normalize(s: FeatureSettings, images: Images) -> Float[Array, "B H W 3"]:
    """Normalised pixels, 0 outside the images."""
    one = partial(pixels.normalize, mean=s.pixel_mean, std=s.pixel_std)
    return jax.vmap(one)(images.pixels, images.sizes)


def extract(
    network: nn.Module, variables: dict, x: Float[Array, "B H W 3"], *, train: bool
) -> tuple[tuple[Array, ...], dict]:
    """The network's pyramid of normalised images, finest level first.

    Returns:
        The pyramid, and the running statistics after it: those given, changed
        by a training batch; {} for networks that have none.
    """
    mutable = ["batch_stats"] if train and "batch_stats" in variables else False
    result = network.apply(variables, x, train=train, method="features", mutable=mutable)
    pyramid, updates = result if mutable else (result, variables)
    return pyramid, updates.get("batch_stats", {})
