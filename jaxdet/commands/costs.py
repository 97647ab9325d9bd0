"""What a detector is made of, and what it costs: numbers without running it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.stages import Traced
from ml_collections import ConfigDict

from jaxdet.commands import opening
from jaxdet.commands.opening import Run
from jaxdet.data import canvases
from jaxdet.training import multiscale, state, steps
from jaxdet.types import Batch, Detector, Images


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        name: of the method.
        num_classes: K.
        detector: for so many.
        variables: their shapes and types.
        images: `count -> Images`, the shapes of so many.
        batch_size: images of a step, and of a prediction, on one device.
        run: with its optimizer; None where only prediction is known.
    """

    name: str
    num_classes: int
    detector: Detector
    variables: Any
    images: Callable[[int], Images]
    batch_size: int
    run: Run | None = None


def parameters(subject: Subject) -> dict[str, dict[str, int]]:
    """Counts by part of the network; the last is all of them."""
    prefixes = opening.frozen_parameters(subject.detector)
    if subject.run is not None:
        prefixes += subject.run.config.optimizer.frozen
    found = {}
    for name, leaf in flatten_dict(subject.variables, sep="/").items():
        kind, _, path = name.partition("/")
        frozen = any(f"{path}/".startswith(f"{prefix}/") for prefix in prefixes)
        for part in (path.partition("/")[0], "all"):
            counts = found.setdefault(part, {"total": 0, "trainable": 0, "statistics": 0})
            size = math.prod(leaf.shape)
            if kind == "params":
                counts["total"] += size
                counts["trainable"] += 0 if frozen else size
            else:
                counts["statistics"] += size
    found["all"] = found.pop("all")
    return found


def levels(subject: Subject) -> dict[str, Any] | None:
    """Strides, cells and candidates of the maps; None of a detector that does not tell."""
    if subject.detector.assign is None:
        return None
    images = subject.images(1)
    slots = jax.ShapeDtypeStruct((1, 1), bool)
    boxes = jax.ShapeDtypeStruct((1, 1, 4), "float32")
    labels, index = (jax.ShapeDtypeStruct(s, "int32") for s in ((1, 1), (1,)))
    batch = Batch(images, boxes, labels, slots, slots, index)
    assigned = jax.eval_shape(subject.detector.assign, subject.variables, batch)
    maps = [{**each._asdict(), "cells": list(each.cells)} for each in assigned.levels]
    return {"kind": "points" if assigned.by_prediction else "anchors", "maps": maps}


def count_flops(trace: Callable[[Subject, int], Traced], subject: Subject) -> float | None:
    """XLA's count for one image, by `trace_step` or `trace_prediction`.

    The CPU's backend counts, whatever the device at hand: those of accelerators do not.
    None where there is none, as under JAX_PLATFORMS=cuda.
    """
    try:
        counting = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(counting):
        return flops_of(trace(subject, 1))


def flops_of(traced: Traced) -> float:
    """What XLA counts for a TPU: a CPU has forms of its own, with other multiplications."""
    return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def trace_prediction(subject: Subject, count: int) -> Traced:
    """Prediction of so many images."""
    return jax.jit(subject.detector.predict).trace(subject.variables, subject.images(count))


def trace_step(subject: Subject, count: int, canvas: tuple[int, int] | None = None) -> Traced:
    """The step of one device, which trains on batches of `count` images.

    They are of a canvas, by default the first. Where `config.accumulate` does not
    divide them, the step takes them at once.
    """
    batch = opening.blank_batch(subject.run.config, count, canvas)
    accumulate = subject.run.config.accumulate
    parts = 1 if count % accumulate else accumulate
    rate = [jax.ShapeDtypeStruct((), "float32")] * is_scaled(subject.run)
    return jax.jit(one_device_step(subject.run, parts), donate_argnums=0).trace(
        first_state(subject.run), batch, *rate
    )


def step_canvas(config: ConfigDict) -> tuple[int, int]:
    """Of the sizes at which steps train, the one of the most pixels; of several the first.

    They are those of all canvases, or of one at all `multiscale_heights`.
    """
    sizes = [
        _resized(config, canvas, height)
        for canvas in canvases.every(config.data.canvas, config.data.more_canvases)
        for height in config.multiscale_heights or canvas[:1]
    ]
    return max(sizes, key=math.prod)


def settings_of_step(run: Run) -> dict[str, Any]:
    """What `steps.train_step` takes of a run with an optimizer, but for how it is divided."""
    config = run.config
    return {
        "detector": run.detector,
        "tx": run.tx,
        "schedule": run.schedule,
        "seed": config.seed,
        "final_start": opening.final_start(config),
        "ema_decay": config.ema_decay,
        "ema_ramp": config.ema_ramp,
        "guarded": config.on_not_finite != "stop",
    }


def is_scaled(run: Run) -> bool:
    """Whether the step of a run takes a factor of the learning rate."""
    return run.config.on_not_finite == "go_back"


def one_device_step(run: Run, accumulate: int = 1) -> Callable:
    """The step of a run with an optimizer, as one device does it.

    It is `(state, batch, *rate) -> (state, metrics)`, with a rate where the run `is_scaled`.
    """
    settings = settings_of_step(run) | {"accumulate": accumulate, "axis_name": steps.AXIS_NAME}

    def step(state, batch, *rate):
        return steps.train_step(state, batch, rate=rate[0] if rate else None, **settings)

    def whole(state, batch, *rate):
        # An axis of one device, over which the step takes its means.
        axes = (None, 0, *[None] * len(rate))
        mapped = jax.vmap(step, in_axes=axes, out_axes=None, axis_name=steps.AXIS_NAME)
        return mapped(state, jax.tree.map(lambda a: a[None], batch), *rate)

    return whole


def first_state(run: Run) -> state.TrainState:
    """Shapes and types of a run's state."""
    create = partial(state.create, tx=run.tx, ema=run.config.ema_decay > 0)
    return jax.eval_shape(create, run.variables)


def _resized(config, canvas, height):
    resize = partial(multiscale.resize_batch, height=height)
    batch = jax.eval_shape(resize, opening.blank_batch(config, 1, canvas))
    return batch.images.pixels.shape[1:3]
