"""VGG backbone: images -> one feature map of stride 16.

Reference: Simonyan and Zisserman, arXiv:1409.1556, table 1, column D; without
the last pooling, as Ren et al., Faster R-CNN, sec. 3, arXiv:1506.01497, use it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Conv, max_pool_2x2_stride_2, norm_layer
from jaxdet.types import short_repr

# Convolutions of the five stages, and their channels in units of the first stage's.
CONVS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)
NORMS = ("none", "batch", "sync", "group")


class VGG(nn.Module):
    """VGG-16's convolutions.

    Attributes:
        width: channels of the first stage; the last has eight times as many.
        norm: "none" as in the paper, or "batch", "sync" or "group" of
            `norm_layer` behind every convolution, which training from scratch
            needs; there are no pretrained statistics that "frozen" could keep.
        frozen_stages: n of 0..5; the stages 1..n keep their running statistics
            and pass no gradient to their parameters.
        axis_name: the mapped axis over which "sync" averages while training.
        remat: keep only what enters each stage for the backward pass; see `ResNet`.
        dtype: type of the computation and of the map.
    """

    width: int = 64
    norm: str = "none"
    frozen_stages: int = 0
    axis_name: str | None = None
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr
    strides = (16,)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the parameters and statistics that never move.

        Raises:
            ValueError: if `frozen_stages` is not 0..5.
        """
        if not 0 <= self.frozen_stages <= len(CONVS):
            raise ValueError(f"frozen_stages must be 0..{len(CONVS)}; found {self.frozen_stages}")
        stages = [f"layer{i}" for i in range(1, self.frozen_stages + 1)]
        return tuple(f"{kind}/{stage}" for kind in ("params", "batch_stats") for stage in stages)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"]]:
        """Computes (C5,) of normalised images of any height and width.

        Raises:
            ValueError: if a setting is not one of those listed.
        """
        if self.width < 1:
            raise ValueError(f"width must be at least 1, found {self.width}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; found {self.norm!r}")
        _ = self.frozen  # Checks the number.
        run = functools.partial(Stage.__call__, train=train)
        run = nn.remat(run) if self.remat else run
        for i, (num_convs, width) in enumerate(zip(CONVS, WIDTHS, strict=True)):
            if i > 0:
                x = max_pool_2x2_stride_2(x)
            stage = Stage(
                num_convs=num_convs,
                features=self.width * width,
                norm=self.norm,
                frozen=i < self.frozen_stages,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"layer{i + 1}",
            )
            x = run(stage, x) if i >= self.frozen_stages else stage(x, train=train)
            if i < self.frozen_stages:
                x = jax.lax.stop_gradient(x)
        return (x,)


class Stage(nn.Module):
    """Convolutions at one resolution, each with ReLU.

    Attributes are those of `VGG`, and:
        num_convs: number of convolutions.
        features: channels of each.
        frozen: whether this stage is a frozen one.
    """

    num_convs: int
    features: int
    norm: str
    frozen: bool
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W O"]:
        """Computes the stage's map."""
        for i in range(1, self.num_convs + 1):
            use_bias = self.norm == "none"
            conv = Conv(self.features, 3, use_bias=use_bias, dtype=self.dtype, name=f"conv{i}")
            x = conv(x)
            if self.norm != "none":
                norm = norm_layer(
                    self.norm,
                    self.features,
                    train=train,
                    frozen=self.frozen,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"norm{i}",
                )
                x = norm(x)
            x = nn.relu(x)
        return x
