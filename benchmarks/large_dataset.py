"""Measures how a data set of COCO's size is checked, and how a training on it starts.

    python benchmarks/large_dataset.py [--folder=FOLDER] [--images=118000] [--boxes=860000]

A COCO json with polygons is made, and links to a few pictures. Each part runs as a process
of its own: its seconds, its peak of memory and, where there is strace, its calls that ask
the disk for single files (stat and the like; readlink), of which Python's imports are 11,000.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
SIZE, CLASSES, PICTURES = (480, 640), 80, 8
VALIDATION = 5_000  # Images, of the same pictures.
CALLS = "stat,lstat,newfstatat,statx,access,faccessat2,readlink,readlinkat"
SETTINGS = (
    f"--config={ROOT / 'configs' / 'faster_rcnn_r50_fpn_1x_coco.py'}",
    "--config.init_from=",
    "--config.model.backbone.norm=batch",
    "--config.model.backbone.frozen_stages=0",
    "--config.data.classes=()",
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args()
    if flags.start:
        start(rest)
        return
    folder = (flags.folder or Path(tempfile.mkdtemp())).resolve()
    if not (folder / "annotations").is_dir():
        make(folder, flags.images, flags.boxes)
    arguments = [*SETTINGS, f"--config.data.root={folder}"]
    command = [sys.executable, "-m", "jaxdet", "check", *arguments]
    page = f"--out={folder / 'check.html'}"
    measure("jaxdet check", [*command, page])
    measure("jaxdet check --pictures", [*command, page, "--pictures"], calls=False)
    measure("start of a training", [sys.executable, __file__, "--start", *arguments])


def start(arguments: list[str]) -> None:
    """All that train.py does up to the data of the first step, but for the weights."""
    from jaxdet.commands import command_line, opening, splits

    config = command_line.read(["", *arguments]).config
    run = opening.open_training(config)
    splits.take_inventory(
        config, splits.open_source(config, config.data.eval_split, run.class_names)
    )
    batches = opening.train_batches(run.config, run.source, 0)
    print(f"{len(run.source)} images, {int(next(batches).valid.sum())} objects in the first batch")
    batches.close()


def make(folder: Path, images: int, boxes: int) -> None:
    """Writes both splits; links are hard ones, so that each is a file of its folder."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for k in range(PICTURES):
        pixels = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), SIZE[::-1])
        cv2.imwrite(str(folder / f"{k}.jpg"), pixels)
    shares = {"train2017": images, "val2017": min(VALIDATION, images)}
    for split, count in shares.items():
        (folder / split).mkdir()
        for i in range(count):
            os.link(folder / f"{i % PICTURES}.jpg", folder / split / f"{split}_{i:012}.jpg")
        path = folder / "annotations" / f"instances_{split}.json"
        write_json(path, split, count, boxes * count // images, rng)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)


def write_json(path: Path, split: str, images: int, boxes: int, rng: np.random.Generator) -> None:
    """Annotations with polygons of 30 corners, as COCO's mostly have."""
    height, width = SIZE
    listed = [
        {"id": i, "file_name": f"{split}_{i:012}.jpg", "height": height, "width": width}
        for i in range(images)
    ]
    classes = [{"id": k, "name": f"class {k}"} for k in range(CLASSES)]
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (boxes, 2)))
    corners = rng.uniform(0, 1, (boxes, 2)) * ([width, height] - sides)
    owners, labels = rng.integers(0, images, boxes), rng.integers(0, CLASSES, boxes)
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    circle = (np.stack([np.cos(angles), np.sin(angles)], axis=1) + 1) / 2
    with path.open("w") as file:
        head = {"images": listed, "categories": classes}
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for n in range(boxes):
            x, y, w, h = (round(float(v), 2) for v in (*corners[n], *sides[n]))
            polygon = np.round(circle * sides[n] + corners[n], 2).ravel().tolist()
            item = {"id": n, "image_id": int(owners[n]), "category_id": int(labels[n])}
            item |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon]}
            file.write("," * (n > 0) + json.dumps(item))
        file.write("]}")


def measure(name: str, command: list[str], *, calls: bool = True) -> None:
    """Runs a command; prints its time, memory and calls."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    print(
        f"{name}: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of a core), at most "
        f"{used.ru_maxrss / 1024:.0f} MB, status {os.waitstatus_to_exitcode(status)}"
        f"{count_calls(command, environment) if calls else ''}",
        flush=True,
    )


def count_calls(command: list[str], environment: dict[str, str]) -> str:
    """How often a second run asks for single files; nothing without strace."""
    if not shutil.which("strace"):
        return ""
    with tempfile.NamedTemporaryFile("r") as file:
        trace = ["strace", "-f", "-c", "--seccomp-bpf", "-e", f"trace=?{CALLS.replace(',', ',?')}"]
        subprocess.run(
            [*trace, "-o", file.name, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        total = re.search(r"(\d+)\s+(?:\d+\s+)?total", file.read())
    return f", {int(total[1]):,} calls for single files" if total else ""


if __name__ == "__main__":
    main()
