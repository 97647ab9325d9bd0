"""Tables of boxes: a row for each object, with the image's file and the name of its class."""

import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.sources import csv_rows
from jaxdet.data.sources.files import FileSource, label_indices, report_unused
from jaxdet.data.sources.folders import check_only_split, find_files
from jaxdet.data.sources.sizes import fill_sizes, put_sizes_right, read_sizes
from jaxdet.types import Example


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
    sizes = [its_rows[0].size for its_rows in by_image.values()]
    sizes = fill_sizes(sizes, paths, path) if any(map(all, sizes)) else read_sizes(paths)
    boxes = {image: [row for row in its if row.box] for image, its in by_image.items()}
    class_names = classes or tuple(sorted({row.name for its in boxes.values() for row in its}))
    examples = [
        _to_example(image, size, its_rows, class_names, path)
        for (image, its_rows), size in zip(boxes.items(), sizes, strict=True)
    ]
    examples = put_sizes_right(examples, paths, path)
    report_unused(path, examples, sum(map(len, boxes.values())))
    return FileSource(tuple(class_names), examples, paths)


def _to_example(image, size, rows, class_names, path):
    boxes = np.array([row.box for row in rows], np.float64).reshape(-1, 4).astype(np.float32)
    none = np.zeros(len(rows), bool)
    return Example(
        id=image,
        image=b"",
        boxes=boxes,
        labels=np.array(label_indices([r.name for r in rows], class_names, where=path), np.int32),
        crowd=none,
        difficult=none,
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
        size=size,
    )
