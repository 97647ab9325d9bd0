"""What a detector is made of, and what it costs: numbers without running it."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.stages import Lowered

from jaxdet.commands import opening
from jaxdet.commands.opening import Run
from jaxdet.training import state, steps
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


def measure(subject: Subject, *, memory: bool = False) -> dict[str, Any]:
    """All numbers, in bytes and single FLOPs, which can be written as JSON.

    Args:
        subject: what is measured.
        memory: whether programs are compiled, to know their temporaries.

    Returns:
        Under "levels" null for a detector that does not tell its candidates;
        no numbers of a training step where there is no run; null FLOPs where
        JAX has no CPU to count them.
    """
    images = subject.images(1)
    lowered = {"prediction": lower_prediction}
    if subject.run is not None:
        lowered["step"] = lower_step
    found = {
        "detector": subject.name,
        "num_classes": subject.num_classes,
        "canvas": list(images.pixels.shape[1:3]),
        "batch_size": subject.batch_size,
        "parameters": _parameters(subject),
        "levels": _levels(subject),
        "flops": {name: count_flops(lower, subject) for name, lower in lowered.items()},
        "bytes": {name: _bytes(subject, name) for name in lowered},
    }
    if memory:
        found["backend"] = jax.default_backend()
        for name, lower in lowered.items():
            analysis = lower(subject, subject.batch_size).compile().memory_analysis()
            if analysis is not None:  # Not every backend has it.
                found["bytes"][name]["temporaries"] = analysis.temp_size_in_bytes
    return found


def count_flops(lower: Callable[[Subject, int], Lowered], subject: Subject) -> float | None:
    """XLA's count for one image, by `lower_step` or `lower_prediction`.

    The CPU's backend counts, whatever the device at hand: those of accelerators do not.
    None where there is none, as under JAX_PLATFORMS=cuda.
    """
    try:
        counting = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(counting):
        return lower(subject, 1).cost_analysis()["flops"]


def lower_prediction(subject: Subject, count: int) -> Lowered:
    """Prediction of so many images."""
    return jax.jit(subject.detector.predict).lower(subject.variables, subject.images(count))


def lower_step(subject: Subject, count: int) -> Lowered:
    """The step of one device, which trains on batches of `count` images."""
    batch = opening.blank_batch(subject.run.config, count)
    return jax.jit(one_device_step(subject.run), donate_argnums=0).lower(
        first_state(subject.run), batch
    )


def one_device_step(run: Run) -> Callable:
    """`(state, batch) -> (state, metrics)` of a run with an optimizer, as one device does it."""
    config = run.config
    step = partial(
        steps.train_step,
        detector=run.detector,
        tx=run.tx,
        schedule=run.schedule,
        seed=config.seed,
        final_start=opening.final_start(config),
        axis_name=steps.AXIS_NAME,
        ema_decay=config.ema_decay,
        ema_ramp=config.ema_ramp,
    )
    # An axis of one device, over which the step takes its means.
    mapped = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=steps.AXIS_NAME)
    return lambda state, batch: mapped(state, jax.tree.map(lambda a: a[None], batch))


def first_state(run: Run) -> state.TrainState:
    """Shapes and types of a run's state."""
    create = partial(state.create, tx=run.tx, ema=run.config.ema_decay > 0)
    return jax.eval_shape(create, run.variables)


def format_tables(found: Mapping[str, Any]) -> str:
    """The numbers of `measure` as text."""
    height, width = found["canvas"]
    size = found["batch_size"]
    lines = [
        f"{found['detector']}, {found['num_classes']} classes, canvas {height} x {width}, "
        f"batches of {size}",
        "",
    ]
    parts = found["parameters"]
    lines += _table(
        ("part", "parameters", "trainable", "statistics"),
        [(name, *(f"{count:,}" for count in part.values())) for name, part in parts.items()],
    )
    if found["levels"]:
        kind = found["levels"]["kind"]
        rows = [
            (str(each["stride"]), " x ".join(map(str, each["cells"])), f"{each['count']:,}")
            for each in found["levels"]["maps"]
        ]
        total = sum(each["count"] for each in found["levels"]["maps"])
        lines += ["", *_table(("stride", "cells", kind), [*rows, ("all", "", f"{total:,}")])]
    named = {"prediction": "prediction", "step": "training step"}
    rows = [
        (named[name], "not counted" if count is None else f"{count / 1e9:,.2f} G")
        for name, count in found["flops"].items()
    ]
    lines += ["", *_table(("FLOPs", f"an image of {height} x {width}"), rows)]
    columns = {f"{named[name]} of {size}": sizes for name, sizes in found["bytes"].items()}
    kinds = max(columns.values(), key=len)
    rows = [(kind, *(_megabytes(s.get(kind)) for s in columns.values())) for kind in kinds]
    rows.append(("all", *(_megabytes(sum(s.values())) for s in columns.values())))
    lines += ["", *_table(("memory", *columns), rows)]
    if "backend" in found:
        lines.append(f"temporaries as compiled for {found['backend']}")
    else:
        lines.append("without temporaries: --memory compiles and adds them")
    return "\n".join(lines)


def _parameters(subject):
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


def _levels(subject):
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


def _bytes(subject, name):
    """What is known without compiling."""
    weights = {
        "parameters": _size(subject.variables["params"]),
        "statistics": _size(subject.variables.get("batch_stats", {})),
    }
    if name == "prediction":
        return {**weights, "images": _size(subject.images(subject.batch_size))}
    counts, start = _parameters(subject)["all"], first_state(subject.run)
    share = counts["trainable"] / counts["total"]
    return {
        **weights,
        "averages": _size(start.ema),
        "gradients": round(share * weights["parameters"]),
        "optimizer": _size(start.opt_state),
        "images": _size(opening.blank_batch(subject.run.config, subject.batch_size)),
    }


def _size(tree):
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _megabytes(count):
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Aligned columns: the first to the left, numbers to the right."""
    rows = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
