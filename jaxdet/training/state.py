"""The training state: everything that a step changes, and nothing else."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import serialization

VARIABLES = ("params", "batch_stats")


@flax.struct.dataclass
class TrainState:
    """What a training step reads and replaces; a pytree without functions.

    Attributes:
        step: steps done so far, an int32 scalar.
        params: the detector's parameters.
        batch_stats: running statistics of batch norm; `{}` without batch norm.
        opt_state: the optimizer's state.
        ema: running averages of the parameters and the statistics, as
            `{"params": ..., "batch_stats": ...}`; `{}` where none are kept.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What is trained, as Flax wants it: without `batch_stats` where there are none."""
        return _variables({"params": self.params, "batch_stats": self.batch_stats})

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What is evaluated, in the form of `variables`: the averages where they are kept."""
        return _variables(self.ema) if self.ema else self.variables


def create(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        variables: `params` and, with batch norm, `batch_stats`.
        tx: the optimizer.
        ema: whether averages are kept; they start at the variables.
    """
    first = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **first,
        # Optax computes norms and zeros in it: in one program, not in hundreds.
        opt_state=jax.jit(tx.init)(first["params"]),
        ema=first if ema else {},
    )


def _variables(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name == "params" or part}


def split(state: TrainState) -> dict[str, Any]:
    """A state as plain nested dicts: the `variables` to predict with, and all else, `training`."""
    tree = serialization.to_state_dict(state)
    trained = {name: tree[name] for name in VARIABLES}
    training = {name: tree[name] for name in ("step", "opt_state")}
    if not state.ema:
        return {"variables": trained, "training": training}
    return {"variables": tree["ema"], "training": {**training, **trained}}
