"""Where every detector starts: from images to a feature pyramid."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdet.detectors.settings import Pixels
from jaxdet.ops import pixels as pixel_ops
from jaxdet.types import AxisName, Detector, Images

# float16 overflows without a scale of the loss; bfloat16 has float32's range.
DTYPES = ("float32", "bfloat16")
# What the backward pass computes again: nothing, the backbone's blocks, or also neck and heads.
REMATS = ("none", "blocks", "all")


class Network(nn.Module):
    """Backbone and neck, which the network of every detector begins with.

    The names of the parts are checkpoint keys. Every part may have `frozen`, as
    `Detector`, of itself.

    Attributes:
        backbone: any module that makes maps of images, `(x, *, train) -> maps`,
            finest first, and has an attribute `strides`: pixels a cell of each
            map. It may have `bgr_weights`, as `Detector`.
        neck: makes maps of the backbone's maps, `(maps, *, train) -> maps`, and
            says their strides, `strides(of the backbone's)`; None for none.
        remat: one of `REMATS`; `prepare` sets it, and the same in a backbone
            that can keep only what enters its blocks.
    """

    backbone: nn.Module
    neck: nn.Module | None
    remat: str = dataclasses.field(default="none", kw_only=True)

    def maps(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Array, ...]:
        """The maps of normalised images, finest first.

        Raises:
            ValueError: if the maps are not those that the strides promise.
        """
        strides = strides_of(self)
        maps = (
            self.backbone(x, train=train)
            if hasattr(self.backbone, "remat")
            else self.run(self.backbone, x, train=train)
        )
        check_maps(self.backbone, maps, self.backbone.strides, x.shape[1:3])
        if self.neck is None:
            return tuple(maps)
        pyramid = self.run(self.neck, tuple(maps), train=train)
        check_maps(self.neck, pyramid, strides, x.shape[1:3])
        return tuple(pyramid)

    def run(self, part: nn.Module, *inputs: Any, **keywords: Any) -> Any:
        """What a part makes of its inputs; where `remat` is "all", nothing within it is kept."""
        if self.remat != "all":
            return part(*inputs, **keywords)
        return nn.remat(partial(type(part).__call__, **keywords))(part, *inputs)

    def features(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Array, ...]:
        """The maps as a pyramid, for heads that are the same on all levels.

        Raises:
            ValueError: if they have not the same number of channels.
        """
        maps = self.maps(x, train=train)
        channels = [level.shape[-1] for level in maps]
        if len(set(channels)) > 1:
            raise ValueError(
                f"the maps want the same number of channels, as a neck makes it; found {channels}"
            )
        return maps


def strides_of(network: Network) -> tuple[int, ...]:
    """Pixels a cell of each map of the pyramid, finest first.

    Raises:
        ValueError: if the backbone does not say them.
    """
    strides = getattr(network.backbone, "strides", None)
    if not isinstance(strides, Sequence) or not strides:
        name = type(network.backbone).__name__
        raise ValueError(
            f"the backbone {name} wants an attribute `strides`, pixels a cell of each of its "
            f"maps, finest first; found {strides!r}"
        )
    return tuple(strides) if network.neck is None else network.neck.strides(strides)


def check_maps(
    part: nn.Module, maps: Sequence[Array], strides: Sequence[int], canvas: tuple[int, ...]
) -> None:
    """Refuses maps that do not have a cell for every `stride` pixels of the canvas.

    A last row or column that is no whole cell may have one or not.

    Raises:
        ValueError: with what the part that made them has promised.
    """
    found = [x.shape[1:3] for x in maps]
    fit = len(found) == len(strides) and all(
        side // stride <= cells <= -(-side // stride)
        for size, stride in zip(found, strides, strict=True)
        for side, cells in zip(canvas, size, strict=True)
    )
    if not fit:
        raise ValueError(
            f"{type(part).__name__} promises maps of strides {tuple(strides)}; found maps of "
            f"{', '.join(' x '.join(map(str, size)) for size in found) or 'none'} cells on a "
            f"canvas of {' x '.join(map(str, canvas))} pixels"
        )


def make_detector(
    network: Network, pixels: Pixels, loss: Callable, predict: Callable, **more: Any
) -> Detector:
    """The detector of a network, with what its parts say of themselves.

    Args:
        network: a detector's.
        pixels: how images become its input.
        loss: see `Detector`, as `predict`.
        predict: likewise.
        **more: other fields of `Detector`.
    """
    strides_of(network)  # A backbone that does not say them is refused here.
    frozen = []
    for name, part in parts_of(network).items():
        for path in getattr(part, "frozen", ()):
            kind, _, rest = path.partition("/")
            frozen.append("/".join(filter(None, (kind, name, rest))))
    return Detector(
        init=partial(initialize, network, pixels),
        loss=loss,
        predict=predict,
        frozen=tuple(frozen),
        bgr_weights=getattr(network.backbone, "bgr_weights", None),
        **more,
    )


def configure(module: nn.Module, **attributes: Any) -> nn.Module:
    """A copy of a module with those of the attributes that it knows."""
    known = {field.name for field in dataclasses.fields(module)}
    return module.clone(**{name: value for name, value in attributes.items() if name in known})


def configure_parts(network: Network, **attributes: Any) -> Network:
    """A copy of a network with the attributes in each of its parts that knows them."""
    parts = parts_of(network)
    return network.clone(**{name: configure(parts[name], **attributes) for name in parts})


def parts_of(network: Network) -> dict[str, nn.Module]:
    """The modules of a network, by their names."""
    names = [field.name for field in dataclasses.fields(network) if field.name != "parent"]
    parts = {name: getattr(network, name) for name in names}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def prepare(network: Network, *, dtype: str, remat: str) -> Network:
    """A copy of a network that computes in a type, and keeps no more than `remat` says.

    Raises:
        ValueError: if they are none of `DTYPES` and `REMATS`.
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("remat", remat, REMATS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; found {value!r}")
    network = configure_parts(network, dtype=jnp.dtype(dtype), remat=remat != "none")
    return network.clone(remat=remat)


def apply_head(network: Network, head: str, variables: dict, *inputs: Any) -> Any:
    """What a head of the network, which has no statistics, makes of its inputs."""
    run = partial(network.apply, method=head)
    return (jax.checkpoint(run) if network.remat == "all" else run)(variables, *inputs)


def normalize(pixels: Pixels, images: Images) -> Float[Array, "B H W 3"]:
    """Pixels as the backbone reads them, the canvas beside the images overwritten."""
    return jax.vmap(partial(pixel_ops.normalize, **vars(pixels)))(images.pixels, images.sizes)


def initialize(network: Network, pixels: Pixels, key: Key[Array, ""], images: Images) -> dict:
    """The first variables of a detector's network."""
    # Under jit only the parameters are computed: the forward pass is dead code.
    return jax.jit(network.init)(key, normalize(pixels, images))


def extract(
    network: Network,
    pixels: Pixels,
    variables: dict,
    images: Images,
    *,
    train: bool,
    axis_name: AxisName | None = None,
    method: str = "features",
) -> tuple[tuple, dict]:
    """The network's pyramid, finest level first.

    Args:
        network: a detector's.
        pixels: how images become its input.
        variables: of the network.
        images: the batch.
        train: whether the statistics of the norms come from the batch.
        axis_name: the mapped axis over which "sync" averages them.
        method: of the network; another one than "features" may do more of it.

    Returns:
        What the method returns, and the running statistics after it: those
        given, changed by a training batch; {} for networks that have none.
    """
    if axis_name is not None:
        name = axis_name if isinstance(axis_name, str) else axis_name.name
        network = configure_parts(network, axis_name=name)
    mutable = ["batch_stats"] if train and "batch_stats" in variables else False
    x = normalize(pixels, images)
    result = network.apply(variables, x, train=train, method=method, mutable=mutable)
    outputs, updates = result if mutable else (result, variables)
    return outputs, updates.get("batch_stats", {})


def map_shapes(
    network: Network, pixels: Pixels, variables: dict, images: Images
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the network's maps of a batch, finest first; computes nothing."""
    maps = partial(extract, network, pixels, train=False, method="maps")
    return jax.eval_shape(maps, variables, images)[0]
