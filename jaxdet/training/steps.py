"""The steps that run on the devices, and the only calls of jax.pmap.

No other file divides a batch among devices: batches go in flat and detections
come out flat. Each device gets an equal share, rows in order.

The state has no leading axis: it lies on a mesh of the local devices, one copy
on each, goes in whole (`in_axes=None`) and comes out whole (`out_axes=None`).
Under `out_axes=None` a value that differs between devices silently becomes
that of device 0, so everything that a step returns is reduced before.

pmap is in maintenance mode. To leave it for `jit(shard_map(step))` is to change
this file alone, with `check_vma=False`: the state has the spec `P()`, batch and
detections have `P("batch")`, and the reshapes go. One process keeps its local
mesh. Several train on a mesh of all their devices, where
`jax.make_array_from_process_local_data` puts each one's rows, and predict on
their local meshes, with variables that are copied there.

`check_vma=True` finds what `out_axes=None` hides: it refuses a result under
`P()` that is not reduced. It also makes the gradient of parameters that are
alike on all devices the sum over them, not the device's own, so parameters would
have to be `jax.lax.pcast` to "varying" before; and it refuses loops whose state
is alike at first and differs later, as in `ops.nms`, without the same cast.

`jit` that divides by itself, without `shard_map`, is no way. Suppression's while
loop would ask all devices, in every turn, whether any of them goes on; and
`lax.map` over images, as in RoI pooling, would gather those of all devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.training import accumulation, finite
from jaxdet.training.finite import SKIPPED
from jaxdet.training.multiscale import check_heights, draw_height, resize_batch
from jaxdet.training.optimizer import GRADIENT_NORM
from jaxdet.training.state import TrainState
from jaxdet.types import Batch, Detections, Detector, Images, Metrics, UserError

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


def check_division(
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    *,
    name: str = "a batch of",
    everywhere: bool = False,
    accumulate: int = 1,
) -> None:
    """Checks that devices can share a batch.

    Args:
        batch_size: images of the batch.
        devices: those that share it, by default the local ones.
        name: of the number, for the message.
        everywhere: whether the devices of all processes share it.
        accumulate: parts that each of them takes its share in.

    Raises:
        UserError: if it does not divide.
    """
    count = len(jax.devices() if everywhere else devices or jax.local_devices())
    if batch_size % (count * accumulate):
        parts = f" in {accumulate} parts each (config.accumulate)" if accumulate > 1 else ""
        raise UserError(f"{name} {batch_size} does not divide among {count} devices{parts}")


def connect() -> None:
    """Adds a number over the devices of all processes, as steps do, so that they are connected."""
    ones = np.ones(len(jax.local_devices()))
    jax.pmap(lambda x: jax.lax.psum(x, AXIS_NAME), axis_name=AXIS_NAME)(ones)


def pmap_train_step(
    detector: Detector,
    tx: optax.GradientTransformation,
    schedule: Callable,
    *,
    seed: int,
    final_start: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    ema_ramp: int = 2000,
    heights: tuple[int, ...] = (),
    height_every: int = 10,
    guarded: bool = False,
    scaled: bool = False,
) -> Callable:
    """Compiles one training step for all devices, once for each height that is drawn.

    Args:
        detector: gives the loss.
        tx: optimizer.
        schedule: learning rate by step, reported with the metrics.
        seed: of the run; the run's key is the same for every step and device,
            and the detector folds it with `batch.index`.
        final_start: see `train_step`.
        devices: local devices, of a training by one process; by default those
            of all processes.
        accumulate: see `train_step`.
        ema_decay: likewise.
        ema_ramp: likewise.
        heights: canvas heights to train at, multiples of 32; the batches are
            resized on the devices. () trains at the canvas of the batches.
        height_every: steps from one draw of the height to the next.
        guarded: see `train_step`.
        scaled: whether the step takes a factor of the learning rate.

    Returns:
        `(state, batch, done, rate=1.0) -> (state, metrics)`; the rate only has an
        effect where the step is `scaled`. The state must come from
        `put_state` or from the step before, and is donated: it can't be read
        afterwards. The batch, of NumPy arrays, has the rows of this process.
        `done` are the steps done so far, a number of the host: to read
        `state.step` would be to wait for the step before.

    Raises:
        ValueError: if the decay or a height is out of its range; from the step,
            if a batch does not divide among the local devices.
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and less than 1, found {ema_decay}")
    check_heights(heights)

    def one_step(
        state: TrainState, batch: Batch, height: int, *rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        return train_step(
            state,
            resize_batch(batch, height) if height else batch,
            detector=detector,
            tx=tx,
            schedule=schedule,
            seed=seed,
            final_start=final_start,
            axis_name=AXIS_NAME,
            accumulate=accumulate,
            ema_decay=ema_decay,
            ema_ramp=ema_ramp,
            rate=rate[0] if rate else None,
            guarded=guarded,
        )

    compiled = jax.pmap(
        one_step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0, None, *[None] * scaled),
        out_axes=None,
        static_broadcasted_argnums=2,
        donate_argnums=0,
        devices=devices,
    )

    def step(
        state: TrainState, batch: Batch, done: int, rate: float = 1.0
    ) -> tuple[TrainState, Metrics]:
        drawn = draw_height(seed, done, heights=heights, every=height_every) if heights else 0
        return compiled(state, _split(batch, devices), drawn, *[np.float32(rate)] * scaled)

    return step


def pmap_predict_step(
    detector: Detector, *, devices: Sequence[jax.Device] | None = None
) -> Callable:
    """Compiles prediction for the local devices.

    Returns:
        `(variables, images) -> Detections`, which does not wait for them. The
        variables come from `put_state`, the images are NumPy arrays. Raises
        ValueError if they do not divide among the devices.
    """
    compiled = jax.pmap(
        detector.predict,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        devices=devices or jax.local_devices(),
    )

    # Compiled, so that the rows stay on their devices and nothing waits for them.
    @jax.jit
    def join(found: Detections) -> Detections:
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), found)

    def predict(variables: Any, images: Images) -> Detections:
        return join(compiled(variables, _split(images, devices)))

    return predict


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    detector: Detector,
    tx: optax.GradientTransformation,
    schedule: Callable,
    seed: int,
    final_start: int | None = None,
    axis_name: str,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    ema_ramp: int = 2000,
    rate: jax.Array | None = None,
    guarded: bool = False,
) -> tuple[TrainState, Metrics]:
    """One step on one device's share of the batch.

    Gradients, running statistics and mean metrics are averaged over the
    devices, counts are summed. The loss divides by global counts times the
    device share (see `global_count`), so that the average of the devices'
    losses is the loss of the global batch.

    Args:
        state: the state before; its averages are there if `ema_decay` > 0.
        batch: the device's share.
        detector: see `pmap_train_step`, as `tx`, `schedule` and `seed`.
        tx: optimizer.
        schedule: learning rate by step.
        seed: of the run.
        final_start: steps done before the first of the run's final steps, which
            the loss is told. None where there are none: then it is told the
            Python value False, and traces nothing of them.
        axis_name: of the devices.
        accumulate: parts that a device takes its share in, one after the other;
            see `accumulation.value_and_grad`.
        ema_decay: weight that the averages of parameters and statistics keep
            in a step, in the long run; 0 where none are kept.
        ema_ramp: update n keeps `ema_decay * (1 - exp(-n / ema_ramp))`, so
            that the first variables are soon forgotten.
        rate: factor of the learning rate, for None 1.
        guarded: whether a step of which a number is not finite leaves the state as
            it was, see `finite.unless_broken`, and counts as `skipped`.

    Returns:
        The new state and the metrics: the detector's own, `loss`, `learning_rate`,
        those of `finite.norms` and, where the optimizer measures it, `gradient_norm`.

    Raises:
        ValueError: if the state has averages and the decay is 0, or it has
            none and the decay is not.
    """
    if bool(state.ema) != bool(ema_decay):
        raise ValueError(f"ema_decay is {ema_decay}, and the state's averages {bool(state.ema)}")
    key = jax.random.key(seed)
    final = False if final_start is None else state.step >= final_start

    def loss(params: Any, batch_stats: Any, batch: Batch, axis: Any) -> tuple:
        variables = state.replace(params=params, batch_stats=batch_stats).variables
        return detector.loss(variables, batch, key, final=final, axis_name=axis)

    (total, (metrics, batch_stats)), gradients = accumulation.value_and_grad(
        loss, state.params, state.batch_stats, batch, parts=accumulate, axis_name=axis_name
    )
    gradients, batch_stats, means = jax.lax.pmean(
        (gradients, batch_stats, {"loss": total, **metrics.means}), axis_name
    )
    counts = jax.lax.psum(metrics.counts, axis_name)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    means["learning_rate"] = schedule(state.step)
    if rate is not None:
        updates = jax.tree.map(lambda update: rate * update, updates)
        means["learning_rate"] *= rate
    means |= finite.norms(state.params, updates)
    norm = optax.tree.get(opt_state, GRADIENT_NORM)
    if norm is not None:
        means[GRADIENT_NORM] = norm
    step = state.step + 1
    new = {"params": optax.apply_updates(state.params, updates), "batch_stats": batch_stats}
    ema = _update_ema(state.ema, new, step, ema_decay, ema_ramp) if ema_decay else {}
    after = TrainState(step=step, **new, opt_state=opt_state, ema=ema)
    if guarded:
        after, counts[SKIPPED] = finite.unless_broken(state, after, means)
    return after, Metrics(means=means, counts=counts)


def _split(batch: Any, devices: Sequence[jax.Device] | None) -> Any:
    """The same arrays seen with a leading axis of devices; of NumPy's, nothing is copied."""
    devices = devices or jax.local_devices()
    check_division(len(jax.tree.leaves(batch)[0]), devices)
    return jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)


def _update_ema(ema: Any, new: Any, number: jax.Array, decay: float, ramp: int) -> Any:
    """The averages after an update, in float32; what never moves keeps its bits."""
    # 1 - decay * (1 - exp(-n / ramp)), without a difference of numbers near 1.
    share = jnp.float32(1 - decay) + decay * jnp.exp(-number / jnp.float32(ramp))
    return jax.tree.map(lambda average, value: average + share * (value - average), ema, new)
