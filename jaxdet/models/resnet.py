"""ResNet backbones: images -> feature maps C2..C5 with strides 4, 8, 16 and 32.

Reference: He et al., Deep Residual Learning, arXiv:1512.03385, table 1. Layers
are laid out, padded and initialised as in torchvision.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import NORM_EPSILON, Conv, max_pool_3x3_stride_2, norm_layer
from jaxdet.types import short_repr

# Depth -> (blocks of the four stages, whether they are bottlenecks).
DEPTHS = {
    10: ((1, 1, 1, 1), False),  # Not in the paper: half an 18, for small machines.
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
BOTTLENECK_EXPANSION = 4
NUM_STAGES = 4


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Attributes:
        depth: 10, 18, 34, 50 or 101.
        width: channels of the stem; stage i has width * 2^(i - 1), bottlenecks
            four times as many at their end.
        norm: "frozen", "batch", "sync" or "group"; see `norm_layer`.
        style: where bottlenecks have their stride: the 3x3 ("pytorch") or the
            first 1x1 ("caffe") convolution.
        frozen_stages: n of 0..4. From 1 on, the stem and the stages 1..n keep
            their running statistics and pass no gradient to their parameters.
        axis_name: the mapped axis over which "sync" averages while training.
        norm_epsilon: added to variances; 0 in torchvision's published detectors.
        zero_init_residual: start the last scale of each block at 0, so that
            blocks begin as the identity (Goyal et al., arXiv:1706.02677, sec. 5.1).
        remat: keep only what enters each block for the backward pass, which
            computes the rest again: less memory, about a third more time in the
            backbone (Chen et al., arXiv:1604.06174).
        dtype: type of the computation and of the maps.
    """

    depth: int = 50
    width: int = 64
    norm: str = "frozen"
    style: str = "pytorch"
    frozen_stages: int = 0
    axis_name: str | None = None
    norm_epsilon: float = NORM_EPSILON
    zero_init_residual: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr
    strides = (4, 8, 16, 32)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the parameters and statistics that never move.

        Weight decay would move parameters even though their gradient is 0, so
        an optimizer has to leave them out.

        Raises:
            ValueError: if `frozen_stages` is not 0..4.
        """
        if not 0 <= self.frozen_stages <= NUM_STAGES:
            raise ValueError(f"frozen_stages must be 0..{NUM_STAGES}; found {self.frozen_stages}")
        stem = ("stem_conv", "stem_norm") if self.frozen_stages else ()
        parts = (*stem, *(f"layer{i}" for i in range(1, self.frozen_stages + 1)))
        statistics = ("",) if self.norm == "frozen" else parts
        return (
            *(f"params/{part}" for part in parts),
            *(f"batch_stats/{part}".rstrip("/") for part in statistics),
        )

    @property
    def bgr_weights(self) -> bool | None:
        """True of "caffe", whose weights read BGR images; else as the weights' names say."""
        return True if self.style == "caffe" else None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Computes (C2, C3, C4, C5) of normalised images of any height and width.

        Raises:
            ValueError: if a setting is not one of those listed.
        """
        self._check_settings()
        blocks, bottleneck = DEPTHS[self.depth]
        frozen = self.frozen_stages >= 1
        x = Conv(self.width, 7, 2, use_bias=False, dtype=self.dtype, name="stem_conv")(x)
        stem_norm = norm_layer(
            self.norm,
            self.width,
            train=train,
            frozen=frozen,
            axis_name=self.axis_name,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name="stem_norm",
        )
        x = max_pool_3x3_stride_2(nn.relu(stem_norm(x)))

        maps = []
        for i, num_blocks in enumerate(blocks):
            stage = Stage(
                num_blocks=num_blocks,
                features=self.width * 2**i,
                stride=1 if i == 0 else 2,
                bottleneck=bottleneck,
                norm=self.norm,
                style=self.style,
                frozen=i < self.frozen_stages,
                axis_name=self.axis_name,
                norm_epsilon=self.norm_epsilon,
                zero_init_residual=self.zero_init_residual,
                remat=self.remat and i >= self.frozen_stages,
                dtype=self.dtype,
                name=f"layer{i + 1}",
            )
            x = stage(x, train=train)
            if i < self.frozen_stages:
                # Here and not only behind the last one: the necks read every map.
                x = jax.lax.stop_gradient(x)
            maps.append(x)
        return tuple(maps)

    def _check_settings(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, found {self.width}")
        if self.depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}; found {self.depth}")
        if self.style not in ("pytorch", "caffe"):
            raise ValueError(f"style must be 'pytorch' or 'caffe'; found {self.style!r}")
        _ = self.frozen  # Checks the number.


class Stage(nn.Module):
    """Residual blocks at one resolution; the first one brings the stride.

    Attributes are those of `ResNet`, and:
        num_blocks: number of blocks.
        features: channels within the blocks; bottlenecks end with four times as many.
        stride: stride of the first block.
        bottleneck: 1x1, 3x3, 1x1 convolutions instead of two 3x3 ones.
        frozen: whether this stage is a frozen one.
        remat: see `ResNet`.
    """

    num_blocks: int
    features: int
    stride: int
    bottleneck: bool
    norm: str
    style: str
    frozen: bool
    axis_name: str | None
    norm_epsilon: float
    zero_init_residual: bool
    remat: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B _ _ _"]:
        """Runs the blocks in turn."""
        run = partial(Block.__call__, train=train)
        if self.remat:
            run = nn.remat(run)
        for i in range(self.num_blocks):
            block = Block(
                features=self.features,
                stride=self.stride if i == 0 else 1,
                bottleneck=self.bottleneck,
                norm=self.norm,
                style=self.style,
                frozen=self.frozen,
                axis_name=self.axis_name,
                norm_epsilon=self.norm_epsilon,
                zero_init_residual=self.zero_init_residual,
                dtype=self.dtype,
                name=f"block{i}",
            )
            x = run(block, x)
        return x


class Block(nn.Module):
    """Convolutions around a shortcut: two 3x3 ones, or the bottleneck 1x1, 3x3, 1x1.

    Attributes are those of `Stage` without `remat`.
    """

    features: int
    stride: int
    bottleneck: bool
    norm: str
    style: str
    frozen: bool
    axis_name: str | None
    norm_epsilon: float
    zero_init_residual: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B _ _ _"]:
        """Adds the convolved input to the shortcut, which is projected where shapes differ."""
        layers = self._layers()
        shortcut = x
        for i, (features, kernel_size, stride) in enumerate(layers, start=1):
            is_last = i == len(layers)
            x = Conv(
                features, kernel_size, stride, use_bias=False, dtype=self.dtype, name=f"conv{i}"
            )(x)
            x = self._norm(x, f"norm{i}", train, zero_init=is_last and self.zero_init_residual)
            if not is_last:
                x = nn.relu(x)
        if self.stride != 1 or shortcut.shape[-1] != x.shape[-1]:
            shortcut = Conv(
                x.shape[-1],
                1,
                self.stride,
                use_bias=False,
                dtype=self.dtype,
                name="downsample_conv",
            )(shortcut)
            shortcut = self._norm(shortcut, "downsample_norm", train)
        return nn.relu(x + shortcut)

    def _layers(self) -> list[tuple[int, int, int]]:
        """(features, kernel size, stride) of the convolutions beside the shortcut."""
        features, stride = self.features, self.stride
        if not self.bottleneck:
            return [(features, 3, stride), (features, 3, 1)]
        first, second = (stride, 1) if self.style == "caffe" else (1, stride)
        return [
            (features, 1, first),
            (features, 3, second),
            (features * BOTTLENECK_EXPANSION, 1, 1),
        ]

    def _norm(self, x: Array, name: str, train: bool, zero_init: bool = False) -> Array:
        initializers = nn.initializers
        layer = norm_layer(
            self.norm,
            x.shape[-1],
            train=train,
            frozen=self.frozen,
            axis_name=self.axis_name,
            epsilon=self.norm_epsilon,
            scale_init=initializers.zeros if zero_init else initializers.ones,
            dtype=self.dtype,
            name=name,
        )
        return layer(x)
