"""Backbones and modules as users of jaxdet may write them."""

from typing import Any, Literal

import flax.linen as nn
import jax


class ConvNet(nn.Module):
    """Four maps; the stem does not train."""

    width: int = 8
    strides = (4, 8, 16, 32)
    frozen = ("params/stem",)

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(self.width, (4, 4), 4, name="stem")(x))
        maps = [jax.lax.stop_gradient(x)]
        for i in range(3):
            maps.append(nn.relu(nn.Conv(2 * self.width, (3, 3), 2, name=f"conv{i}")(maps[-1])))
        return maps


class ViT(nn.Module):
    """One map, of patches that look at each other once."""

    channels: int = 16
    strides = (16,)

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(self.channels, (16, 16), 16, padding="VALID", name="patches")(x)
        tokens = x.reshape(len(x), -1, self.channels)
        tokens += self.param("positions", nn.initializers.normal(0.02), tokens.shape[1:])
        attention = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")
        tokens += attention(nn.LayerNorm(name="norm")(tokens))
        return (tokens.reshape(x.shape),)


class Pooled(nn.Module):
    """Maps of means, of these sizes in fact."""

    cells: tuple[int, ...] = (8,)
    strides: tuple[int, ...] = (8,)

    def __call__(self, x, *, train):
        return [nn.avg_pool(x, (n, n), (n, n)) for n in self.cells]


class Silent(nn.Module):
    """Does not say its strides."""

    def __call__(self, x, *, train):
        return (x,)


class Demanding(nn.Module):
    """Has an attribute without a default."""

    width: int


class Varied(nn.Module):
    """Has attributes of many kinds."""

    style: Literal["plain", "wide"] = "plain"
    anything: Any = None
    stem: nn.Module = ConvNet()
    axis_name: str | None = None


NOT_A_MODULE = dict
