"""The leaves of a tree by name: what they are, and where two trees differ."""

from typing import Any

import jax
import numpy as np

NOTHING = "nothing"


def first_difference(found: Any, wanted: Any) -> tuple[str, str, str] | None:
    """The first leaf that is not as wanted.

    Args:
        found: a tree of whatever has a shape and a dtype.
        wanted: another one.

    Returns:
        Its path, what was found and what was wanted, such as "(64, 3) float32" or
        "nothing"; None where all leaves are the same.
    """
    there, want = _describe(found), _describe(wanted)
    for name in [*want, *there]:
        one, other = there.get(name, NOTHING), want.get(name, NOTHING)
        if one != other:
            return name, one, other
    return None


def first_not_finite(tree: Any) -> str | None:
    """The path of the first array with a NaN or an infinite number; None for none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.all(np.isfinite(leaf)):
            return _name(path)
    return None


def _describe(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): f"{tuple(leaf.shape)} {leaf.dtype}" for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
