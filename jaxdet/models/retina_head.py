"""RetinaNet's head: pyramid -> class logits and box deltas of all anchors.

Reference: Lin et al., Focal Loss for Dense Object Detection, sec. 4,
arXiv:1708.02002.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Conv

HEAD_INIT = nn.initializers.normal(0.01)
# Every anchor starts as an object with this probability: the many negatives would swamp
# the first steps otherwise (sec. 3.3).
PRIOR = 0.01


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions with ReLU, the same for all levels.

    Attributes:
        num_classes: K; there is no background class.
        num_anchors: anchors at each pixel of a map.
        channels: of the towers.
        num_convs: convolutions of each tower.
        dtype: type of the towers; the outputs are computed in float32.
    """

    num_classes: int
    num_anchors: int
    channels: int = 256
    num_convs: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ C"], ...]
    ) -> tuple[Float[Array, "B N {self.num_classes}"], Float[Array, "B N 4"]]:
        """Computes logits and deltas, in the order of the anchors.

        N counts levels, finest first, then y, then x, then the anchors of a pixel.
        """
        class_tower, box_tower = self._tower("class_conv"), self._tower("box_conv")
        prior = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))
        num_logits = self.num_anchors * self.num_classes
        to_logits = Conv(num_logits, 3, kernel_init=HEAD_INIT, bias_init=prior, name="logits")
        to_deltas = Conv(self.num_anchors * 4, 3, kernel_init=HEAD_INIT, name="deltas")
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

    def _tower(self, name: str) -> list[Conv]:
        return [
            Conv(self.channels, 3, kernel_init=HEAD_INIT, dtype=self.dtype, name=f"{name}{i}")
            for i in range(self.num_convs)
        ]
