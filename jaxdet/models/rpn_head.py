"""Region proposal head: pyramid -> objectness logits and box deltas of all anchors.

Reference: Ren et al., Faster R-CNN, sec. 3.1, arXiv:1506.01497; shared over the
levels of the pyramid as in arXiv:1612.03144, sec. 4.1.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Conv
from jaxdet.models.wide_output import multiply
from jaxdet.types import short_repr

HEAD_INIT = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """A 3x3 convolution with ReLU and two 1x1 ones, the same for all levels.

    Attributes:
        num_anchors: anchors at each pixel of a map; a detector sets it.
        channels: of the 3x3 convolution's output; 0 for those of the maps.
        softmax: give each anchor a score for background and one for object, as
            the first systems did; the logit is their difference, whose sigmoid
            is the softmax of the two.
        dtype: type of the 3x3 convolution and of what the outputs are products of; these are
            float32.
    """

    num_anchors: int = 3
    channels: int = 0
    softmax: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ C"], ...]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """Computes logits and deltas, in the order of the anchors.

        N counts levels, finest first, then y, then x, then the anchors of a pixel.
        """
        channels = self.channels or maps[0].shape[-1]
        conv = Conv(channels, 3, kernel_init=HEAD_INIT, dtype=self.dtype, name="conv")
        num_scores = self.num_anchors * (2 if self.softmax else 1)
        outputs = {"logits": num_scores, "deltas": self.num_anchors * 4}
        layers = [Pointwise(size, name=name)(channels) for name, size in outputs.items()]
        # One product reads each map once.
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*layers, strict=True))
        kernel = kernel[0, 0].astype(self.dtype)
        logits, deltas = [], []
        for x in maps:
            x = nn.relu(conv(x))
            scores, boxes = jnp.split(multiply(x, kernel, bias.dtype) + bias, [num_scores], axis=-1)
            if self.softmax:
                background, foreground = scores[..., ::2], scores[..., 1::2]
                scores = foreground - background
            logits.append(scores.reshape(x.shape[0], -1))
            deltas.append(boxes.reshape(x.shape[0], -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)


class Pointwise(nn.Module):
    """The parameters of a 1x1 convolution, as `layers.Conv` has them.

    Attributes:
        features: channels of the output.
    """

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "1 1 C O"], Float[Array, " O"]]:
        """Makes the kernel, for so many channels, and the bias."""
        kernel = self.param("kernel", HEAD_INIT, (1, 1, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))
