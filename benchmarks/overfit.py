"""Lets each detector learn two photographs by heart, with its own config shrunk by overrides.

    JAXDET_BCCD=/path/to/BCCD python benchmarks/overfit.py [NAME ...]

A detector that cannot do that has a mistake which no schedule mends. Takes two
of the blood cell images, trains 200 steps on them from scratch and prints the
result on the same two. One to four minutes a detector on two CPU cores.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLASSES = ("RBC", "WBC", "Platelets")
COMMON = {
    "init_from": "",
    "batch_size": 2,
    "eval_batch_size": 2,
    "num_steps": 200,
    "eval_every": 0,
    "checkpoint_every": 0,
    "num_pictures": 0,
    "data.train_split": "two",
    "data.eval_split": "two",
    "data.classes": CLASSES,
    "data.canvas": (240, 320),
    "data.resize": (240, 320),
    "data.horizontal_flip": 0.0,
    "data.num_threads": 2,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.base_batch_size": 2,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 10,
    "optimizer.clip_norm": 10.0,
}
STILL = {f"data.{name}": 0.0 for name in "vertical_flip brightness contrast saturation".split()}
RESNET = STILL | {"model.backbone.norm": "group"}
VGG = {
    "model.backbone.norm": "group",
    "model.backbone.frozen_stages": 0,
    "model.backbone.width": 16,
    "model.rpn.anchors.scales": (1.0, 2.0, 4.0, 7.0),
    "model.rpn.train.pre_nms": 600,
    "model.rpn.test.pre_nms": 400,
    "model.rpn.train.num_proposals": 300,
}
# Name -> config, overrides, and where the result of the evaluation stands.
RUNS = {
    "faster_rcnn": ("faster_rcnn_bccd", RESNET, "AP50"),
    "retinanet": ("retinanet_bccd", RESNET, "AP50"),
    "faster_rcnn_vgg16": (
        "faster_rcnn_vgg16_voc07",
        VGG
        | {
            "pictures_every": 0,
            "reload_best_at_milestones": False,
            "evaluation.name": "coco",
            "model.roi.head.hidden": 256,
            "model.rpn.train.min_size": 4.0,
            "model.rpn.test.min_size": 4.0,
            "model.rpn.test.num_proposals": 200,
            "model.roi.suppress.max_detections": 100,
            "model.roi.suppress.max_candidates": 600,
        },
        "AP50",
    ),
    "rpn_vgg16": (
        "rpn_vgg16",
        VGG
        | {
            # Proposals may overlap objects by half and one another by .7; detections may not.
            "model.rpn.assign.negative_iou": 0.5,
            "model.rpn.test.iou_threshold": 0.5,
            # An anchor that never trains, at the border, says what it likes.
            "model.rpn.inside.allowed_border": -1.0,
            "model.rpn.assign.reassign_low_quality": True,
        },
        "AP50",
    ),
    "yolox": (
        "yolox_bccd",
        {
            "model.blocks.norm": "group",
            "data.vertical_flip": 0.0,
            "data.hsv": (0.0, 0.0, 0.0),
            "data.mosaic": 0.0,
            "ema_decay": 0.0,
            "final_steps": 100,
            "final_eval_every": 0,
        },
        "AP50",
    ),
}


def main(names: list[str]) -> None:
    """Runs the named detectors, or all, and prints a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        root = choose_images(Path(os.environ["JAXDET_BCCD"]), Path(folder) / "data")
        for name in names or RUNS:
            config, own, metric = RUNS[name]
            workdir = Path(folder) / name
            start = time.perf_counter()
            run(config, workdir, COMMON | own | {"data.root": str(root)})
            results = json.loads((workdir / "eval.json").read_text())
            minutes = (time.perf_counter() - start) / 60
            print(f"{name:20} {metric} {results[metric]:.3f}   {minutes:.1f} min", flush=True)


def choose_images(source: Path, target: Path, count: int = 2) -> Path:
    """Copies the first images that show every class, with a split "two" that names them."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (target / part).mkdir(parents=True)
    names = (source / "ImageSets/Main/trainval.txt").read_text().split()
    chosen = []
    for name in names:
        annotation = (source / f"Annotations/{name}.xml").read_text()
        if set(CLASSES) <= set(re.findall(r"<name>(\w+)</name>", annotation)):
            chosen.append(name)
            image = (source / f"JPEGImages/{name}.jpg").read_bytes()
            (target / f"Annotations/{name}.xml").write_text(annotation)
            (target / f"JPEGImages/{name}.jpg").write_bytes(image)
        if len(chosen) == count:
            break
    (target / "ImageSets/Main/two.txt").write_text("\n".join(chosen) + "\n")
    return target


def run(config: str, workdir: Path, overrides: dict[str, object]) -> None:
    """Trains in a process of its own; its messages show only where it fails."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "train.py", f"--config=configs/{config}.py", f"--workdir={workdir}"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


if __name__ == "__main__":
    main(sys.argv[1:])
