"""Path aggregation network of YOLOX: three backbone maps -> three maps, down and up again.

Reference: Liu et al., Path Aggregation Network, sec. 3.1, arXiv:1803.01534; in
the form of Ge et al., YOLOX, arXiv:2107.08430, which joins maps side by side
and runs CSP layers on them.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.cspdarknet import CSPLayer, conv_maker, num_blocks
from jaxdet.models.layers import upsample_2x
from jaxdet.types import short_repr


class PAFPN(nn.Module):
    """A top-down path that carries meaning to fine maps, and a bottom-up one that carries place.

    Attributes:
        depth: multiple of the number of blocks; see `CSPDarknet`.
        depthwise: split 3x3 convolutions into a depthwise and a 1x1 one.
        activation: "silu", "relu" or "leaky_relu".
        norm: "frozen", "batch", "sync" or "group"; see `norm_layer`.
        axis_name: the mapped axis over which "sync" averages while training.
        dtype: type of the computation and of the maps.
    """

    depth: float = 1.0
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @nn.nowrap
    def strides(self, inputs: Sequence[int]) -> tuple[int, ...]:
        """Pixels a cell of the outputs: those of the backbone's maps.

        Raises:
            ValueError: if these are not three.
        """
        if len(inputs) != 3:
            raise ValueError(f"PAFPN wants three maps; found maps of strides {tuple(inputs)}")
        return tuple(inputs)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the statistics that never move."""
        return ("batch_stats",) if self.norm == "frozen" else ()

    @nn.compact
    def __call__(
        self,
        maps: tuple[
            Float[Array, "B H3 W3 C3"], Float[Array, "B H4 W4 C4"], Float[Array, "B H5 W5 C5"]
        ],
        *,
        train: bool,
    ) -> tuple[Float[Array, "B H3 W3 C3"], Float[Array, "B H4 W4 C4"], Float[Array, "B H5 W5 C5"]]:
        """Computes maps of the same sizes and channels, finest first.

        Args:
            maps: (dark3, dark4, dark5); each half as large as the one before,
                rounded up.
            train: whether the statistics of the norms come from the batch.

        Raises:
            ValueError: if a map is not half as large as the one before, or a
                setting is not one of those listed.
        """
        conv = conv_maker(self)
        dark3, dark4, dark5 = maps
        c3, c4, c5 = (x.shape[-1] for x in maps)

        def csp(channels: int, name: str) -> CSPLayer:
            return CSPLayer(channels, num_blocks(self.depth), conv, name=name)

        reduced5 = conv(c4, 1, name="reduce5")(dark5, train=train)
        joined = _join(upsample_2x(reduced5, dark4.shape[1:3]), dark4)
        top_down4 = csp(c4, "top_down4")(joined, train=train)
        reduced4 = conv(c3, 1, name="reduce4")(top_down4, train=train)
        joined = _join(upsample_2x(reduced4, dark3.shape[1:3]), dark3)
        output3 = csp(c3, "top_down3")(joined, train=train)

        halved3 = conv(c3, 3, 2, name="down3")(output3, train=train)
        output4 = csp(c4, "bottom_up4")(_join(halved3, reduced4), train=train)
        halved4 = conv(c4, 3, 2, name="down4")(output4, train=train)
        output5 = csp(c5, "bottom_up5")(_join(halved4, reduced5), train=train)
        return output3, output4, output5


def _join(first: Array, second: Array) -> Array:
    return jnp.concatenate([first, second], axis=-1)
