"""The training state: everything that a step changes, and nothing else."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """What a training step reads and replaces; a pytree without functions.

    Attributes:
        step: steps done so far, an int32 scalar.
        params: the detector's parameters.
        batch_stats: running statistics of batch norm; `{}` without batch norm.
        opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables as Flax wants them, without `batch_stats` where there are none."""
        if not self.batch_stats:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(variables: Mapping[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
        variables: `params` and, with batch norm, `batch_stats`.
        tx: the optimizer.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
    )
