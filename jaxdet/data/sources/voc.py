"""Pascal VOC directories: JPEGImages, Annotations and ImageSets/Main."""

import os
import pathlib
from collections import defaultdict

import numpy as np

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources import voc_xml
from jaxdet.data.sources.files import FileSource, label_indices, report_unused
from jaxdet.data.sources.folders import fill_sizes, find_files
from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.sizes import put_sizes_right
from jaxdet.data.sources.text import read_list
from jaxdet.types import Example, UserError


def read_voc(*, root: str, split: str, classes: tuple[str, ...] = ()) -> FileSource:
    """Reads the annotations of a Pascal VOC directory.

    VOC counts pixels from 1 and includes the last one, so a box becomes
    (xmin - 1, ymin - 1, xmax, ymax). Those with xmax <= xmin or ymax <= ymin
    mark no object and are dropped, all others stay as they are; both these
    and the ones that training leaves out (`transforms.clean`) are counted and
    logged. The image size is the XML's; where that is missing or 0, the image's own.

    Args:
        root: the folder that holds the three folders named above.
        split: name of a list in ImageSets/Main; several are joined with "+",
            and each may name a folder of its own below `root`, as in
            "VOC2007/trainval+VOC2012/trainval".
        classes: names in the order of their labels; empty takes the names
            that the split uses, sorted.

    Returns:
        The source, in the order of the lists. The id of an image is its name,
        with its folder before it where the split names one.

    Raises:
        UserError: for a file or image that is missing, an annotation that
            cannot be read, or a class that is not in `classes`.
    """
    records = [record for part in split.split("+") for record in _read_split(root, part)]
    names = {name for *_, objects in records for name, *_ in objects}
    class_names = tuple(classes) or tuple(sorted(names))
    examples = [
        _to_example(image_id, size, objects, class_names, xml_path)
        for xml_path, _, image_id, size, objects in records
    ]
    paths = [image_path for _, image_path, *_ in records]
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


def _read_split(root, part):
    """The parsed annotations of one list: [(xml, image, id, size, objects)]."""
    folder, _, name = part.strip().rpartition("/")
    base = pathlib.Path(root, folder)
    list_path = base / "ImageSets" / "Main" / f"{name}.txt"
    for wanted in (base, base / "JPEGImages", base / "Annotations"):
        if not wanted.is_dir():
            raise UserError(f"no folder {wanted}: a VOC data.root holds JPEGImages and Annotations")
    if not list_path.is_file():
        known = ", ".join(sorted(p.stem for p in list_path.parent.glob("*.txt"))) or "none"
        raise UserError(f"no split file {list_path}; found: {known}")
    images = _pictures(base / "JPEGImages")
    stems = read_list(list_path, images, SUFFIXES)
    for stem in stems:
        named = images.get(stem, ())
        if len(named) != 1:
            found = "no image" if not named else f"{len(named)} images, {', '.join(named)}, of"
            raise UserError(f"{list_path}: {found} {stem!r} in {base / 'JPEGImages'}")
    names = [images[stem][0] for stem in stems]
    paths = find_files(base / "JPEGImages", names, root=pathlib.Path(root), where=list_path)
    xml_paths = [base / "Annotations" / f"{stem}.xml" for stem in stems]
    parsed = read_all(voc_xml.read, xml_paths)
    sizes = fill_sizes([size for size, _ in parsed], paths, f"{root} ({part})")
    ids = [f"{folder}/{stem}" if folder else stem for stem in stems]
    objects = [objects for _, objects in parsed]
    return list(zip(xml_paths, paths, ids, sizes, objects, strict=True))


def _pictures(folder):
    """The names of the pictures in a folder by their stems."""
    found = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(name)
        if ending.lower() in SUFFIXES:
            found[stem].append(name)
    return found


def _to_example(image_id, size, objects, class_names, xml_path):
    labels = label_indices([name for name, *_ in objects], class_names, where=xml_path)
    corners = np.array([corners for *_, corners in objects], np.float64).reshape(-1, 4)
    keep = np.all(corners[:, 2:] > corners[:, :2], axis=1)
    boxes = (corners - [1, 1, 0, 0])[keep].astype(np.float32)
    return Example(
        id=image_id,
        image=b"",
        boxes=boxes,
        labels=np.array(labels, np.int32)[keep],
        crowd=np.zeros(len(boxes), bool),
        difficult=np.array([difficult for _, difficult, _ in objects], bool)[keep],
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
        size=size,
    )
