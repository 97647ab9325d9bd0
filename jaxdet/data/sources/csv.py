"""Tables of boxes: a row for each object, with the image's file and the name of its class."""

import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.sources import csv_rows
from jaxdet.data.sources.files import (
    FileSource,
    check_distinct,
    label_indices,
    report_unused,
    to_example,
)
from jaxdet.data.sources.folders import check_only_split, find_files
from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.sizes import fill_sizes, put_sizes_right, read_sizes


def read_csv(
    *,
    root: str,
    split: str,
    classes: tuple[str, ...] = (),
    annotations: str = "{split}.csv",
    images: str = "",
) -> FileSource:
    """Reads a table of corners, in pixels; x2 and y2 are exclusive, as torchvision has them.

    The first row names the columns (`csv_rows.COLUMNS`), or the rows are
    image,x1,y1,x2,y2,class, as RetinaNet's programs write them. A row with an image and
    nothing else is an image without objects.

    Args:
        root: the folder that both templates start from.
        split: put in place of "{split}".
        classes: names in the order of their labels; empty takes those of the table, sorted.
        annotations: path of the table below `root`.
        images: path of the folder below `root` that the images' names start from; empty for
            `root` itself.

    Returns:
        The source, in the order in which the table first names its images; the id of an image is
        its name there.

    Raises:
        UserError: for a file or image that is missing, a row that is no object, or a class that
            is not in `classes`.
    """
    check_only_split(split, annotations)
    path = pathlib.Path(root, annotations.replace("{split}", split))
    folder = pathlib.Path(root, images.replace("{split}", split))
    rows = csv_rows.read(path)
    by_image = defaultdict(list)
    for row in rows:
        by_image[row.image].append(row)
    paths = find_files(folder, list(by_image), root=pathlib.Path(root), where=path)
    check_distinct(path, list(by_image), paths)
    sizes = [its_rows[0].size for its_rows in by_image.values()]
    sizes = fill_sizes(sizes, paths, path) if any(map(all, sizes)) else read_sizes(paths)
    class_names = classes or tuple(sorted({row.name for row in rows if row.box}))
    examples = read_all(
        lambda item: _to_example(*item, class_names, path),
        zip(by_image, by_image.values(), sizes, strict=True),
    )
    examples = put_sizes_right(examples, paths, path)
    report_unused(path, examples, sum(row.box is not None for row in rows))
    return FileSource(tuple(class_names), examples, paths)


def _to_example(image, rows, size, class_names, path):
    objects = [row for row in rows if row.box]
    labels = read_all(
        lambda row: label_indices([row.name], class_names, where=f"{path}:{row.line}")[0], objects
    )
    boxes = np.array([row.box for row in objects], np.float64).reshape(-1, 4)
    return to_example(image, size, boxes, labels)
