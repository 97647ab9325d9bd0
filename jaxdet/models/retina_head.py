"""RetinaNet's head: pyramid -> class logits and box deltas of all anchors.

Reference: Lin et al., Focal Loss for Dense Object Detection, sec. 4,
arXiv:1708.02002.
"""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Conv
from jaxdet.types import short_repr

HEAD_INIT = nn.initializers.normal(0.01)
# Every anchor starts as an object with this probability: the many negatives would swamp
# the first steps otherwise (sec. 3.3).
PRIOR = 0.01


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions with ReLU, the same for all levels.

    Attributes:
        num_classes: K; there is no background class. A detector sets it.
        num_anchors: anchors at each pixel of a map; a detector sets it.
        channels: of the towers; 0 for those of the maps.
        num_convs: convolutions of each tower.
        dtype: type of the towers and of what the outputs are sums of; these are float32.
    """

    num_classes: int = 80
    num_anchors: int = 9
    channels: int = 0
    num_convs: int = 4
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ C"], ...]
    ) -> tuple[Float[Array, "B N {self.num_classes}"], Float[Array, "B N 4"]]:
        """Computes logits and deltas, in the order of the anchors.

        N counts levels, finest first, then y, then x, then the anchors of a pixel.

        Raises:
            ValueError: if `num_convs` is below 0.
        """
        if self.num_convs < 0:
            raise ValueError(f"num_convs must be at least 0, found {self.num_convs}")
        channels = self.channels or maps[0].shape[-1]
        class_tower, box_tower = (self._tower(f"{n}_conv", channels) for n in ("class", "box"))
        prior = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))
        output = partial(
            Conv, kernel_size=3, kernel_init=HEAD_INIT, dtype=self.dtype, output_dtype=jnp.float32
        )
        to_logits = output(self.num_anchors * self.num_classes, bias_init=prior, name="logits")
        to_deltas = output(self.num_anchors * 4, name="deltas")
        logits, deltas = [], []
        for x in maps:
            classes, boxes = x, x
            for conv in class_tower:
                classes = nn.relu(conv(classes))
            for conv in box_tower:
                boxes = nn.relu(conv(boxes))
            logits.append(to_logits(classes).reshape(x.shape[0], -1, self.num_classes))
            deltas.append(to_deltas(boxes).reshape(x.shape[0], -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)

    def _tower(self, name: str, channels: int) -> list[Conv]:
        return [
            Conv(channels, 3, kernel_init=HEAD_INIT, dtype=self.dtype, name=f"{name}{i}")
            for i in range(self.num_convs)
        ]
