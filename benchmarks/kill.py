"""Kills a training at random moments, resumes it each time, and compares where it ends.

    python benchmarks/kill.py [--kills=100] [--folder=FOLDER] [--seed=0]

The training is the tests' tiny one, of 60 steps with a checkpoint after each, so
that most moments lie within a save or the removal of an old checkpoint. It is
trained once undisturbed; then SIGKILL comes up to two seconds after the first new
step, and every fifth time within ten seconds of the start. A run that ends between
kills is compared and begun anew. Ends with status 1 if any bit differs, in the
parameters, the optimizer's state, the model file, the results or the log.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[1]
NUM_STEPS = 60
STOPWATCHES = {"images_per_second", "data_wait", "first_step_seconds"}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    folder = flags.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed, rng = folder / "whole", folder / "killed", random.Random(flags.seed)
    if start(whole, folder).wait():
        sys.exit(Path(folder, "log.txt").read_text())
    moments, ends = [], 0
    while len(moments) < flags.kills:
        early = len(moments) % 5 == 4
        moment = kill(start(killed, folder), killed, rng, early=early)
        if moment is None:
            ends += 1
            compare(whole, killed)
            shutil.rmtree(killed)
            continue
        moments.append(moment)
        print(f"kill {len(moments)}: {moment}", flush=True)
    if start(killed, folder).wait():
        sys.exit(Path(folder, "log.txt").read_text())
    compare(whole, killed)
    print(
        f"{flags.kills} kills, {ends + 1} runs of {NUM_STEPS} steps: each ends with the same bits"
    )


def start(workdir: Path, folder: Path) -> subprocess.Popen:
    """Starts or resumes the training."""
    settings = ("checkpoint_every=1", "eval_every=10", "log_every=5", "num_pictures=0")
    settings += (f"data.root={folder / 'data'}",)
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "train.py"),
            f"--config={ROOT / 'tests' / 'training' / 'tiny_config.py'}:{NUM_STEPS}",
            f"--workdir={workdir}",
            *(f"--config.{setting}" for setting in settings),
        ],
        env=environment(folder),
        stdout=(folder / "log.txt").open("w"),
        stderr=subprocess.STDOUT,
    )


def environment(folder: Path) -> dict[str, str]:
    """That of a run which keeps its programs in a folder."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**cache, **os.environ, "PYTHONPATH": str(ROOT)}


def kill(
    process: subprocess.Popen, workdir: Path, rng: random.Random, *, early: bool
) -> str | None:
    """Kills a run at a random moment; says what was going on; None if it ended before."""
    steps = found_steps(workdir)
    if early:
        time.sleep(rng.uniform(0, 10))
    else:
        while process.poll() is None and found_steps(workdir) == steps:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"a start failed: {(workdir.parent / 'log.txt').read_text()}")
    names = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
    return f"{'while it started' if early else 'in training'}; left: {' '.join(names)}"


def found_steps(workdir: Path) -> set[str]:
    """The steps that are saved."""
    return {path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()}


def compare(whole: Path, killed: Path, *, step: int = NUM_STEPS) -> None:
    """Ends the process if two runs differ at the end, which is this step."""
    for item in ("variables", "training"):
        with ocp.StandardCheckpointer() as checkpointer:
            trees = [
                checkpointer.restore(folder / "checkpoints" / str(step) / item)
                for folder in (whole, killed)
            ]
        jax.tree.map(np.testing.assert_array_equal, *trees)
    for name in ("model.safetensors", "eval.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert read_lines(whole) == read_lines(killed), "metrics.jsonl"


def read_lines(workdir: Path) -> list[dict]:
    """The log, without what clocks say."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line.keys() - STOPWATCHES} for line in lines]


if __name__ == "__main__":
    main()
