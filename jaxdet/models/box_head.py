"""Box head: features of regions -> class logits and box deltas.

Reference: Girshick, Fast R-CNN, arXiv:1504.08083, sec. 2.1 and 3.1; two hidden
layers as in arXiv:1612.03144, sec. 4.2.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import xavier_uniform

LOGITS_INIT = nn.initializers.normal(0.01)
DELTAS_INIT = nn.initializers.normal(0.001)


class BoxHead(nn.Module):
    """Fully connected layers with ReLU, then a classifier and a regressor.

    The first layer's kernel keeps the shape (height, width, channels, hidden),
    so that its layout is known wherever weights are converted.

    Attributes:
        num_classes: K, background not counted.
        hidden: width of the fully connected layers.
        num_fcs: number of them.
        class_agnostic: predict one box for all classes instead of one for each.
        dtype: type of the hidden layers; the outputs are computed in float32.
    """

    num_classes: int
    hidden: int = 1024
    num_fcs: int = 2
    class_agnostic: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "*R H W C"]
    ) -> tuple[Float[Array, "*R {self.num_classes}+1"], Float[Array, "*R k 4"]]:
        """Computes logits, background last, and deltas (k is K, or 1 when class-agnostic)."""
        x, axes = features, (-3, -2, -1)
        for i in range(self.num_fcs):
            fc = nn.DenseGeneral(
                self.hidden,
                axis=axes,
                kernel_init=xavier_uniform,
                dtype=self.dtype,
                name=f"fc{i}",
            )
            x, axes = nn.relu(fc(x)), -1
        num_boxes = 1 if self.class_agnostic else self.num_classes
        logits = nn.DenseGeneral(
            self.num_classes + 1, axis=axes, kernel_init=LOGITS_INIT, name="logits"
        )(x.astype(jnp.float32))
        deltas = nn.DenseGeneral(num_boxes * 4, axis=axes, kernel_init=DELTAS_INIT, name="deltas")(
            x.astype(jnp.float32)
        )
        return logits, deltas.reshape(*deltas.shape[:-1], num_boxes, 4)
