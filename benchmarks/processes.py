"""Compares runs on several processes and devices with one another, and kills some of them.

    python benchmarks/processes.py [--parts=systems,devices,kills] [--systems=rpn,...]
        [--folder=FOLDER]

All runs are the tests' tiny ones, on devices of the CPU, the processes of a run joined over
the loopback. `systems`: two processes of two devices and four of one train and evaluate each
detector as one process of four devices does. `devices`: 1, 2, 4 and 8 devices, and a change
between them in the middle of a run, with synchronised norm. `kills`: one of
two processes is killed at a random moment, the other ends by itself, both are started again,
ten times; the end has the bits of an unbroken run. Ends with status 1 where any of it fails.
"""

import argparse
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import kill
import numpy as np

from jaxdet.data import proposal_files

EVERY_SCORE = "model.suppress.score_threshold=0.0"  # So early, scores are low.
SYSTEMS = {
    "rpn": ("evaluation.name=proposals",),
    "faster_rcnn": (),
    "fast_rcnn": ("data.proposals={folder}/proposals.npz", "data.max_proposals=20"),
    "retinanet": ("model.head.num_convs=1", EVERY_SCORE),
    # So narrow, the last bit of its variables moves the norm of its first gradient, 150, by 1e-4:
    # bounded gradients and small steps, lest what is rounded grow.
    "yolox": (
        *("model.blocks.width=0.0625", "model.blocks.depth=0.33", "model.blocks.norm=group"),
        *("optimizer.clip_norm=1.0", "optimizer.learning_rate=0.00005"),
        *("data.mosaic=0.5", EVERY_SCORE),
    ),
}
NEAR, NEAR_NORM = 1e-5, 1e-3  # Of a loss, of a gradient's norm, relative.
HEARTBEAT = 10  # Seconds.
KILLS, STEPS_OF_KILLED = 10, 60
LAST_LINE = "resumes at the last checkpoint"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default="systems,devices,kills")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="of the first part")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    folder = flags.folder or Path(tempfile.mkdtemp())
    write_proposals(folder)
    parts = {
        "systems": partial(compare_systems, systems=flags.systems.split(",")),
        "devices": compare_devices,
        "kills": partial(kill_one_of_two, rng=random.Random(flags.seed)),
    }
    for part in flags.parts.split(","):
        parts[part](folder)


def compare_systems(folder: Path, systems: Sequence[str]) -> None:
    """Each detector on four devices, of one, two and four processes."""
    for system in systems:
        settings = tuple(each.format(folder=folder) for each in SYSTEMS[system])
        settings = (f"detector={system}", *settings)
        settings += ("num_steps=8", "eval_every=4")
        names = {count: f"{system}_{count}x{4 // count}" for count in (1, 2, 4)}
        for count, name in names.items():
            finish(start(folder / name, *settings, processes=count, devices=4 // count))
        for count in (2, 4):
            say_difference(folder / names[1], folder / names[count])


def compare_devices(folder: Path) -> None:
    """RetinaNet with synchronised norm on 1 to 8 devices, and on two numbers in turn."""
    settings = ("detector=retinanet", *SYSTEMS["retinanet"], "model.backbone.norm=sync")
    # Where steps are large, what is rounded grows.
    settings += ("optimizer.learning_rate=0.002", "eval_every=4")
    first, changed = folder / "devices_1", folder / "devices_2_then_2x2"
    finish(start(first, *settings, "num_steps=8", processes=1, devices=1))
    for count in (2, 4, 8):
        other = folder / f"devices_{count}"
        finish(start(other, *settings, "num_steps=8", processes=1, devices=count))
        say_difference(first, other)
    finish(start(changed, *settings, "num_steps=4", processes=1, devices=2))
    finish(start(changed, *settings, "num_steps=8", processes=2, devices=2))
    say_difference(first, changed)


def kill_one_of_two(folder: Path, rng: random.Random) -> None:
    """Kills one of two processes, again and again, and compares the end with an unbroken run's."""
    settings = (f"num_steps={STEPS_OF_KILLED}", "eval_every=10", "checkpoint_every=1")
    whole, killed, kills = folder / "whole", folder / "killed", 0
    finish(start(whole, *settings, processes=2, devices=2))
    while kills < KILLS:
        pair = start(killed, *settings, processes=2, devices=2)
        when = wait_for_a_moment(pair, killed, rng, early=kills % 3 == 2)
        victim = rng.randrange(2)
        pair[victim].send_signal(signal.SIGKILL)
        began = time.perf_counter()
        other, limit = pair[1 - victim], HEARTBEAT + 20
        if pair[victim].wait() != -signal.SIGKILL:
            finish(pair)
            kill.compare(whole, killed, step=STEPS_OF_KILLED)
            shutil.rmtree(killed)
            continue
        status = other.wait(timeout=limit)
        took, text = time.perf_counter() - began, log_of(killed, 1 - victim)
        assert status != 0 and LAST_LINE in text.splitlines()[-1], text
        kills += 1
        saved = max(map(int, kill.found_steps(killed)), default=0)
        print(
            f"kill {kills}: process {victim}, {when}, step {saved} saved; the other ended "
            f"{took:.1f} s later with status {status}",
            flush=True,
        )
    finish(start(killed, *settings, processes=2, devices=2))
    kill.compare(whole, killed, step=STEPS_OF_KILLED)
    print(f"{kills} kills of one of two processes: the run ends with the bits of an unbroken one")


def start(workdir: Path, *settings: str, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts the processes of a run."""
    folder = workdir.parent
    settings += ("log_every=1", "num_pictures=0", "log_batches=True", "keep_programs=False")
    settings += (f"data.root={folder / 'data'}", f"heartbeat_seconds={HEARTBEAT}")
    joined = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        joined = ["--distributed", f"--coordinator={address}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(kill.ROOT / "train.py"),
                f"--config={kill.ROOT / 'tests' / 'training' / 'tiny_config.py'}",
                f"--workdir={workdir}",
                *(f"--config.{setting}" for setting in settings),
                *([*joined, f"--process_id={index}"] if joined else []),
            ],
            env=kill.environment(folder) | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=(folder / f"{workdir.name}.{index}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    """Waits for a run; ends this process if it fails."""
    for process in processes:
        if process.wait():
            sys.exit(f"{' '.join(process.args)} failed: see the texts beside its folder")


def wait_for_a_moment(
    pair: list[subprocess.Popen], workdir: Path, rng: random.Random, *, early: bool
) -> str:
    """Waits until a run is under way, and then for a random time; says where it was."""
    steps = kill.found_steps(workdir)
    while any(process.poll() is None for process in pair):
        joined = all("[Gloo]" in log_of(workdir, index) for index in (0, 1))
        if joined if early else kill.found_steps(workdir) - steps:
            break
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 20 if early else 3))
    return "while it started" if early else "in training"


def log_of(workdir: Path, index: int) -> str:
    """What a process printed."""
    return (workdir.parent / f"{workdir.name}.{index}.txt").read_text()


def say_difference(one: Path, other: Path) -> None:
    """Prints how far two runs differ; ends this process if a loss does, or an image."""
    lines, others = (
        {(line["step"], "loss" not in line): line for line in kill.read_lines(folder)}
        for folder in (one, other)
    )
    assert lines.keys() == others.keys(), (lines.keys(), others.keys())
    largest, best = dict.fromkeys(["a loss", "a gradient's norm", "a result"], 0.0), 0.0
    for at, line in lines.items():
        for key, value in line.items():
            kind = "a result" if at[1] else kind_of(key)
            if kind and value is not None:
                scale = 1 if at[1] else abs(value)
                largest[kind] = max(largest[kind], abs(others[at][key] - value) / (scale or 1))
            if at[1] and ("AP" in key or "AR" in key) and value is not None:
                best = max(best, value)
    images, same = read_images(one), read_images(other)
    assert images == same and images, "other images"
    found = ", ".join(f"{kind} {value:.1e}" for kind, value in largest.items())
    print(
        f"{other.name} and {one.name}: {len(images)} steps of the same images; largest "
        f"difference of {found} (the best of them is {best:.3f})",
        flush=True,
    )
    assert largest["a loss"] < NEAR, "losses differ"
    assert largest["a gradient's norm"] < NEAR_NORM, "gradients differ"


def kind_of(key: str) -> str | None:
    """What a value of training's log is, where it is compared."""
    if key == "gradient_norm":
        return "a gradient's norm"
    return "a loss" if "loss" in key else None


def read_images(workdir: Path) -> dict[int, list]:
    """The images of each global batch, by step; whatever is done twice must be done alike."""
    rows: dict[tuple[int, int], object] = {}
    for path in workdir.glob("batches.*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            for place, image in zip(line["places"], line["images"], strict=True):
                assert rows.setdefault((line["step"], place), image) == image
    steps = sorted({step for step, _ in rows})
    return {step: [image for at, image in sorted(rows.items()) if at[0] == step] for step in steps}


def write_proposals(folder: Path) -> None:
    """Boxes anywhere, for every image of the generated data."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (16, 30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 24, corners.shape)], axis=-1)
    scores = rng.uniform(size=boxes.shape[:2])
    proposal_files.write(folder / "proposals.npz", list(range(16)), list(boxes), list(scores))


if __name__ == "__main__":
    main()
