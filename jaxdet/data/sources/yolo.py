"""YOLO's text files: ultralytics' folders with their data.yaml, and what CVAT and others write."""

import logging
import os
import pathlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources import yolo_labels, yolo_layout
from jaxdet.data.sources.files import (
    FileSource,
    check_distinct,
    label_indices,
    report_unused,
    to_example,
)
from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.sizes import read_sizes

_NOTHING = yolo_labels.Objects([], np.zeros((0, 4)), 0)


def read_yolo(
    *, root: str, split: str, classes: tuple[str, ...] = (), file: str = ""
) -> FileSource:
    """Reads label files beside pictures.

    The labels of images/a.jpg are in labels/a.txt, where the last folder of that name counts; of
    pictures in no folder called images they are beside them. A picture without such a file, or
    with an empty one, has no objects. Boxes are parts of the picture as viewers show it, so that
    each picture's head is read for its size. A line that is there twice counts once, as ultralytics
    has it, and is logged; boxes stay as they are otherwise. Logged is, too, how many label files
    are no picture's, and how many pictures cannot be read; boxes of these have no area.

    Args:
        root: the folder of data.yaml, obj.data or classes.txt.
        split: "train", "val" or "test", as data.yaml has it.
        classes: names in the order of their labels; empty takes all of the data, in the
            order of their numbers.
        file: name of the data.yaml, where it has another one or there are several.

    Returns:
        The source, in the order of a list, or sorted. The id of an image is its path in `root`,
        without the ending.

    Raises:
        UserError: for a file or image that is missing, a line that is no object, or a class that
            is used and not in `classes`.
    """
    folder = pathlib.Path(root)
    layout = yolo_layout.read(folder, split, file)
    ids = [path.relative_to(folder).with_suffix("").as_posix() for path in layout.pictures]
    check_distinct(layout.file, ids, layout.pictures)
    files = [_label_file(path, folder) for path in layout.pictures]
    there = _existing(files)
    read_one = partial(yolo_labels.read, num_classes=len(layout.names), pose=layout.pose)
    objects = dict(zip(there, read_all(read_one, there), strict=True))
    sizes = read_sizes(layout.pictures)
    class_names = classes or tuple(dict.fromkeys(layout.names))

    def look_up(item):
        path, found = item
        return label_indices([layout.names[n] for n in found.numbers], class_names, where=path)

    labels = dict(zip(objects, read_all(look_up, objects.items()), strict=True))
    examples, repeated = [], 0
    for image_id, path, size in zip(ids, files, sizes, strict=True):
        found, numbers = objects.get(path, _NOTHING), labels.get(path, [])
        height, width = size
        boxes = found.corners * [width, height, width, height]
        examples.append(to_example(image_id, size, boxes, numbers))
        repeated += found.repeated
    if repeated:
        logging.getLogger("jaxdet").warning(
            "%s (%s): %d lines say what another one of their file said: each is taken once",
            *(root, split, repeated),
        )
    _report_lost(layout.pictures, files, root)
    # A box is a part of its picture: in one that cannot be read it has no area.
    seen = [example for example in examples if all(example.size)]
    report_unused(f"{root} ({split})", seen, sum(len(each.labels) for each in seen))
    places = tuple(layout.names.index(n) for n in class_names if n in layout.names)
    known = len(places) == len(class_names) and len(set(layout.names)) == len(layout.names)
    return FileSource(
        tuple(class_names), examples, layout.pictures, places if known else None, bool(there)
    )


def _label_file(picture: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    parts = list(picture.relative_to(root).parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _existing(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """Those of the files that there are, in order; folders are listed, and files not asked for."""
    found = {}
    for folder in {path.parent for path in files}:
        found[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    return [path for path in files if path.name in found[path.parent]]


def _report_lost(
    pictures: Sequence[pathlib.Path], files: Sequence[pathlib.Path], root: str
) -> None:
    """Logs how many label files, in the folders of these, belong to no picture of any split."""
    lost, total = [], 0
    folders = {file.parent: picture.parent for file, picture in zip(files, pictures, strict=True)}
    for folder, beside in folders.items():
        if folder == pathlib.Path(root) or not folder.is_dir():
            continue  # Texts there are lists and notes.
        parts = map(os.path.splitext, os.listdir(beside))
        wanted = {f"{stem}.txt" for stem, ending in parts if ending.lower() in SUFFIXES}
        texts = [name for name in os.listdir(folder) if name.lower().endswith(".txt")]
        texts = [name for name in texts if name[0] != "." and name != yolo_layout.NAMES_ALONE]
        lost += [folder / name for name in texts if name not in wanted]
        total += len(texts)
    if lost:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d label files belong to no picture that is read, such as %s: they are "
            "left out",
            *(root, len(lost), total, min(lost)),
        )
