"""Leaves of variables from arrays that have names, and a report of what became of each."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.types import UserError

# Layers whose outputs are as many as the classes.
CLASS_LAYERS = re.compile(r"(box_head/(logits|deltas)|retina_head/logits|/head/logits\d)/")
STEP_COUNTER = "num_batches_tracked"  # Torch's batch norm counts its steps; nothing here does.


class LoadReport(NamedTuple):
    """What became of the arrays.

    Attributes:
        loaded: leaves of ours that were filled, sorted.
        missing: leaves that were not, sorted.
        unused: arrays of the file that nothing of ours corresponds to, sorted.
        misfits: of each array of another shape than its leaf a line, but for
            layers that start anew for classes of another number.
        lines: one for each array of the file, by name: "+" it is taken, "-" it is
            left, "!" its shape does not fit; then "?" for each leaf that is missing.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    misfits: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The numbers in a line; leaves that the file lacks keep what they were drawn as."""
        return (
            f"{len(self.loaded)} arrays loaded, {len(self.missing)} drawn at random, "
            f"{len(self.unused)} unused"
        )


class Naming(NamedTuple):
    """How the leaves of a detector are written in a file.

    Attributes:
        names: path of a leaf -> its name in the file; leaves that have none are left out.
        shape: (path, leaf's shape) -> the shape there.
        take: (path, array of that shape, leaf's shape) -> the leaf.
        starts_anew: (path, shape found, shape wanted) -> whether a leaf of another
            shape may stay as it is drawn.
    """

    names: Mapping[str, str]
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]]
    take: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]
    starts_anew: Callable[[str, tuple[int, ...], tuple[int, ...]], bool]


def from_own(
    leaves: Mapping[str, Any], variables: Mapping[str, Any], *, source: str = "weights"
) -> tuple[dict[str, Any], LoadReport]:
    """Fills the variables of a detector from those of another one of jaxdet.

    Args:
        leaves: arrays by their paths, such as "params/neck/lateral0/kernel".
        variables: as for `from_torch`.
        source: what to call the leaves in messages, such as the file's path.

    Returns:
        As `from_torch`. Layers for another number of classes start anew.

    Raises:
        UserError: if an array has another shape than its leaf, or numbers that no
            detector computes with, or no path is known.
    """
    wanted = flatten_dict(dict(variables), sep="/")
    names = {path: path for path in wanted if path in leaves}
    if not names:
        raise UserError(f"{source}: nothing in it is a part of the detector")
    naming = Naming(
        names,
        shape=lambda path, shape: shape,
        take=lambda path, value, shape: value,
        starts_anew=lambda path, found, wanted: (
            found[:-1] == wanted[:-1] and CLASS_LAYERS.search(path) is not None
        ),
    )
    filled, report = fill(leaves, wanted, naming, source=source)
    if report.misfits:
        raise UserError(report.misfits[0])
    return unflatten_dict({**wanted, **filled}, sep="/"), report


def fill(
    tensors: Mapping[str, Any], leaves: Mapping[str, Any], naming: Naming, *, source: str
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """The leaves that the tensors fill, and the report.

    Args:
        tensors: arrays by their names in the file.
        leaves: arrays or shapes by path.
        naming: how one is written as the other.
        source: the file's name.

    Raises:
        UserError: as `check_leaf`.
    """
    filled, lines, misfits = {}, {}, []
    for path, name in naming.names.items():
        if name not in tensors:
            continue
        value, leaf = np.asarray(tensors[name]), leaves[path]
        wanted = naming.shape(path, leaf.shape)
        if value.shape == wanted:
            taken = naming.take(path, value, leaf.shape)
            check_leaf(path, taken, leaf.dtype, where=f"{source}: {name}")
            filled[path] = taken.astype(leaf.dtype)
            lines[name] = f"+ {name} {value.shape}" + (f" -> {path}" if path != name else "")
        elif naming.starts_anew(path, value.shape, wanted):
            lines[name] = f"! {name} {value.shape}: {path} wants {wanted} and starts anew"
        else:
            lines[name] = f"! {name} {value.shape}: {path} wants {wanted}"
            misfits.append(
                f"{source}: {name} does not fit {path}: wanted the shape {wanted}, "
                f"found {value.shape}"
            )
    left = sorted(tensors.keys() - lines.keys())
    for name in left:
        why = "torch's count of steps" if STEP_COUNTER in name else "no such part in the detector"
        lines[name] = f"- {name} {np.shape(tensors[name])}: {why}"
    missing = tuple(sorted(leaves.keys() - filled.keys()))
    return filled, LoadReport(
        loaded=tuple(sorted(filled)),
        missing=missing,
        unused=tuple(name for name in left if STEP_COUNTER not in name),
        misfits=tuple(misfits),
        lines=(
            *(lines[name] for name in sorted(lines)),
            *(f"? {path} {tuple(leaves[path].shape)}: nothing fills it" for path in missing),
        ),
    )


def check_leaf(path: str, value: np.ndarray, dtype: Any, *, where: str) -> None:
    """Refuses numbers with which a detector computes nothing of use, and says nothing of it.

    Args:
        path: of the leaf.
        value: that it is to have.
        dtype: of the leaf; all but floating ones may have any values.
        where: the file, and what the array is called there.

    Raises:
        UserError: if the leaf is floating and the value is not, is not finite as
            `dtype`, or is a variance below 0.
    """
    if not jax.dtypes.issubdtype(dtype, np.floating):
        return
    if not jax.dtypes.issubdtype(value.dtype, np.floating):  # NumPy calls bfloat16 no floating one.
        raise UserError(f"{where} wants floating numbers, found {value.dtype}")
    with np.errstate(over="ignore"):
        taken = value.astype(dtype, copy=False)
    wrong = {f"finite {np.dtype(dtype)} numbers": ~np.isfinite(taken)}
    if path.startswith("batch_stats/") and path.endswith("/var"):
        wrong["variances of at least 0"] = taken < 0
    for wanted, mask in wrong.items():
        if mask.any():
            raise UserError(
                f"{where} wants {wanted}, found {value[mask][0]} ({mask.sum()} of {mask.size})"
            )
