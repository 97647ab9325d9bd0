"""CSPDarknet: images -> feature maps with strides 8, 16 and 32; and the blocks of YOLOX.

Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430; Wang et al., CSPNet,
arXiv:1911.11929, for the blocks; He et al., Spatial Pyramid Pooling,
arXiv:1406.4729. Layers are laid out and padded as in the code of YOLOX, and
kernels are drawn as torch draws them by default.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import (
    Conv,
    activate,
    max_pool_5x5_stride_1,
    norm_layer,
    torch_uniform,
)
from jaxdet.types import short_repr

# Of the stem at width 1; every stage doubles them.
STEM_CHANNELS = 64
# Of a stage at depth 1; dark3 and dark4 have three times as many.
NUM_BLOCKS = 3
# YOLOX's own, which no setting of it changes. Torch calls this momentum 0.03.
NORM_EPSILON = 1e-3
NORM_MOMENTUM = 0.97


class CSPDarknet(nn.Module):
    """The backbone of YOLOX: a Focus stem and the stages dark2 to dark5.

    Attributes:
        depth: multiple of the number of blocks, rounded; every stage keeps one.
        width: multiple of the channels; dark5 has 1024 at width 1.
        depthwise: split 3x3 convolutions, but for the stem's, into a depthwise
            and a 1x1 convolution, as YOLOX-Nano does.
        activation: "silu", "relu" or "leaky_relu".
        norm: "frozen", "batch", "sync" or "group"; see `norm_layer`.
        axis_name: the mapped axis over which "sync" averages while training.
        remat: keep only what enters each stage for the backward pass; see `ResNet`.
        dtype: type of the computation and of the maps.
    """

    depth: float = 1.0
    width: float = 1.0
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    axis_name: str | None = None
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr
    strides = (8, 16, 32)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the statistics that never move."""
        return ("batch_stats",) if self.norm == "frozen" else ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], Float[Array, "B _ _ _"], Float[Array, "B _ _ _"]]:
        """Computes (dark3, dark4, dark5) of images of even height and width.

        Raises:
            ValueError: if a side is odd, or a setting is not one of those listed.
        """
        conv = conv_maker(self)
        channels, blocks = scaled(STEM_CHANNELS, self.width), num_blocks(self.depth)
        x = conv(channels, 3, depthwise=False, name="stem")(focus(x), train=train)
        run = functools.partial(Stage.__call__, train=train)
        run = nn.remat(run) if self.remat else run
        maps = []
        for level, factor in ((2, 1), (3, 3), (4, 3), (5, 1)):
            stage = Stage(
                features=channels * 2 ** (level - 1),
                num_blocks=blocks * factor,
                is_last=level == 5,
                conv=conv,
                name=f"dark{level}",
            )
            x = run(stage, x)
            maps.append(x)
        return tuple(maps[1:])


class Stage(nn.Module):
    """Halves a map and runs a CSP layer on it; the last stage pools pyramids before.

    Attributes:
        features: channels of the output.
        num_blocks: blocks of the CSP layer.
        is_last: whether this is dark5: with an `SPP`, and no shortcuts.
        conv: as `conv_maker` gives it.
    """

    features: int
    num_blocks: int
    is_last: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B _ _ _"]:
        """Computes the stage's map, half as high and wide, rounded up."""
        x = self.conv(self.features, 3, 2, name="down")(x, train=train)
        if self.is_last:
            x = SPP(self.features, self.conv, name="spp")(x, train=train)
        csp = CSPLayer(
            self.features, self.num_blocks, self.conv, shortcut=not self.is_last, name="csp"
        )
        return csp(x, train=train)


class CSPLayer(nn.Module):
    """Bottlenecks on one half of the channels, joined with the other half.

    Attributes:
        features: channels of the output; each half has half as many.
        num_blocks: number of bottlenecks: a 1x1 and a 3x3 convolution.
        conv: as `conv_maker` gives it.
        shortcut: whether each bottleneck adds its input.
    """

    features: int
    num_blocks: int
    conv: Callable[..., nn.Module]
    shortcut: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W O"]:
        """Computes a map of the same height and width."""
        half = self.features // 2
        y = self.conv(half, 1, name="conv1")(x, train=train)
        beside = self.conv(half, 1, name="conv2")(x, train=train)
        for i in range(self.num_blocks):
            before = y
            y = self.conv(half, 1, name=f"block{i}_conv1")(y, train=train)
            y = self.conv(half, 3, name=f"block{i}_conv2")(y, train=train)
            if self.shortcut:
                y = y + before
        y = jnp.concatenate([y, beside], axis=-1)
        return self.conv(self.features, 1, name="conv3")(y, train=train)


class SPP(nn.Module):
    """Spatial pyramid pooling: a map beside its maxima in windows of 5, 9 and 13 pixels.

    Attributes:
        features: channels of the output; of the input half as many are pooled.
        conv: as `conv_maker` gives it.
    """

    features: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W O"]:
        """Computes a map of the same height and width."""
        x = self.conv(x.shape[-1] // 2, 1, name="conv1")(x, train=train)
        return self.conv(self.features, 1, name="conv2")(spatial_pyramid(x), train=train)


class ConvBlock(nn.Module):
    """A convolution without bias, a norm and an activation.

    Attributes:
        features: channels of the output.
        kernel_size: height and width of the kernel, odd.
        stride: step between output positions.
        depthwise: split a kernel larger than 1x1 into a depthwise and a 1x1
            convolution, each with its norm and activation (Howard et al.,
            MobileNets, sec. 3.1, arXiv:1704.04861).
        activation, norm, axis_name, dtype: those of `CSPDarknet`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B _ _ O"]:
        """Convolves a batch of maps."""
        size, stride, channels = self.kernel_size, self.stride, x.shape[-1]
        if not self.depthwise or size == 1:
            return self._layer(x, self.features, size, stride, train=train)
        x = self._layer(
            x, channels, size, stride, groups=channels, prefix="depthwise_", train=train
        )
        return self._layer(x, self.features, 1, prefix="pointwise_", train=train)

    def _layer(
        self,
        x: Array,
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        prefix: str = "",
        train: bool,
    ) -> Array:
        conv = Conv(
            features,
            kernel_size,
            stride,
            groups,
            use_bias=False,
            kernel_init=torch_uniform,
            dtype=self.dtype,
            name=f"{prefix}conv",
        )
        norm = norm_layer(
            self.norm,
            features,
            train=train,
            axis_name=self.axis_name,
            epsilon=NORM_EPSILON,
            momentum=NORM_MOMENTUM,
            dtype=self.dtype,
            name=f"{prefix}norm",
        )
        return activate(norm(conv(x)), self.activation)


def conv_maker(model: nn.Module) -> Callable[..., ConvBlock]:
    """`ConvBlock` with the settings of a backbone, neck or head filled in."""
    names = ("depthwise", "activation", "norm", "axis_name", "dtype")
    return functools.partial(ConvBlock, **{name: getattr(model, name) for name in names})


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiple, rounded down.

    Raises:
        ValueError: if none are left.
    """
    if int(channels * width) < 1:
        raise ValueError(f"width must leave 1 of {channels} channels or more; found {width}")
    return int(channels * width)


def num_blocks(depth: float) -> int:
    """Blocks of a CSP layer at a depth multiple: rounded, and at least one.

    Raises:
        ValueError: if `depth` is not positive.
    """
    if not depth > 0:
        raise ValueError(f"depth must be positive; found {depth}")
    return max(round(NUM_BLOCKS * depth), 1)


def focus(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 4*C"]:
    """Puts the pixels of each 2x2 square behind each other, as channels.

    Top left, bottom left, top right, bottom right, each with all its channels.

    Raises:
        ValueError: if the height or the width is odd.
    """
    height, width = x.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even; found {height} x {width}")
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return jnp.concatenate(corners, axis=-1)


def spatial_pyramid(x: Float[Array, "B H W C"]) -> Float[Array, "B H W 4*C"]:
    """A map and its maxima in windows of 5, 9 and 13 pixels, as channels in this order."""
    maps = [x]
    for _ in range(3):
        maps.append(max_pool_5x5_stride_1(maps[-1]))
    return jnp.concatenate(maps, axis=-1)
