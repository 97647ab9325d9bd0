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

# What a CUDA graph runs does not say which operation it is.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_gpu_enable_command_buffer=" if os.environ.get("JAX_PLATFORMS") != "cpu" else ""
)

import detectors
import jax
import places
import side_jaxdet

from jaxdet.commands import costs

CALLS = 3
# Operations that only hold others.
HOLDERS = re.compile(r"(while|call|conditional|async)[-_.\d]")


def main() -> None:
    """Reads the flags, runs, and prints both tables."""
    flags = _read()
    case = {key: getattr(flags, key) for key in ("model", "batch", "size", "dtype", "settings")}
    compiled, call = _open(case, flags.predict)
    times = _trace(call)
    found = places.of_operations(compiled.as_text())
    total = sum(times.values())
    by_place = collections.Counter()
    for op, seconds in times.items():
        by_place[found.get(op, "?")] += seconds
    print(f"{case}: {1e3 * total:.1f} ms of operations a call")
    for name, seconds in by_place.most_common(flags.top):
        print(f"{1e3 * seconds:9.2f} ms {seconds / total:6.1%}  {name}")
    print()
    for op, seconds in times.most_common(flags.top):
        print(f"{1e3 * seconds:9.2f} ms {seconds / total:6.1%}  {op}  {found.get(op, '?')}")
    if flags.json:
        flags.json.write_text(json.dumps({"places": by_place, "operations": times}, indent=1))


def _open(case, predict):
    """The compiled step or prediction, and what runs it once."""
    run = side_jaxdet.open_run(**case)
    if predict:
        variables, batch = side_jaxdet.fill_run(run)
        function, arguments = run.detector.predict, jax.device_put((variables, batch.images))
    else:
        function, arguments = costs.one_device_step(run), side_jaxdet.step_arguments(run)
    compiled = jax.jit(function).lower(*arguments).compile()
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


def _read():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", choices=detectors.MODELS)
    detectors.add_size_flags(parser)
    add("--predict", action="store_true", help="prediction, not the training step")
    add("--top", type=int, default=40, metavar="N", help="rows of each table (40)")
    add("--json", type=Path, metavar="FILE", help="keep all of it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
