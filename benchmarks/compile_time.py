"""Times what comes before the first step: imports, tracing and compiling, loading what is kept.

    python benchmarks/compile_time.py [MODEL ...] [--size=320x480] [--batch=2] [--rounds=3]

Each number is of a process of its own. "First step" is from variables and a batch on the host to
the end of the first step, with an empty cache of compiled programs and with the one that this
leaves; the variables are drawn before, by a program of their own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import detectors
import harness
from harness import Side

IMPORTS = ("import numpy", "import jax", "import jaxdet", "import jaxdet; jaxdet.ops.nms")


def main() -> None:
    """Reads the flags and prints both tables."""
    flags = _read()
    rounds = {statement: [] for statement in IMPORTS}
    for _ in range(flags.rounds):
        for statement, seconds in rounds.items():
            seconds.append(_time_import(statement))
    print("| statement | s |\n| --- | --- |")
    for statement, seconds in rounds.items():
        print(f"| {statement} | {statistics.median(seconds):.2f} |", flush=True)
    print("\n| first step | empty cache s | filled cache s |\n| --- | --- | --- |")
    for model in flags.models:
        case = {"work": "train_step", "model": model, "batch": flags.batch}
        case |= {"size": flags.size, "dtype": flags.dtype, "settings": flags.settings}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
            side = Side("jaxdet", "side_jaxdet.py", case)
            empty, filled = (
                harness.compare([side], rounds=1)[0].facts["first_s"] for _ in range(2)
            )
        size = "x".join(map(str, flags.size))
        print(f"| {model} {flags.batch}x{size} | {empty:.1f} | {filled:.1f} |", flush=True)


def _time_import(statement):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=harness.FOLDER.parent)
    return time.perf_counter() - began


def _read():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", default=["faster_rcnn"], metavar="MODEL", help="(faster_rcnn)")
    detectors.add_size_flags(parser)
    add("--rounds", type=int, default=3, help="processes for each import (3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
