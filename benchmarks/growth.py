"""How time and memory of a training step grow: with objects, image side, proposals and batch.

    python benchmarks/growth.py [MODEL ...] [--axes=objects,side,proposals,batch] [--json=FILE]

The networks are narrow, so that what is not a network shows. Each row has the exponent of the
growth since the row above, of time, memory and FLOPs: 1 is in proportion, and nothing should
grow faster than its FLOPs where those count. Memory is XLA's own temporary memory; time is the CPU
time of all cores, the least of some calls.
"""

import argparse
import json
import math
import time
from pathlib import Path

import detectors
import jax
import side_jaxdet

from jaxdet.commands import costs

NARROW_RESNET = ("model.backbone.depth=10", "model.backbone.width=16", "model.neck.channels=32")
NARROW = {
    "faster_rcnn": (*NARROW_RESNET, "model.roi.head.hidden=64"),
    "retinanet": NARROW_RESNET,
    "yolox": ("model.blocks.depth=0.33", "model.blocks.width=0.125"),
}
# What does not grow stays at these.
BASE = {"objects": 20, "side": 320, "proposals": 1000, "batch": 1}
AXES = {
    "objects": (0, 30, 60, 120, 250, 500),
    "side": (160, 320, 640, 1280),
    "proposals": (250, 500, 1000, 2000, 4000),
    "batch": (1, 2, 4, 8),
}
COLUMNS = ("CPU ms", "temporary MB", "GFLOP")
CALLS = 5


def main() -> None:
    """Reads the flags and prints a table for each model and axis."""
    flags = _read()
    found = {}
    for model in flags.models:
        for axis in flags.axes:
            if axis == "proposals" and model != "faster_rcnn":
                continue
            print(f"\n{model}, {axis}\n\n{_head(axis)}", flush=True)
            rows = found[f"{model}, {axis}"] = []
            for value in AXES[axis]:
                rows.append((value, *_measure(model, BASE | {axis: value})))
                print(_line(rows), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=1))


def _measure(model, sizes):
    """CPU milliseconds, temporary megabytes and GFLOPs of a step."""
    objects, proposals, side = sizes["objects"], sizes["proposals"], sizes["side"]
    settings = [*NARROW[model], f"data.max_boxes={max(objects, 1)}"]
    if model == "faster_rcnn":
        settings += [f"model.rpn.train.{key}={proposals}" for key in ("pre_nms", "num_proposals")]
        settings.append(f"model.roi.sample.num_samples={proposals // 4}")
    run = side_jaxdet.open_run(
        model=model, batch=sizes["batch"], size=(side, side), dtype="float32", settings=settings
    )
    arguments = side_jaxdet.step_arguments(run, objects=objects)
    traced = jax.jit(costs.one_device_step(run)).trace(*arguments)
    compiled = traced.lower().compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(CALLS):
        began = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - began)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return 1e3 * min(times), temporary / 1e6, costs.flops_of(traced) / 1e9


def _head(axis):
    names = [axis, *(name for column in COLUMNS for name in (column, "exponent"))]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _line(rows):
    """The last row of the table, with exponents since the one above."""
    cells = [str(rows[-1][0])]
    for i in range(1, len(rows[-1])):
        cells += [f"{rows[-1][i]:.3g}", _exponent(rows, i)]
    return f"| {' | '.join(cells)} |"


def _exponent(rows, column):
    if len(rows) < 2 or not rows[-2][0]:
        return ""
    (before, *_), (after, *_) = rows[-2:]
    return f"{math.log(rows[-1][column] / rows[-2][column]) / math.log(after / before):.2f}"


def _read():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help=f"of {', '.join(detectors.MODELS)}; all")
    add("--axes", type=lambda text: text.split(","), default=list(AXES), help="by commas; all")
    add("--json", type=Path, metavar="FILE", help="keep what was measured")
    flags = parser.parse_args()
    for kind, named, known in (
        ("model", flags.models, detectors.MODELS),
        ("axis", flags.axes, AXES),
    ):
        unknown = sorted(set(named) - set(known))
        if unknown:
            parser.error(f"no {kind} {unknown[0]!r}; there are {', '.join(known)}")
    flags.models = flags.models or list(detectors.MODELS)
    return flags


if __name__ == "__main__":
    main()
