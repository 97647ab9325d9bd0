"""How a step tells whether its numbers are finite, and leaves no trace where they are not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdet.training.optimizer import GRADIENT_NORM
from jaxdet.training.state import TrainState

SKIPPED = "skipped"  # Name of the count of updates that were not applied.
UPDATE_RATIO = "update_ratio"


def terms_of(means: Mapping[str, Any]) -> dict[str, Any]:
    """What of a step's metrics has to be finite: losses, and norms of gradient and update."""
    norms = (GRADIENT_NORM, UPDATE_RATIO)
    return {k: v for k, v in means.items() if ("loss" in k or k in norms) and v.ndim == 0}


def norms(params: Any, updates: Any) -> dict[str, jax.Array]:
    """What the log tells of the parameters and of what is added to them in a step."""
    norm = optax.tree.norm(params)
    ratio = optax.tree.norm(updates) / jnp.where(norm > 0, norm, 1)
    return {"parameter_norm": norm, UPDATE_RATIO: ratio}


def unless_broken(
    before: TrainState, after: TrainState, means: Mapping[str, jax.Array]
) -> tuple[TrainState, jax.Array]:
    """The state after a step, or that before it if a number of the step is not finite.

    Looked at are the losses, the norm of the gradient, parameters, statistics and
    averages. The number of steps goes on in any case, and so does the schedule of
    the learning rate, which counts them.

    Args:
        before: the state that the step began with.
        after: the state that it gives.
        means: its metrics, alike on all devices.

    Returns:
        The state, and 1 if the step is left out, 0 if not.
    """
    looked_at = (after.params, after.batch_stats, after.ema, terms_of(means))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(looked_at)]
    good = jnp.all(jnp.stack(finite))
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
    opt_state = kept.opt_state
    if _schedules(opt_state):
        opt_state = optax.tree.set(opt_state, _of_schedule, count=after.step)
    return kept.replace(step=after.step, opt_state=opt_state), 1 - good.astype(jnp.int32)


def _of_schedule(path: Any, _: Any) -> bool:
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"


def _schedules(opt_state: Any) -> list:
    return optax.tree.get_all_with_path(opt_state, "count", _of_schedule)
