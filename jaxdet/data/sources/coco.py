"""COCO annotation files (json) with a folder of images."""

import json
import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.sources.files import FileSource, label_indices, report_unused
from jaxdet.types import Example, UserError


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
            category of the json in the order of its number. A category that
            labels nothing may be left out.
        annotations: path of the json below `root`.
        images: path of the image folder below `root`.

    Returns:
        The source, in the order of the json's images, with their numbers as ids.

    Raises:
        UserError: for a file or image that is missing, an annotation that
            cannot be read, or a used category that is not in `classes`.
    """
    path = pathlib.Path(root, annotations.replace("{split}", split))
    folder = pathlib.Path(root, images.replace("{split}", split))
    content = _load(path)
    try:
        return _to_source(content, path, folder, tuple(classes))
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a COCO file (missing or wrong: {error})") from None


def _load(path):
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not a json file ({error})") from None
    missing = {"images", "categories"} - set(content)
    if missing:
        raise UserError(f"{path}: not a COCO detection file, it has no {sorted(missing)}")
    return content


def _to_source(content, path, folder, classes):
    categories = {item["id"]: item["name"] for item in content["categories"]}
    class_names = classes or tuple(categories[number] for number in sorted(categories))
    by_image = defaultdict(list)
    annotations = content.get("annotations", ())
    for item in annotations:
        if item["category_id"] not in categories:
            raise UserError(
                f"{path}: annotation {item.get('id')} has category_id {item['category_id']}, "
                f"which the categories do not list"
            )
        by_image[item["image_id"]].append(item)
    unlisted = set(by_image) - {image["id"] for image in content["images"]}
    if unlisted:
        raise UserError(f"{path}: annotations of unlisted images, as {min(unlisted, key=str)}")
    examples = [
        _to_example(image, by_image[image["id"]], categories, class_names, path)
        for image in content["images"]
    ]
    report_unused(path, examples, total=len(annotations))
    paths = _image_paths(content["images"], folder)
    ids = _category_ids(categories, class_names)
    return FileSource(class_names, examples, paths, ids, "annotations" in content)


def _to_example(image, items, categories, class_names, path):
    size = (int(image["height"]), int(image["width"]))
    names = [categories[item["category_id"]] for item in items]
    labels = np.array(label_indices(names, class_names, where=path), np.int32)
    xywh = np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)
    given = [item.get("area", item["bbox"][2] * item["bbox"][3]) for item in items]
    area = np.array(given, np.float64)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    if not np.isfinite(corners).all() or not np.isfinite(area).all():
        raise ValueError(f"image {image['id']} has a bbox or area that is not a number")
    return Example(
        id=image["id"],
        image=b"",
        boxes=corners.astype(np.float32),
        labels=labels,
        crowd=np.array([item.get("iscrowd", 0) for item in items], bool),
        difficult=np.zeros(len(items), bool),
        area=area,
        size=size,
    )


def _category_ids(categories, class_names):
    """The number of each class; None where the json lacks one, or has two of a name."""
    numbers = {name: number for number, name in categories.items()}
    found = tuple(numbers.get(name) for name in class_names)
    known = len(numbers) == len(categories) and all(isinstance(n, int) for n in found)
    return found if known else None


def _image_paths(images, folder):
    if not folder.is_dir():
        raise UserError(f"no image folder {folder}")
    paths = [folder / image["file_name"] for image in images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing, first {missing[0]}")
    return paths
