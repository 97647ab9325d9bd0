"""What jaxdet does in a benchmark; `harness.py` starts it."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scenes
import worker
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet import ops
from jaxdet.commands import command_line, costs, opening
from jaxdet.commands.costs import Subject
from jaxdet.commands.opening import Run
from jaxdet.training import state, steps
from jaxdet.types import Batch, Images

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "faster_rcnn": "faster_rcnn_r50_fpn_1x_coco",
    "retinanet": "retinanet_r50_fpn_1x_coco",
    "yolox": "yolox_s_coco",
}
# Images of an epoch: the schedule of the recipe wants some number.
EPOCH = 100_000


def open_run(*, model, batch, size, dtype, settings=(), **_) -> Run:
    """The run of the COCO recipe at this size; nothing of it is computed."""
    config = command_line.read(
        [
            "benchmark",
            f"--config={ROOT}/configs/{CONFIGS[model]}.py",
            f"--config.data.canvas=({size[0]},{size[1]})",
            f"--config.data.resize=({size[0]},{size[1]})",
            f"--config.batch_size={batch}",
            f"--config.model.dtype={dtype}",
            f"--config.optimizer.learning_rate={scenes.RATE}",
            "--config.init_from=",
            *(f"--config.{setting}" for setting in settings),
        ]
    ).config
    config.data.classes = tuple(f"class {k}" for k in range(scenes.NUM_CLASSES[model]))
    run = opening.open_run(config)
    return opening.with_optimizer(run._replace(config=opening.in_steps(config, EPOCH)))


def fill_run(run: Run, *, objects: int = 20) -> tuple[Any, Batch]:
    """Calm random variables, and a batch of noise."""
    config = run.config
    count, size = config.batch_size, tuple(config.data.canvas)
    drawn = scenes.draw(count, size, len(run.class_names), objects=objects)
    slots = np.arange(config.data.max_boxes)[None] < np.full((count, 1), objects)
    images = Images(drawn.pixels, np.full((count, 2), size, np.int32), np.ones(count, np.float32))
    batch = Batch(
        images=images,
        boxes=_fill(drawn.boxes, config.data.max_boxes),
        labels=_fill(drawn.labels, config.data.max_boxes),
        valid=slots,
        crowd=np.zeros_like(slots),
        index=np.arange(count, dtype=np.uint32),
    )
    one = jax.tree.map(lambda a: a[:1], images)
    return _calm(jax.jit(run.detector.init)(jax.random.key(0), one)), batch


def step_arguments(run: Run, *, objects: int = 20) -> tuple[state.TrainState, Batch]:
    """What `costs.one_device_step` takes, on the device."""
    variables, batch = fill_run(run, objects=objects)
    first = state.create(variables, run.tx, ema=run.config.ema_decay > 0)
    return jax.device_put((first, batch))


def subject_of(run: Run, *, training: bool) -> Subject:
    """A run as `jaxdet summary` measures it."""
    return Subject(
        name=run.config.detector,
        num_classes=len(run.class_names),
        detector=run.detector,
        variables=run.variables,
        images=partial(opening.blank_images, run.config),
        batch_size=run.config.batch_size,
        run=run if training else None,
    )


def train_step(**case) -> worker.Work:
    """The step of `train.py`, from a batch on the host to new parameters."""
    run = open_run(**case)
    variables, batch = fill_run(run)
    step = steps.pmap_train_step(
        run.detector, run.tx, run.schedule, seed=0, devices=jax.local_devices()[:1]
    )
    # Without averages of the parameters, as the peers.
    held = [steps.put_state(state.create(variables, run.tx), jax.local_devices()[:1])]

    def start():
        held[0], metrics = step(held[0], batch, 0)
        return metrics

    flops = partial(_count_flops, run, costs.trace_step, training=True)
    return worker.Work(start, jax.block_until_ready, _facts(case), _peak_bytes(), flops)


def predict(**case) -> worker.Work:
    """From pixels to boxes on the canvas, suppression included."""
    run = open_run(**case)
    variables, batch = fill_run(run)
    variables = steps.put_state(variables, jax.local_devices()[:1])
    predict = steps.pmap_predict_step(run.detector, devices=jax.local_devices()[:1])
    flops = partial(_count_flops, run, costs.trace_prediction, training=False)
    start = partial(predict, variables, batch.images)
    return worker.Work(start, jax.block_until_ready, _facts(case), _peak_bytes(), flops)


def nms(*, count: int) -> worker.Work:
    """Suppression of boxes of one class."""
    boxes, scores = scenes.draw_candidates(count)
    run = jax.jit(partial(ops.nms, iou_threshold=0.5))
    valid = np.ones(count, bool)
    start = partial(run, *jax.device_put((boxes, scores, valid)))
    return worker.Work(start, jax.block_until_ready, _facts({}), _peak_bytes())


def roi_align(
    *, size: tuple[int, int], regions: int, channels: int, ratio: int, gradient: bool, dtype: str
) -> worker.Work:
    """RoIAlign over the four maps of a pyramid, of one image."""
    maps, rois = scenes.draw_pyramid(size, regions, channels)
    maps, rois = jax.device_put(([jnp.asarray(m, dtype) for m in maps], rois))
    pool = partial(
        ops.pyramid_roi_align, strides=scenes.STRIDES, output_size=7, sampling_ratio=ratio
    )

    def loss(maps, rois):
        # Squared, so that the gradient of the bins is not the same number everywhere.
        return (pool(maps, rois).astype(jnp.float32) ** 2).sum()

    run = jax.jit(jax.grad(loss) if gradient else pool)
    return worker.Work(
        partial(run, maps, rois), jax.block_until_ready, _facts({"dtype": dtype}), _peak_bytes()
    )


def _fill(values, slots):
    filled = np.zeros((len(values), slots, *values.shape[2:]), values.dtype)
    filled[:, : values.shape[1]] = values
    return filled


def _calm(variables):
    """Shrinks what each residual block adds, so that maps under frozen norms do not explode."""
    leaves = flatten_dict(jax.tree.map(np.asarray, variables), sep="/")
    for name in leaves:
        if "/backbone/" in name and name.endswith("norm3/scale"):
            leaves[name] = leaves[name] * scenes.CALM
    return unflatten_dict(leaves, sep="/")


def _count_flops(run, trace, *, training):
    """Of a batch; None where there is no count."""
    flops = costs.count_flops(trace, subject_of(run, training=training))
    return flops and run.config.batch_size * flops


def _facts(case):
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "dtype": case.get("dtype", "float32"),
        "count": case.get("batch", 1),
        "versions": {"jax": jax.__version__},
    }


def _peak_bytes():
    """The device's count of the most bytes in use; None where it keeps none, as on a CPU."""
    device = jax.local_devices()[0]
    if device.memory_stats() is None:
        return None
    return lambda: device.memory_stats()["peak_bytes_in_use"]


if __name__ == "__main__":
    worker.serve({f.__name__: f for f in (train_step, predict, nms, roi_align)})
