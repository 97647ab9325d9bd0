"""A data source of one's own: LabelMe's json files beside their pictures.

    jaxdet train --config=configs/faster_rcnn_bccd.py \
        --config.data.source=examples/labelme_source.py:read --config.data.root=FOLDER \
        --config.data.classes="('cat', 'dog')" \
        --config.data.train_split=train --config.data.val_fraction=.2

It gives a `FileSource`, which knows what is on its images without reading them. Anything else
with `class_names`, a length and an `Example` at each place is a source, too.
"""

import json
import logging
from pathlib import Path

import numpy as np

from jaxdet.data.sources.files import FileSource, label_indices
from jaxdet.data.sources.folders import find_files
from jaxdet.types import Example, UserError

log = logging.getLogger("jaxdet")


def read(
    *, root: str, split: str, classes: tuple[str, ...], shapes: tuple[str, ...] = ("rectangle",)
) -> FileSource:
    """Reads every json of a folder; how many shapes of other kinds are left out is logged.

    Args:
        root: of the data.
        split: a folder in it; "train" is `root` itself where it has no such folder.
        classes: names in the order of their labels; empty takes those of the files, sorted.
        shapes: kinds of shapes that are objects; the box around them is taken.
    """
    folder = Path(root, split) if Path(root, split).is_dir() or split != "train" else Path(root)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"no json file in {folder}")
    contents = [json.loads(file.read_text()) for file in files]
    objects = [[s for s in each["shapes"] if s["shape_type"] in shapes] for each in contents]
    kinds = [s["shape_type"] for each in contents for s in each["shapes"]]
    left_out = {kind: kinds.count(kind) for kind in sorted(set(kinds) - set(shapes))}
    if left_out:
        said = ", ".join(f"{count} of kind {kind!r}" for kind, count in left_out.items())
        log.warning("%s: shapes are left out that data.options.shapes lacks: %s", folder, said)
    names = classes or tuple(sorted({s["label"] for each in objects for s in each}))
    pictures = [each["imagePath"] for each in contents]
    return FileSource(
        class_names=names,
        examples=[
            _example(file, content, found, names)
            for file, content, found in zip(files, contents, objects, strict=True)
        ],
        paths=find_files(folder, pictures, root=Path(root), where=folder),
    )


def _example(file, content, objects, names):
    boxes = np.array([_box(shape) for shape in objects], np.float32).reshape(-1, 4)
    labels = label_indices([s["label"] for s in objects], names, where=file)
    return Example(
        id=file.stem,
        image=b"",
        boxes=boxes,
        labels=np.array(labels, np.int32),
        crowd=np.zeros(len(boxes), bool),
        difficult=np.zeros(len(boxes), bool),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
        size=(content["imageHeight"], content["imageWidth"]),
    )


def _box(shape):
    points = np.array(shape["points"], np.float64)
    if shape["shape_type"] == "circle":  # Its middle, and a point of its rim.
        middle, radius = points[0], np.hypot(*(points[1] - points[0]))
        points = np.array([middle - radius, middle + radius])
    return np.concatenate([points.min(0), points.max(0)])
