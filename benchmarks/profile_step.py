"""Says where the time of a detector's training step or prediction goes, by part of the code.

    python benchmarks/profile_step.py MODEL [--size=320x480] [--batch=2] [--dtype=float32]
        [--predict] [--top=40] [--json=FILE]

Runs the compiled program a few times under JAX's profiler. Each operation's time is counted
where the program says it comes from: the layer of the network or else the function of jaxdet,
forward and backward apart. A fused operation counts where its result is made.
"""

import argparse
import collections
import json
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

# What a CUDA graph runs does not say which operation it is.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_gpu_enable_command_buffer=" if os.environ.get("JAX_PLATFORMS") != "cpu" else ""
)

import detectors
import jax
import side_jaxdet

from jaxdet.training import state, steps

CALLS = 3
# Operations that only hold others.
HOLDERS = re.compile(r"(while|call|conditional|async)[-_.\d]")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{(.*)\}")
NAME = re.compile(r'op_name="([^"]*)"')
FRAME = re.compile(r"stack_frame_id=(\d+)")
LAYER = re.compile(r"(backbone|neck|rpn_head|box_head|bbox_head|head)/([\w/]+?)/")
# Where an operation is said to be from stops at what only passes it on.
PASSED = ("contracts.py",)


class Place(NamedTuple):
    """Where in the code an operation comes from."""

    name: str
    backward: bool


def main() -> None:
    """Reads the flags, runs, and prints both tables."""
    flags = _read()
    case = {"model": flags.model, "batch": flags.batch, "size": flags.size, "dtype": flags.dtype}
    compiled, call = (_prediction if flags.predict else _step)(case)
    times = _trace(call)
    places = _places(compiled.as_text())
    total = sum(times.values())
    by_place = collections.Counter()
    for op, seconds in times.items():
        place = places.get(op, Place("?", False))
        by_place[f"{place.name}{', backward' if place.backward else ''}"] += seconds
    print(f"{flags.model} {case}: {1e3 * total:.1f} ms of operations a call")
    for name, seconds in by_place.most_common(flags.top):
        print(f"{1e3 * seconds:9.2f} ms {seconds / total:6.1%}  {name}")
    print()
    for op, seconds in times.most_common(flags.top):
        print(f"{1e3 * seconds:9.2f} ms {seconds / total:6.1%}  {op}  {places.get(op, ('?',))[0]}")
    if flags.json:
        flags.json.write_text(json.dumps({"places": by_place, "operations": times}, indent=1))


def _step(case):
    """The compiled step, and what runs it once."""
    run, variables, batch = side_jaxdet.open_run(**case)
    step = partial(
        steps.train_step,
        detector=run.detector,
        tx=run.tx,
        schedule=run.schedule,
        seed=0,
        axis_name=steps.AXIS_NAME,
    )
    # An axis of one device, as in `jaxdet summary`.
    mapped = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=steps.AXIS_NAME)
    start, share = jax.device_put(
        (state.create(variables, run.tx), jax.tree.map(lambda a: a[None], batch))
    )
    compiled = jax.jit(mapped).lower(start, share).compile()
    return compiled, partial(compiled, start, share)


def _prediction(case):
    run, variables, batch = side_jaxdet.open_run(**case)
    arguments = jax.device_put((variables, batch.images))
    compiled = jax.jit(run.detector.predict).lower(*arguments).compile()
    return compiled, partial(compiled, *arguments)


def _trace(call):
    """Seconds of each operation in a call, by its name in the program."""
    jax.block_until_ready(call())
    times = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(call())
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    for event in line.events:
                        op = dict(event.stats).get("hlo_op")
                        if op and not HOLDERS.match(op) and not event.name.startswith("end:"):
                            times[op] += event.duration_ns / 1e9 / CALLS
    return times


def _places(text):
    """Operation -> `Place`, from the text of a compiled program."""
    frames = _frames(text)
    found = {}
    for line in text.splitlines():
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        op, about = instruction.groups()
        name = NAME.search(about)
        frame = FRAME.search(about)
        if not name and not frame:
            continue
        path = name.group(1) if name else ""
        layer = LAYER.search(path)
        place = "/".join(layer.groups()) if layer else frames(int(frame.group(1)) if frame else 0)
        found[op] = Place(place or path, "transpose(" in path)
    return found


def _frames(text):
    """The function of jaxdet in which a stack frame of the program lies."""
    tables = collections.defaultdict(dict)
    table = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables[table][int(row.group(1))] = row.group(2)
        elif table and line:
            break

    def numbers(row):
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}

    def function(frame):
        while frame in tables["StackFrames"]:
            row = numbers(tables["StackFrames"][frame])
            place = numbers(tables["FileLocations"][row["file_location_id"]])
            file = tables["FileNames"][place["file_name_id"]].strip('"')
            if "/jaxdet/" in file and not file.endswith(PASSED):
                name = tables["FunctionNames"][place["function_name_id"]].strip('"')
                return f"{Path(file).stem}.{name}:{place['line']}"
            frame = row["parent_frame_id"] - 1  # They are counted from one, 1 being none.
        return ""

    return function


def _read():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", choices=detectors.MODELS)
    detectors.add_flags(parser)
    add("--predict", action="store_true", help="prediction, not the training step")
    add("--top", type=int, default=40, metavar="N", help="rows of each table (40)")
    add("--json", type=Path, metavar="FILE", help="keep all of it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
