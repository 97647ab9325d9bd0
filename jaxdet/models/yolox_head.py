"""YOLOX's decoupled head: pyramid -> class logits, raw boxes and objectness of all grid points.

Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.cspdarknet import conv_maker, scaled
from jaxdet.models.layers import Conv, torch_uniform
from jaxdet.types import short_repr

zeros = nn.initializers.zeros
CHANNELS = 256  # At width 1.
NUM_CONVS = 2
# Every grid point starts with this objectness and this score for every class: the many
# negatives would swamp the first steps otherwise.
PRIOR = 0.01


class YOLOXHead(nn.Module):
    """On every level layers of its own: a 1x1 stem, then two 3x3 for classes, two for boxes.

    Attributes:
        num_classes: K; there is no background class. A detector sets it.
        width: multiple of the channels, of which there are 256 at width 1.
        depthwise: split 3x3 convolutions into a depthwise and a 1x1 one.
        activation: "silu", "relu" or "leaky_relu".
        norm: "frozen", "batch", "sync" or "group"; see `norm_layer`.
        axis_name: the mapped axis over which "sync" averages while training.
        dtype: type of the hidden layers and of what the outputs are products of; these are float32.
    """

    num_classes: int = 80
    width: float = 1.0
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the statistics that never move."""
        return ("batch_stats",) if self.norm == "frozen" else ()

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "B N {self.num_classes}"], Float[Array, "B N 4"], Float[Array, "B N"]]:
        """Computes class logits, boxes and objectness logits, in the order of the grid points.

        N counts levels, finest first, then y, then x. A box is (x, y) of its
        centre, from its grid point in strides, and the logarithms of its
        width and height in strides.

        Raises:
            ValueError: if a setting is not one of those listed.
        """
        conv, channels = conv_maker(self), scaled(CHANNELS, self.width)
        prior = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))

        def tower(x: Array, name: str) -> Array:
            for i in range(NUM_CONVS):
                x = conv(channels, 3, name=f"{name}_{i}")(x, train=train)
            return x

        def output(x: Array, features: int, name: str, bias: Callable = zeros) -> Array:
            last = Conv(
                features,
                1,
                kernel_init=torch_uniform,
                bias_init=bias,
                dtype=self.dtype,
                output_dtype=jnp.float32,
                name=name,
            )
            return last(x).reshape(x.shape[0], -1, features)

        logits, boxes, objectness = [], [], []
        for level, x in enumerate(maps):
            x = conv(channels, 1, name=f"stem{level}")(x, train=train)
            class_features = tower(x, f"class_conv{level}")
            box_features = tower(x, f"box_conv{level}")
            logits.append(output(class_features, self.num_classes, f"logits{level}", prior))
            boxes.append(output(box_features, 4, f"boxes{level}"))
            objectness.append(output(box_features, 1, f"objectness{level}", prior))
        logits, boxes, objectness = (
            jnp.concatenate(levels, axis=1) for levels in (logits, boxes, objectness)
        )
        return logits, boxes, objectness[..., 0]
