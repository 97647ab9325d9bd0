"""The steps that run on the devices, and the only calls of jax.pmap.

The state has no leading axis: it lies on a mesh of the local devices, one copy
on each, goes in whole (`in_axes=None`) and comes out whole (`out_axes=None`).
Under `out_axes=None` a value that differs between devices silently becomes
that of device 0, so everything that a step returns is reduced before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.training.optimizer import GRADIENT_NORM
from jaxdet.training.state import TrainState
from jaxdet.types import Batch, Detector, Metrics

AXIS_NAME = "batch"


def put_state(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies a state (or variables) to every local device.

    The steps want it so: donating a state that lies on one device fails.

    Args:
        tree: arrays of the host or of a device; they are copied, so that
            donating the result leaves them alone.
        devices: local devices, by default all of them.
    """
    mesh = Mesh(np.asarray(devices or jax.local_devices()), (AXIS_NAME,))
    host = jax.tree.map(np.array, tree)
    return jax.device_put(host, NamedSharding(mesh, PartitionSpec()))


def pmap_train_step(
    detector: Detector,
    tx: optax.GradientTransformation,
    schedule: Callable,
    *,
    seed: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Compiles one training step for all devices.

    Args:
        detector: gives the loss.
        tx: optimizer.
        schedule: learning rate by step, reported with the metrics.
        seed: of the run; the run's key is the same for every step and device,
            and the detector folds it with `batch.index`.
        devices: by default those of all processes.

    Returns:
        `(state, batch) -> (state, metrics)`. The state must come from
        `put_state` or from the step before, and is donated: it can't be read
        afterwards. The batch has a leading axis of local devices.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(
            state,
            batch,
            detector=detector,
            tx=tx,
            schedule=schedule,
            seed=seed,
            axis_name=AXIS_NAME,
        )

    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def pmap_predict_step(
    detector: Detector, *, devices: Sequence[jax.Device] | None = None
) -> Callable:
    """Compiles prediction for the local devices.

    Returns:
        `(variables, images) -> Detections`; images and detections have a
        leading axis of local devices, the variables come from `put_state`.
    """
    return jax.pmap(
        detector.predict,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        devices=devices or jax.local_devices(),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    detector: Detector,
    tx: optax.GradientTransformation,
    schedule: Callable,
    seed: int,
    axis_name: str,
) -> tuple[TrainState, Metrics]:
    """One step on one device's share of the batch.

    Gradients, running statistics and mean metrics are averaged over the
    devices, counts are summed. The loss divides by global counts times the
    device share (see `global_count`), so that the average of the devices'
    losses is the loss of the global batch.

    Returns:
        The new state and the metrics: the detector's own, and `loss`,
        `learning_rate` and, where the optimizer measures it, `gradient_norm`.
    """
    key = jax.random.key(seed)

    def loss(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
        variables = state.replace(params=params).variables
        return detector.loss(variables, batch, key, step=state.step, axis_name=axis_name)

    (total, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
        state.params
    )
    gradients, batch_stats, means = jax.lax.pmean(
        (gradients, batch_stats, {"loss": total, **metrics.means}), axis_name
    )
    counts = jax.lax.psum(metrics.counts, axis_name)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    means["learning_rate"] = schedule(state.step)
    norm = optax.tree.get(opt_state, GRADIENT_NORM)
    if norm is not None:
        means[GRADIENT_NORM] = norm
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, Metrics(means=means, counts=counts)
