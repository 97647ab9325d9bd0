"""Pascal VOC directories: JPEGImages, Annotations and ImageSets/Main."""

import pathlib
import xml.etree.ElementTree as ET

import cv2
import numpy as np

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources.files import FileSource, label_indices, report_unused
from jaxdet.types import Example, UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


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
    total = sum(len(objects) for *_, objects in records)
    report_unused(f"{root} ({split})", examples, total)
    return FileSource(class_names, examples, [image_path for _, image_path, *_ in records])


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
    images = {p.stem: p for p in (base / "JPEGImages").iterdir() if p.suffix.lower() in SUFFIXES}
    records = []
    for stem in filter(None, map(str.strip, list_path.read_text().splitlines())):
        if stem not in images:
            raise UserError(f"{list_path}: no image {stem!r} in {base / 'JPEGImages'}")
        xml_path = base / "Annotations" / f"{stem}.xml"
        size, objects = _parse(xml_path, images[stem])
        image_id = f"{folder}/{stem}" if folder else stem
        records.append((xml_path, images[stem], image_id, size, objects))
    return records


def _parse(xml_path, image_path):
    """The (height, width) and the objects (name, difficult, corners) of one XML file."""
    try:
        tree = ET.parse(xml_path).getroot()
        size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        objects = [
            (
                item.findtext("name", "").strip(),
                int(item.findtext("difficult") or 0) > 0,
                [float(item.find("bndbox").findtext(corner)) for corner in _CORNERS],
            )
            for item in tree.iter("object")
        ]
    except FileNotFoundError:
        raise UserError(f"no annotation file {xml_path}") from None
    except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{xml_path}: not a VOC annotation ({error})") from None
    if min(size) <= 0:
        size = _decoded_size(image_path, xml_path)
    return size, objects


def _decoded_size(image_path, xml_path):
    pixels = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"{xml_path} gives no image size, and {image_path} cannot be read")
    return pixels.shape[:2]


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
