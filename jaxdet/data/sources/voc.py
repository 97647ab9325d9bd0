"""Pascal VOC directories: JPEGImages, Annotations and ImageSets/Main."""

import logging
import os
import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources import voc_xml
from jaxdet.data.sources.files import (
    FileSource,
    check_distinct,
    label_indices,
    report_unused,
    to_example,
)
from jaxdet.data.sources.folders import check_only_split, find_files
from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.sizes import fill_sizes, put_sizes_right
from jaxdet.data.sources.text import read_list, take_once
from jaxdet.types import UserError


def read_voc(
    *,
    root: str,
    split: str,
    classes: tuple[str, ...] = (),
    image_folder: str = "JPEGImages",
    annotation_folder: str = "Annotations",
    list_folder: str = "ImageSets/Main",
) -> FileSource:
    """Reads the annotations of a Pascal VOC directory, or of another one with files like its.

    VOC counts pixels from 1 and includes the last one, so a box becomes
    (xmin - 1, ymin - 1, xmax, ymax). Those with xmax <= xmin or ymax <= ymin
    mark no object and are dropped, all others stay as they are; both these
    and the ones that training leaves out (`transforms.clean`) are counted and
    logged. The image size is the XML's; where that is missing or 0, the image's own.

    Args:
        root: the folder that holds the three folders.
        split: name of a list in ImageSets/Main; several are joined with "+",
            and each may name a folder of its own below `root`, as in
            "VOC2007/trainval+VOC2012/trainval".
        classes: names in the order of their labels; empty takes the names
            that the split uses, sorted.
        image_folder: of the images; "{split}" stands for the split, in all three.
        annotation_folder: of the xml files, which have the images' names.
        list_folder: of the lists; empty takes every xml of its folder, sorted.

    Returns:
        The source, in the order of the lists. The id of an image is its name,
        with its folder before it where the split names one.

    Raises:
        UserError: for a file or image that is missing, an annotation that
            cannot be read, or a class that is not in `classes`.
    """
    folders = (image_folder, annotation_folder, list_folder)
    parts = read_all(lambda part: _read_split(root, part, folders), split.split("+"))
    records = [record for part in parts for record in part]
    records = take_once(((record[2], record) for record in records), f"{root} ({split})")
    names = {name for *_, objects in records for name, *_ in objects}
    class_names = tuple(classes) or tuple(sorted(names))
    examples = read_all(lambda record: _to_example(record, class_names), records)
    paths = [image_path for _, image_path, *_ in records]
    check_distinct(f"{root} ({split})", [example.id for example in examples], paths)
    examples = put_sizes_right(examples, paths, f"{root} ({split})")
    total = sum(len(objects) for *_, objects in records)
    report_unused(f"{root} ({split})", examples, total)
    return FileSource(class_names, examples, paths, dropped=_find_dropped(records, class_names))


def _find_dropped(records, class_names):
    """The labels of boxes without area, which are in no example, by the place of their image."""
    found = defaultdict(list)
    for place, (*_, objects) in enumerate(records):
        for name, _, (x1, y1, x2, y2) in objects:
            if not (x2 > x1 and y2 > y1):
                found[place].append(class_names.index(name))
    return dict(found)


def _read_split(root, part, folders):
    """The parsed annotations of one list: [(xml, image, id, size, objects)]."""
    folder, _, name = part.strip().rpartition("/")
    base = pathlib.Path(root, folder)
    image_folder, xml_folder, list_folder = (base / f.replace("{split}", name) for f in folders)
    for wanted in (base, image_folder, xml_folder):
        if not wanted.is_dir():
            raise UserError(
                f"no folder {wanted}: a VOC data.root holds JPEGImages and Annotations, or those "
                "that data.options names"
            )
    images = _pictures(image_folder)
    if folders[-1]:
        list_path = list_folder / f"{name}.txt"
        if not list_path.is_file():
            known = ", ".join(sorted(p.stem for p in list_path.parent.glob("*.txt"))) or "none"
            raise UserError(f"no split file {list_path}; found: {known}")
        stems = read_list(list_path, images, SUFFIXES)
    else:
        check_only_split(name, folders[1])
        list_path, stems = xml_folder, _annotated(xml_folder, images)

    def find_picture(stem):
        named = images.get(stem, ())
        if len(named) != 1:
            found = "no image" if not named else f"{len(named)} images, {', '.join(named)}, of"
            raise UserError(f"{list_path}: {found} {stem!r} in {image_folder}")
        return named[0]

    names = read_all(find_picture, stems)
    paths = find_files(image_folder, names, root=pathlib.Path(root), where=list_path)
    xml_paths = [xml_folder / f"{stem}.xml" for stem in stems]
    parsed = read_all(voc_xml.read, xml_paths)
    _report_deleted(f"{root} ({part})", parsed)
    sizes = fill_sizes([each.size for each in parsed], paths, f"{root} ({part})")
    ids = [f"{folder}/{stem}" if folder else stem for stem in stems]
    objects = [each.objects for each in parsed]
    return list(zip(xml_paths, paths, ids, sizes, objects, strict=True))


def _report_deleted(where, parsed):
    """Logs how many objects are marked as deleted, if any."""
    deleted = sum(each.deleted for each in parsed)
    if deleted:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d objects are marked as deleted: they are left out",
            *(where, deleted, deleted + sum(len(each.objects) for each in parsed)),
        )


def _annotated(folder, images):
    """The stems of the xml files in a folder; pictures without one are counted in a line."""
    stems = sorted(path.stem for path in folder.glob("*.xml") if path.name[0] != ".")
    if not stems:
        raise UserError(f"no xml file in {folder}")
    rest = sorted(set(images) - set(stems))
    if rest:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d pictures have no xml, such as %r: they are left out",
            *(folder, len(rest), len(images), rest[0]),
        )
    return stems


def _pictures(folder):
    """The names of the pictures in a folder by their stems."""
    found = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(name)
        if ending.lower() in SUFFIXES and name[0] != ".":  # macOS writes ._a.jpg beside a.jpg.
            found[stem].append(name)
    return found


def _to_example(record, class_names):
    xml_path, _, image_id, size, objects = record
    names = [name for name, *_ in objects]
    labels = np.array(label_indices(names, class_names, where=xml_path), np.int32)
    corners = np.array([corners for *_, corners in objects], np.float64).reshape(-1, 4)
    keep = np.all(corners[:, 2:] > corners[:, :2], axis=1)
    difficult = np.array([difficult for _, difficult, _ in objects], bool)
    boxes = corners - [1, 1, 0, 0]
    return to_example(image_id, size, boxes[keep], labels[keep], difficult[keep])
