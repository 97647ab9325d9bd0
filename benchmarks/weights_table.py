"""Runs every cell of the README's table "Weights in, files out" by jaxdet's commands.

    python benchmarks/weights_table.py --yolox_code=FOLDER [ROW...]

It needs torch, torchvision and, for its rows, YOLOX's own code. Weights are drawn under the
names of each system and written as it writes them (see `foreign_weights`); then

    jaxdet convert weights.pth model.safetensors
    jaxdet predict model.safetensors photo.png
    jaxdet convert model.safetensors back.pth --to=SYSTEM
    jaxdet export model.safetensors --to=onnx, --to=stablehlo

What comes back must be the same arrays; what the files find, in processes without jaxdet, is
laid beside what `jaxdet.load` finds. For a classifier that a training starts from, a step with
a learning rate of 0 comes between. Prints a row as soon as it is done.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import cv2
import export
import foreign_weights
import numpy as np

import jaxdet
from jaxdet import __main__, interop
from jaxdet.data.sources import pictures

ROOT = Path(__file__).parents[1]
CANVAS = "--canvas=128x160"  # Small, so that it is quick.
PHOTO_SIZE = (205, 281)  # Becomes 116.7 x 160, which the systems round differently.
# Counters of batch norm, and the last layers of classifiers.
WITHOUT_PLACE = r"num_batches_tracked|^fc\.|^classifier\.6\."
# Of these layers the first four rows are the deltas of background, which nothing reads.
WITH_BACKGROUND = ("roi_heads.box_predictor.bbox_pred.", "head.cls_loc.")
# One step from the weights of a classifier, which changes nothing.
STEP = (
    *("--config.num_steps=1", "--config.batch_size=1", "--config.optimizer.learning_rate=0.0"),
    *("--config.eval_batch_size=1", "--config.data.options.num_train=4"),
    "--config.data.options.num_test=1",
)


HEAD = (
    "| weights | arrays taken | the same when back | found | ONNX: same, px, scores | "
    "StableHLO: same, px, scores | s |",
    "|---|---|---|---|---|---|---|",
)


class Row(NamedTuple):
    """A cell of the table.

    Attributes:
        names: whose weights.
        detector: as `jaxdet.build` takes it; "" for a classifier.
        kind: see `foreign_weights.write`.
        flags: of `jaxdet convert`, or of `jaxdet train`.
    """

    names: str
    detector: str
    kind: str = ""
    flags: tuple[str, ...] = ("--classes=coco",)


MMDETECTION = ("faster_rcnn", "fast_rcnn", "retinanet", "rpn")
ROWS = {
    **{
        f"{names} {detector}": Row(names, detector, flags=(f"--names={names}",))
        for names in ("mmdetection", "mmdetection_caffe")
        for detector in MMDETECTION
    },
    "torchvision faster_rcnn": Row("torchvision", "faster_rcnn", "fasterrcnn_resnet50_fpn"),
    "torchvision retinanet": Row("torchvision", "retinanet", "retinanet_resnet50_fpn"),
    "simple_faster_rcnn": Row("simple_faster_rcnn", "faster_rcnn", flags=("--classes=voc",)),
    **{
        f"{names} {size}": Row(names, "yolox", size, (f"--names={names}", "--classes=coco"))
        for names, sizes in (("yolox", foreign_weights.YOLOX_SIZES), ("yolox_legacy", ["s"]))
        for size in sizes
    },
    "torchvision resnet50": Row(
        *("resnet", "", "resnet50"),
        (
            *("--config=configs/quickstart.py", "--config.model.backbone.depth=50"),
            *("--config.model.backbone.width=64", "--config.model.backbone.norm=frozen"),
        ),
    ),
    "torchvision vgg16": Row(
        *("vgg", "", "vgg16"),
        (
            *("--config=configs/faster_rcnn_vgg16_voc07.py", "--config.data.source=shapes"),
            *("--config.data.canvas=(160,192)", "--config.data.classes=('circle',)"),
            *("--config.data.train_split=train", "--config.data.eval_split=test"),
            *("--config.optimizer.milestones=()", "--config.reload_best_at_milestones=False"),
        ),
    ),
}


def command(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Runs a command of jaxdet in a folder; gives what it says. Here, as a start takes seconds."""
    said = io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(said), redirect_stderr(said):
        try:
            __main__.main(["jaxdet", *arguments])
            status = 0
        except SystemExit as ending:
            status = ending.code
    if (status not in (0, None)) != fails:
        raise SystemExit(f"jaxdet {' '.join(arguments)}: {status}\n{said.getvalue()}")
    return f"{said.getvalue()}{status}"


def same_arrays(folder: Path) -> str:
    """How many arrays of weights.pth are in back.pth, bit for bit, of those that have a place."""
    first, last = (interop.load_file(folder / f"{name}.pth") for name in ("weights", "back"))
    first = {k: v for k, v in first.items() if not re.search(WITHOUT_PLACE, k)}
    same = 0
    for name, value in first.items():
        start = 4 if name.startswith(WITH_BACKGROUND) else 0
        same += name in last and np.array_equal(last[name][start:], value[start:])
    return f"{same} of {len(first)}"


def run_classifier(row: Row, folder: Path) -> str:
    """Starts a training from it; gives the cells of its row."""
    (folder / "configs").symlink_to(ROOT / "configs")
    command(
        *(folder, "train", *row.flags, *STEP, f"--config.data.root={folder / 'data'}"),
        *("--config.init_from=weights.pth", f"--workdir={folder / 'run'}"),
    )
    lines = (folder / "run" / "init_from.txt").read_text().splitlines()
    taken = sum(line.startswith("+") for line in lines)
    command(folder, "convert", "run", "back.pth", f"--to={row.names}")
    return f"{taken} | {same_arrays(folder)} | | | "


def run_detector(row: Row, folder: Path) -> str:
    """Converts it there and back, predicts and exports; gives the cells of its row."""
    said = command(folder, "convert", "weights.pth", "model.safetensors", CANVAS, *row.flags)
    taken = re.search(r"\+ (\d+) arrays taken", said)[1]
    command(folder, "convert", "model.safetensors", "back.pth", f"--to={row.names}")
    cells = [taken, same_arrays(folder)]
    wants = "wants proposals with each image"
    predict = ("predict", "model.safetensors", "photo.png", "--out=found", "--score=0")
    if row.detector == "fast_rcnn":
        tries = [predict, *(("export", "model.safetensors", f"--to={to}") for to in export.RUN)]
        if not all(wants in command(folder, *each, fails=True) for each in tries):
            raise SystemExit("fast_rcnn is to say what it wants")
        return " | ".join([*cells, *[wants] * 3])
    command(folder, *predict)
    photo = cv2.imread(str(folder / "photo.png"))[..., ::-1]
    wanted = {"photo": jaxdet.load(folder / "model.safetensors")(photo)[0]}
    told = json.loads((folder / "found" / "detections.json").read_text())
    cells.append(str(len(told)) if len(told) == len(wanted["photo"]) else "not those of load")
    for to in export.RUN:
        command(folder, "export", "model.safetensors", f"--to={to}", f"--out=model.{to}")
        images = {"photo": np.ascontiguousarray(photo)}
        found = export.elsewhere(to, folder / f"model.{to}", images, folder)
        cells.append(export.compare(found, wanted).replace(" | ", ", "))
    return " | ".join(cells)


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--yolox_code", default="", metavar="FOLDER")
    arguments = parser.parse_args()
    settings = dict(kinds=("circle", "square", "star"), num_objects=8, size_range=(24, 90))
    photo = pictures.draw_picture(np.random.default_rng(0), size=PHOTO_SIZE, **settings).image
    print("\n".join(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as parent:
        os.environ["XDG_CACHE_HOME"] = parent  # What predict compiles, load need not.
        for name in arguments.rows or ROWS:
            row, start, folder = ROWS[name], time.monotonic(), Path(parent, "row")
            folder.mkdir()
            cv2.imwrite(str(folder / "photo.png"), photo[..., ::-1])
            foreign_weights.write(folder / "weights.pth", *row[:3], arguments.yolox_code)
            cells = (run_detector if row.detector else run_classifier)(row, folder)
            print(f"| {name} | {cells} | {time.monotonic() - start:.0f} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
