"""The file of COCO's annotations, read against its declared shape.

What programs write is read as what it can only mean: an area that is null, 0 or
negative is the box's, a box that is missing the polygon's, flags and an image's sides may
be text or true, names of categories numbers. What could mean two things is refused, with
the file, the annotation and the field.
"""

import logging
import re
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.values import LARGEST, is_measurable, side
from jaxdet.text_files import read_text
from jaxdet.types import UserError

LISTS = ("images", "annotations", "categories")
_FLAGS = {0: False, 1: True, "0": False, "1": True, None: False}
_SHOWN = 40  # Characters of a file around a mistake, either side.
_Number = int | float | str
Box = tuple[float, float, float, float]


class Image(NamedTuple):
    """An image; its sides are 0 where the file does not say them."""

    id: int | str
    file_name: str
    size: tuple[int, int]


class Annotation(NamedTuple):
    """An object: [x1, y1, x2, y2], and what the file says of it; a crowd is also what to ignore."""

    image_id: int | str
    category_id: int | str
    box: Box
    area: float
    crowd: bool


class Content(NamedTuple):
    """What a file says.

    Attributes:
        images: all of them.
        annotations: the objects.
        categories: their names by number.
        annotated: whether it says anything of objects; the lists of images that
            test servers give out do not.
        groups: numbers of categories that only name the group of all others, as Roboflow's
            category 0 does, and label nothing.
    """

    images: list[Image]
    annotations: list[Annotation]
    categories: dict[int | str, str]
    annotated: bool
    groups: frozenset[int | str] = frozenset()


def read(path: Path) -> Content:
    """Reads a file.

    Memory is that of the file and of what is used of it, some 400 bytes an annotation: polygons
    beside boxes, captions, licences are passed over.

    Raises:
        UserError: if there is none, it is not COCO's, or says what can mean two things.
    """
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    try:
        return _read(path)
    except MemoryError:
        size = path.stat().st_size / 1e9
        raise UserError(f"{path}: {size:.1f} GB, and too little memory to read them") from None


class _RawImage(msgspec.Struct, gc=False):
    id: _Number
    file_name: str
    width: Any = None
    height: Any = None


class _RawAnnotation(msgspec.Struct, gc=False):
    image_id: _Number
    category_id: _Number
    id: _Number | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: int | float | bool | str | None = None
    ignore: int | float | bool | str | None = None
    segmentation: msgspec.Raw = msgspec.Raw()


class _RawCategory(msgspec.Struct, gc=False):
    id: _Number
    name: _Number
    supercategory: Any = None


class _RawFile(msgspec.Struct, gc=False):
    images: list[_RawImage]
    categories: list[_RawCategory]
    annotations: list[_RawAnnotation] | None = None


class _Identified(msgspec.Struct, gc=False):
    id: Any = None


class _Ids(msgspec.Struct, gc=False):
    images: list[_Identified] = []
    annotations: list[_Identified] = []
    categories: list[_Identified] = []


def _read(path: Path) -> Content:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb") or b"\0" in data[:4]:
        data = read_text(path).encode()
    raw = _decode(data, path)
    images = [_image(item, path) for item in raw.images]
    categories = [(_id(item.id), _name(item, path)) for item in raw.categories]
    _check_once((image.id for image in images), "images", path)
    _check_once((number for number, _ in categories), "categories", path)
    known = {"image_id": {image.id for image in images}, "category_id": dict(categories)}
    read_one = partial(_annotation, known=known, path=path)
    _count_again(raw.annotations or [], path)
    annotations = read_all(read_one, _take(raw.annotations or []))
    used = {annotation.category_id for annotation in annotations}
    return Content(
        images,
        annotations,
        dict(categories),
        annotated=raw.annotations is not None,
        groups=frozenset(_groups(raw.categories) - used),
    )


def _decode(data: bytes, path: Path) -> _RawFile:
    try:
        return msgspec.json.decode(data, type=_RawFile)
    except RecursionError:
        raise UserError(f"{path}: not a COCO file: it is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: not a COCO detection file: {_place(error, data)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        line = str(error).removeprefix("JSON is malformed: ")
        if at := re.search(r"byte (\d+)", line):
            middle = int(at[1])
            near = data[max(0, middle - _SHOWN) : middle + _SHOWN].decode(errors="replace")
            line += f", near {' '.join(near.split())!r}"
        raise UserError(f"{path}: not a json file: {line}") from None


def _place(error: msgspec.ValidationError, data: bytes) -> str:
    """What was wanted and found, and where: items of lists by their id, where they have one."""
    line, _, where = str(error).partition(" - at ")
    line = line.replace("Expected", "wanted").replace(", got", ", found")
    line = line.replace("Object missing required field", "there is no")
    if not where:
        if "array" in line:
            line += f": a list, as results files are; wanted an object with {', '.join(LISTS)}"
        return line
    where = where.strip("`").removeprefix("$.")
    if item := re.match(r"(\w+)\[(\d+)\]", where):
        number = _find_id(data, item[1], int(item[2]))
        if number is not None:
            where = f"{item[1]} of id {number!r}{where[item.end() :]}"
    return f"{where}: {line}"


def _find_id(data: bytes, section: str, place: int) -> Any:
    """The id of an item; None where it has none. The file is read once more, for ids alone."""
    try:
        return getattr(msgspec.json.decode(data, type=_Ids), section)[place].id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # Behind that item.
        return None


def _id(value: _Number) -> int | str:
    """A number that another program made a float is the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _image(item: _RawImage, path: Path) -> Image:
    if not item.file_name.strip():
        raise UserError(f"{path}: image {item.id}: file_name wants a name, found none")
    return Image(_id(item.id), item.file_name, (side(item.height), side(item.width)))


def _name(item: _RawCategory, path: Path) -> str:
    name = str(_id(item.name)).strip()
    if not name:
        raise UserError(f"{path}: category {item.id}: name wants text, found none")
    return name


def _take(items: list[Any]) -> Iterator[Any]:
    """Items of a list, which forgets them: what becomes of them takes their memory."""
    items.reverse()
    while items:
        yield items.pop()


def _groups(items: Sequence[_RawCategory]) -> set[int | str]:
    """The number of a category that all others name as theirs, and that itself names none."""
    top = [item for item in items if item.supercategory in (None, "", "none")]
    rest = {str(item.supercategory) for item in items if item not in top}
    return {_id(item.id) for item in top} if rest == {str(item.name) for item in top} else set()


def _annotation(item: _RawAnnotation, known: Mapping[str, Container], path: Path) -> Annotation:
    box = item.bbox or _polygon_box(item, path)
    if len(box) != 4:
        raise _wrong(path, item, "bbox", "[x, y, width, height]", item.bbox)
    x, y, width, height = box
    # What is to be ignored, as CrowdHuman and VisDrone have it, is no object to learn or find.
    crowd = any([_flag(item, field, path) for field in ("iscrowd", "ignore")])
    # mmdetection leaves out what has no area; programs that do not measure it write 0 or null, and
    # sums over polygons that turn the other way are negative.
    area = item.area if item.area and item.area > 0 else width * height
    corners = (x, y, x + width, y + height)
    if not (area <= LARGEST and is_measurable(corners)):
        found = item.bbox, item.area
        raise _wrong(path, item, "bbox and area", "corners and an area below 3.4e38", found)
    image_id, category_id = _id(item.image_id), _id(item.category_id)
    for field, number in (("image_id", image_id), ("category_id", category_id)):
        if number not in known[field]:
            plural = {"image_id": "images", "category_id": "categories"}[field]
            some = ", ".join(map(repr, list(known[field])[:3])) or "nothing"
            raise _wrong(path, item, field, f"one of {plural}, as {some}", getattr(item, field))
    return Annotation(image_id, category_id, corners, area, crowd)


def _flag(item: _RawAnnotation, field: str, path: Path) -> bool:
    try:
        return _FLAGS[getattr(item, field)]
    except KeyError:
        raise _wrong(path, item, field, "0 or 1", getattr(item, field)) from None


def _polygon_box(item: _RawAnnotation, path: Path) -> Sequence[float]:
    """The [x, y, width, height] around all polygons of an object."""
    try:
        polygons = msgspec.json.decode(item.segmentation, type=list[list[float]])
    except (msgspec.DecodeError, RecursionError):
        polygons = []
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    if not ys or len(xs) != len(ys):
        raise _wrong(path, item, "bbox", "[x, y, width, height], or polygons", item.bbox)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _wrong(path, item, field, wanted, found) -> UserError:
    which = f"annotation {item.id}" if item.id is not None else f"an annotation of {item.image_id}"
    return UserError(f"{path}: {which}: {field} wants {wanted}, found {found!r}")


def _check_once(ids: Iterable[Hashable], what: str, path: Path) -> None:
    number, times = next(iter(Counter(ids).most_common(1)), (None, 0))
    if times > 1:
        raise UserError(
            f"{path}: {what} want an id of their own each, found {number!r} {times} times: were "
            "files joined without numbering anew?"
        )


def _count_again(items: Sequence[_RawAnnotation], path: Path) -> None:
    ids = [item.id for item in items if item.id is not None]
    if again := len(ids) - len(set(ids)):
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d annotations have the id of another one: each is an object",
            *(path, again, len(items)),
        )
