"""Draws what a training is fed, after augmentation, on one sheet.

    jaxdet browse --config=FILE [--step=N] [--images=N] [--assign] [--out=FILE.jpg|FOLDER]

The images are those of the run's step N, 0 if not said, and of the steps behind it where
a batch has fewer: with mosaics, mixup and the height that the step draws. What is hatched
is padding. Dashed regions are crowd or difficult: they are not learnt. Below each stands
the id of the image at this place of the run; what a mosaic adds to it has no name.

With --assign the sheet shows which anchors (RPN, Faster R-CNN, RetinaNet) or grid points
(YOLOX) learn which object, by the detector's own rule and before any are sampled; a line
leads from each to its object. SimOTA asks the detector what it predicts: the weights are
those of the best checkpoint in the workdir, else of init_from, else drawn at random, and
norms see the images that are shown.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxdet import visualize
from jaxdet.commands import command_line, fed_images, opening
from jaxdet.prediction.found import write_picture
from jaxdet.types import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_COLUMNS = 4


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    command_line.run(browse, argv or sys.argv, usage=__doc__, define=_define_flags)


def browse(arguments: command_line.Arguments) -> int:
    """Draws the images and says what they have; gives the exit status."""
    config, workdir, flags = arguments
    for name, least in (("images", 1), ("step", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} wants at least {least}, found {getattr(flags, name)}")
    out = Path(flags.out).expanduser()
    run = opening.open_training_data(opening.open_run(config))
    fed = fed_images.gather(run, flags.step, flags.images)
    if flags.assign:
        fed = fed_images.assign(run, fed, workdir)
    pictures = [fed_images.draw(each, run.class_names) for each in fed]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() in SUFFIXES:
        sheet = visualize.grid(pictures, min(MOST_COLUMNS, math.isqrt(len(pictures) - 1) + 1))
        write_picture(out, fed_images.add_legend(sheet, fed))
    else:
        out.mkdir(exist_ok=True)
        for place, (each, picture) in enumerate(zip(fed, pictures, strict=True)):
            name = re.sub(r"[^\w.+-]+", "-", each.name)
            write_picture(out / f"{place:03}_{name}.jpg", picture)
    print("\n".join(fed_images.describe(fed)))
    print(f"{len(fed)} images from step {flags.step} on are drawn in {out}")
    return 0


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--step", type=int, default=0, metavar="N", help="steps done before; 0")
    add("--images", type=int, default=12, metavar="N", help="how many; 12")
    add("--assign", action="store_true", help="show which anchors or points learn which object")
    add(
        "--out",
        default="browse.jpg",
        metavar="FILE|FOLDER",
        help="a sheet (.jpg, .png), or a folder for a picture of each image; browse.jpg",
    )
