"""Which candidates of a batch learn which object, to be looked at."""

import dataclasses
from typing import Any, NamedTuple

import jax


class Level(NamedTuple):
    """A map of the pyramid."""

    stride: int  # Pixels a cell.
    cells: tuple[int, int]  # (height, width).
    count: int  # Candidates on it.


@dataclasses.dataclass(frozen=True)
class Assigned:
    """What the candidates of a batch of images are assigned to.

    A pytree; `levels` and `by_prediction` are no leaves, so that
    `jax.eval_shape` of what gives this tells them and computes nothing.

    Attributes:
        boxes: the candidates (N, 4), levels one after the other: anchors, or the
            cells of grid points, in pixels of the canvas.
        labels: (B, N), POSITIVE, NEGATIVE or IGNORE of `ops.assignment`.
        index: (B, N), the slot of the object that a positive learns.
        levels: of the candidates.
        by_prediction: whether the detector's predictions decide, and so the
            variables count; else only their shapes do.
    """

    boxes: Any
    labels: Any
    index: Any
    levels: tuple[Level, ...]
    by_prediction: bool = False


jax.tree_util.register_dataclass(
    Assigned,
    data_fields=["boxes", "labels", "index"],
    meta_fields=["levels", "by_prediction"],
)
