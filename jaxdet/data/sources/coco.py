"""COCO annotation files (json) with a folder of images."""

import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.sources import coco_json
from jaxdet.data.sources.files import (
    FileSource,
    check_distinct,
    label_indices,
    report_unused,
)
from jaxdet.data.sources.folders import check_only_split, find_files
from jaxdet.data.sources.sizes import fill_sizes, put_sizes_right
from jaxdet.types import Example


def read_coco(
    *,
    root: str,
    split: str,
    classes: tuple[str, ...] = (),
    annotations: str = "annotations/instances_{split}.json",
    images: str = "{split}",
) -> FileSource:
    """Reads a COCO annotation file, or one of images alone, as test-dev has them.

    Labels are places in `classes`, found by the category's name. Boxes and
    areas stay as they are in the json, empty ones and those outside the image
    too, so that evaluation counts what pycocotools counts. Those that
    training leaves out (`transforms.clean`) are counted and logged.

    Args:
        root: the folder that both templates start from.
        split: put in place of "{split}", as in "train2017".
        classes: names in the order of their labels; empty takes every
            category of the json in the order of its number, but for one that only
            names the group of all others (Roboflow's number 0). A category that labels
            nothing may be left out.
        annotations: path of the json below `root`.
        images: path of the image folder below `root`.

    Returns:
        The source, in the order of the json's images, with their numbers as ids.

    Raises:
        UserError: for a file or image that is missing, an annotation that
            cannot be read, a used category that is not in `classes`, or a second split
            of one annotated json.
    """
    path = pathlib.Path(root, annotations.replace("{split}", split))
    folder = pathlib.Path(root, images.replace("{split}", split))
    content = coco_json.read(path)
    if content.annotated:
        check_only_split(split, annotations)
    names = [image.file_name for image in content.images]
    paths = find_files(folder, names, root=pathlib.Path(root), where=path)
    check_distinct(path, [image.id for image in content.images], paths)
    sizes = fill_sizes([image.size for image in content.images], paths, path)
    # Two categories of one name are one class.
    numbers = sorted(content.categories.keys() - content.groups, key=_order)
    listed = dict.fromkeys(content.categories[number] for number in numbers)
    class_names = classes or tuple(listed)
    used = dict.fromkeys(annotation.category_id for annotation in content.annotations)
    used_names = [content.categories[number] for number in used]
    labels = label_indices(used_names, class_names, where=path)
    label_of = dict(zip(used, labels, strict=True))
    by_image = defaultdict(list)
    for annotation in content.annotations:
        by_image[annotation.image_id].append(annotation)
    examples = [
        _to_example(image.id, size, by_image[image.id], label_of)
        for image, size in zip(content.images, sizes, strict=True)
    ]
    examples = put_sizes_right(examples, paths, path)
    report_unused(path, examples, total=len(content.annotations))
    ids = _category_ids(content, class_names)
    return FileSource(class_names, examples, paths, ids, content.annotated)


def _order(number):
    return isinstance(number, str), number


def _to_example(image_id, size, annotations, label_of):
    count = len(annotations)
    boxes = np.array([each.box for each in annotations], np.float64).reshape(count, 4)
    return Example(
        id=image_id,
        image=b"",
        boxes=boxes.astype(np.float32),
        labels=np.array([label_of[each.category_id] for each in annotations], np.int32),
        crowd=np.array([each.crowd for each in annotations], bool),
        difficult=np.zeros(count, bool),
        area=np.array([each.area for each in annotations], np.float64),
        size=size,
    )


def _category_ids(content, class_names):
    """The number of each class; None where the json lacks one, or has two of a name."""
    groups = {content.categories[number]: number for number in content.groups}
    own = {n: name for n, name in content.categories.items() if n not in content.groups}
    numbers = groups | {name: number for number, name in own.items()}
    found = tuple(numbers.get(name) for name in class_names)
    known = len(set(own.values())) == len(own) and all(isinstance(n, int) for n in found)
    return found if known else None
