"""Torch weights <-> jaxdet variables, by the names that other systems give their layers.

`dialects` says what each of our modules is called there, and `layouts` how its
arrays lie there; both directions follow them.

Some differences are not in the names. mmdetection's "caffe" backbones expect BGR
images, less their mean but not divided: convert them with `bgr=True`, and give the
detector style="caffe" and pixel_std=(1, 1, 1). torchvision's published detectors
compute with a batch norm epsilon of 0. YOLOX's, from its version 0.1.1 on, expect BGR
images of 0..255 as they are: `bgr=True`, and nothing to subtract or divide by.
`published.settings_for` knows these settings.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.interop import layouts
from jaxdet.interop.dialects import (
    CLASSIFIERS,
    RULES,
    SYSTEMS,
    current_name,
    dialect_of,
    names_of,
)
from jaxdet.interop.filling import CLASS_LAYERS, LoadReport, Naming, fill
from jaxdet.types import UserError

NAMES_SHOWN = 3  # Enough of a foreign file to recognise it by.


def from_torch(
    tensors: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    source: str = "weights",
    bgr: bool | None = None,
    strict: bool = True,
) -> tuple[dict[str, Any], LoadReport]:
    """Fills the variables of a detector from torch weights, as far as names match.

    The kind of names is the one that matches most leaves: mmdetection, YOLOX,
    simple-faster-rcnn, torchvision, or one of its classifiers alone: a ResNet fills just the
    backbone, a VGG-16 also the fully connected layers of a box head of its size.

    Args:
        tensors: arrays in torch's names and layouts, as `load_file` gives them.
        variables: "params" and perhaps "batch_stats"; arrays or the shapes
            that `jax.eval_shape` gives.
        source: what to call the tensors in messages, such as the file's path.
        bgr: whether the weights read BGR images; the input channels of the
            stem, where the file has it, are reversed for our RGB. None is True
            for YOLOX's names, else False.
        strict: whether an array of another shape is an error; else a misfit of
            the report, and its leaf stays as it was.

    Returns:
        The variables, with NumPy arrays of the leaf's own type where filled
        and the leaf as it was elsewhere; and what was filled. Layers for
        another number of classes are not: the rest serves as a start for
        classes of one's own.

    Raises:
        UserError: if an array has another shape than its leaf, or numbers that no
            detector computes with, no name matches, or the weights of a batch
            norm would go to a group norm.
    """
    tensors = {current_name(name): value for name, value in tensors.items()}
    leaves = flatten_dict(dict(variables), sep="/")
    named = {dialect: names_of(leaves, dialect) for dialect in RULES}
    dialect = max(named, key=lambda d: sum(name in tensors for name in named[d].values()))
    names = {path: name for path, name in named[dialect].items() if name in tensors}
    if not names:
        found = ", ".join(sorted(tensors)[:NAMES_SHOWN]) or "nothing"
        wanted = ", ".join(f"{d}'s {next(iter(n.values()))}" for d, n in named.items() if n)
        raise UserError(f"{source}: no name is known; wanted names such as {wanted}; found {found}")
    _check_norms(names, tensors, source)
    naming = Naming(
        names,
        shape=partial(layouts.torch_shape, dialect=dialect),
        take=partial(layouts.from_torch_layout, dialect=dialect),
        starts_anew=partial(_starts_anew, dialect),
    )
    filled, report = fill(tensors, leaves, naming, source=source)
    if report.misfits and strict:
        raise UserError(report.misfits[0])
    if SYSTEMS.get(dialect, False) if bgr is None else bgr:
        filled |= _turned(filled)
    return unflatten_dict({**leaves, **filled}, sep="/"), report


def to_torch(
    variables: Mapping[str, Any], *, names: str = "mmdetection", bgr: bool | None = None
) -> dict[str, np.ndarray]:
    """Gives the variables of a detector the names and layouts of torch.

    Args:
        variables: "params" and perhaps "batch_stats", as arrays.
        names: whose: "mmdetection", "mmdetection_caffe", "torchvision", "yolox",
            "yolox_legacy", "simple_faster_rcnn", or "resnet" or "vgg" for what
            torchvision's classifiers have of a detector.
        bgr: whether the weights are to read BGR images; None is as that
            system's do: "mmdetection_caffe" and "yolox".

    Returns:
        NumPy arrays by name; batch norm's step counters are left out.

    Raises:
        UserError: if `names` is unknown, or a leaf has no such name.
    """
    if names not in SYSTEMS:
        raise UserError(f"names must be one of {', '.join(SYSTEMS)}; found {names!r}")
    leaves = flatten_dict(dict(variables), sep="/")
    dialect = dialect_of(names, leaves)
    named = names_of(leaves, dialect)
    if names in CLASSIFIERS:
        leaves = {path: leaves[path] for path in named}
    if SYSTEMS[names] if bgr is None else bgr:
        leaves = leaves | _turned(leaves)
    if unnamed := sorted(leaves.keys() - named.keys()):
        raise UserError(f"{names} has no name for {', '.join(unnamed)}")
    return {
        name: layouts.to_torch_layout(path, np.asarray(leaves[path]), dialect)
        for path, name in named.items()
    }


def _turned(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The stem, for images of the other order of colours."""
    stems = [path for path in layouts.STEMS if path in leaves]
    return {path: layouts.turn_colours(leaves[path]) for path in stems}


def _check_norms(names: Mapping[str, str], tensors: Mapping[str, Any], source: str) -> None:
    """Refuses statistics beside a scale of ours that has none: they would silently be unused."""
    unplaced = tensors.keys() - set(names.values())
    for path, name in names.items():
        statistics = f"{name.removesuffix('weight')}running_mean"
        if path.endswith("/scale") and statistics in unplaced:
            raise UserError(
                f"{source}: {statistics} has no place, because {path} is a group norm's, which "
                "batch norm weights do not fit: set norm to 'frozen', 'batch' or 'sync', or name "
                "weights that were trained with group norm"
            )


def _starts_anew(dialect: str, path: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a head of another size, or of another number of classes, may start at random."""
    if dialect in CLASSIFIERS:
        return "/box_head/" in path
    return found[1:] == wanted[1:] and CLASS_LAYERS.search(path) is not None
