"""Box head: features of regions -> class logits and box deltas.

Reference: Girshick, Fast R-CNN, arXiv:1504.08083, sec. 2.1 and 3.1; two hidden
layers as in arXiv:1612.03144, sec. 4.2; four convolutions with group norm as in
arXiv:1803.08494, sec. 4.2; mmdetection 2.11, ConvFCBBoxHead.
"""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jaxdet.models.layers import Conv, norm_layer, xavier_uniform
from jaxdet.types import short_repr

LOGITS_INIT = nn.initializers.normal(0.01)
DELTAS_INIT = nn.initializers.normal(0.001)
# Batch norm is not among them: padded regions would leak into its statistics.
NORM_KINDS = ("none", "group")


class BoxHead(nn.Module):
    """Shared layers, then a branch with a classifier and one with a regressor.

    Each part is 3x3 convolutions, then fully connected layers, all with ReLU.
    A kernel that reads a whole map keeps the shape (height, width, channels,
    features), so that its layout is known wherever weights are converted.

    Attributes:
        num_classes: K, background not counted; a detector sets it.
        hidden: width of the fully connected layers.
        shared_convs: number of convolutions that both branches share.
        shared_fcs: fully connected layers behind them.
        class_convs: convolutions of the classifier's branch.
        class_fcs: fully connected layers behind them.
        box_convs: convolutions of the regressor's branch.
        box_fcs: fully connected layers behind them.
        conv_channels: of every convolution's output.
        norm: "none", or "group" behind every convolution.
        average_pool: replace a map by its mean before the first layer that is
            not a convolution.
        dropout: share of the fully connected layers' outputs that are zeroed in
            training, the rest grows to keep the sum.
        class_agnostic: predict one box for all classes instead of one for each.
        dtype: type of the hidden layers; the outputs are computed in float32.
    """

    num_classes: int = 80
    hidden: int = 1024
    shared_convs: int = 0
    shared_fcs: int = 2
    class_convs: int = 0
    class_fcs: int = 0
    box_convs: int = 0
    box_fcs: int = 0
    conv_channels: int = 256
    norm: str = "none"
    average_pool: bool = False
    dropout: float = 0.0
    class_agnostic: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @nn.compact
    def __call__(
        self, features: Float[Array, "*R H W C"], keys: Key[Array, "..."] | None = None
    ) -> tuple[Float[Array, "*R {self.num_classes}+1"], Float[Array, "*R k 4"]]:
        """Computes logits, background last, and deltas (k is K, or 1 when class-agnostic).

        Args:
            features: pooled maps of the regions.
            keys: for dropout, one for each of the leading axes but the last,
                such as one an image; None drops nothing.

        Raises:
            ValueError: if a branch has convolutions behind shared fully
                connected layers, or another setting does not make sense.
        """
        self._check_settings()
        regions = features.shape[:-3]
        x = features.reshape(-1, *features.shape[-3:])
        shared = self._layers(x, self.shared_convs, self.shared_fcs, "", keys)
        classes = self._layers(shared, self.class_convs, self.class_fcs, "class_", keys)
        boxes = self._layers(shared, self.box_convs, self.box_fcs, "box_", keys)

        num_boxes = 1 if self.class_agnostic else self.num_classes
        logits = self._dense(classes, self.num_classes + 1, LOGITS_INIT, jnp.float32, "logits")
        deltas = self._dense(boxes, num_boxes * 4, DELTAS_INIT, jnp.float32, "deltas")
        return logits.reshape(*regions, -1), deltas.reshape(*regions, num_boxes, 4)

    def _layers(
        self, x: Array, num_convs: int, num_fcs: int, prefix: str, keys: Array | None
    ) -> Array:
        for i in range(num_convs):
            name = f"{prefix}conv{i}"
            use_bias = self.norm == "none"
            x = Conv(self.conv_channels, 3, use_bias=use_bias, dtype=self.dtype, name=name)(x)
            if self.norm == "group":
                name = f"{prefix}norm{i}"
                norm = norm_layer("group", x.shape[-1], train=False, dtype=self.dtype, name=name)
                x = norm(x)
            x = nn.relu(x)
        for i in range(num_fcs):
            name = f"{prefix}fc{i}"
            x = nn.relu(self._dense(x, self.hidden, xavier_uniform, self.dtype, name))
            if self.dropout > 0 and keys is not None:
                x = x * self._kept(x, keys, name)
        return x

    def _kept(self, x: Array, keys: Array, name: str) -> Array:
        """0 for dropped outputs, else what the others grow by; each layer draws its own."""
        keys = jnp.ravel(keys)
        shape = (len(x) // len(keys), x.shape[-1])
        # A stable number of the layer's name: what one layer draws depends on no other.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(name.encode())))(keys)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, shape))(keys)
        return (kept.reshape(x.shape) / (1 - self.dropout)).astype(x.dtype)

    def _dense(self, x: Array, features: int, init, dtype: DTypeLike, name: str) -> Array:
        """A layer that reads all of a region, be it a map or a vector."""
        if x.ndim == 4 and self.average_pool:
            x = jnp.mean(x, axis=(1, 2))
        axes = tuple(range(1, x.ndim))
        dense = nn.DenseGeneral(
            features,
            axis=axes,
            kernel_init=init,
            dtype=dtype,
            promote_dtype=_all_but_the_bias,
            name=name,
        )
        return dense(x.astype(dtype)).astype(dtype)

    def _check_settings(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, found {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.norm not in NORM_KINDS:
            raise ValueError(f"norm must be one of {', '.join(NORM_KINDS)}; found {self.norm!r}")
        if self.shared_fcs and (self.class_convs or self.box_convs):
            raise ValueError(
                f"shared_fcs must be 0 where branches have convolutions; found {self.shared_fcs} "
                f"with class_convs {self.class_convs} and box_convs {self.box_convs}"
            )


def _all_but_the_bias(x, kernel, bias, *, dtype):
    """In `dtype`, but for the bias: its gradient is a sum over all regions, in its own type."""
    return (*promote_dtype(x, kernel, dtype=dtype), bias)
