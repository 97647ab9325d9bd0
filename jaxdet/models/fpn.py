"""Feature pyramid network: backbone maps -> maps of equal width at every scale.

Reference: Lin et al., Feature Pyramid Networks, arXiv:1612.03144, sec. 3; the
extra levels are those of Faster R-CNN (ibid., sec. 4.1) and RetinaNet
(arXiv:1708.02002, sec. 4). Details follow mmdetection 2.11.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Conv, upsample_2x, xavier_uniform
from jaxdet.types import short_repr

EXTRAS = ("pool", "on_input", "on_lateral", "on_output")


class FPN(nn.Module):
    """1x1 laterals, a top-down sum, 3x3 outputs and extra levels on top.

    Attributes:
        channels: of every output map.
        num_levels: number of output maps; those beyond the backbone's maps are extra.
        start_level: the first backbone map to use, counted from 0.
        extra: how extra levels are made: every other pixel of the level below
            ("pool"), or 3x3 convolutions of stride 2, the first of them on the
            coarsest backbone map ("on_input"), lateral ("on_lateral") or output ("on_output").
        relu_before_extra: apply ReLU between the convolutions of extra levels.
        dtype: type of the computation and of the maps.
    """

    channels: int = 256
    num_levels: int = 5
    start_level: int = 0
    extra: str = "pool"
    relu_before_extra: bool = False
    dtype: DTypeLike = jnp.float32

    __repr__ = short_repr

    @nn.nowrap
    def strides(self, inputs: Sequence[int]) -> tuple[int, ...]:
        """Pixels a cell of the outputs, from those of the backbone's maps.

        Raises:
            ValueError: as for as many maps.
        """
        used = self._used(inputs)
        return used + tuple(used[-1] * 2**i for i in range(1, self.num_levels - len(used) + 1))

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...], *, train: bool = False
    ) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Computes the pyramid, finest level first.

        Args:
            maps: backbone maps, finest first; each half as large as the one
                before, rounded up.
            train: changes nothing.

        Raises:
            ValueError: if `extra` is unknown, `num_levels` is less than the number of used maps,
                or a map is not half as large as the one before.
        """
        del train  # There is no norm in it.
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, found {self.channels}")
        if self.extra not in EXTRAS:
            raise ValueError(f"extra must be one of {', '.join(EXTRAS)}; found {self.extra!r}")
        maps = self._used(maps)
        laterals = [self._conv(x, 1, name=f"lateral{i}") for i, x in enumerate(maps)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + upsample_2x(laterals[i + 1], laterals[i].shape[1:3])
        outputs = [self._conv(x, 3, name=f"output{i}") for i, x in enumerate(laterals)]

        source = {"on_input": maps[-1], "on_lateral": laterals[-1]}.get(self.extra, outputs[-1])
        for i in range(len(maps), self.num_levels):
            if self.extra == "pool":
                source = source[:, ::2, ::2]
            else:
                if self.relu_before_extra and i > len(maps):
                    source = nn.relu(source)
                source = self._conv(source, 3, stride=2, name=f"output{i}")
            outputs.append(source)
        return tuple(outputs)

    @nn.nowrap
    def _used(self, levels: Sequence) -> tuple:
        used = tuple(levels[self.start_level :])
        if not used or self.num_levels < len(used):
            raise ValueError(
                f"num_levels {self.num_levels} must be at least the number of maps from "
                f"start_level {self.start_level} on, which is {len(used)} and must not be 0"
            )
        return used

    def _conv(self, x: Array, kernel_size: int, *, stride: int = 1, name: str) -> Array:
        return Conv(
            self.channels,
            kernel_size,
            stride,
            kernel_init=xavier_uniform,
            dtype=self.dtype,
            name=name,
        )(x)
