"""One file of VOC's annotations, read against its declared shape.

Names may be in a namespace and of any case, objects have parts, no `difficult`, corners between
pixels, a polygon for a box, or several boxes, each of which is an object of the name then.
"""

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from jaxdet.data.sources.values import is_measurable, number, side
from jaxdet.types import UserError

_ROOT = "annotation"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"": False, "0": False, "1": True}
_MOST_BYTES = 2**24  # Of the file of one image; its tree takes 25 times as much memory.
_SHOWN = 40  # Characters of a wrong name.


class Object(NamedTuple):
    """An object; its corners count pixels from 1, and the last one belongs to it."""

    name: str
    difficult: bool
    corners: tuple[float, float, float, float]


class Annotation(NamedTuple):
    """What a file says.

    Attributes:
        size: (height, width) of the image; a side is 0 where the file does not say it.
        objects: all but those marked as deleted.
        deleted: how many are, as LabelMe keeps them.
    """

    size: tuple[int, int]
    objects: list[Object]
    deleted: int


def read(path: Path) -> Annotation:
    """Reads a file.

    Raises:
        UserError: if there is none, it is not VOC's, or says what can mean two things.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"no annotation file {path}") from None
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: not a VOC annotation (it has more than {_MOST_BYTES:,} bytes)")
    try:
        tree = ElementTree.fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a VOC annotation ({line})") from None
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2].lower()
    if tree.tag != _ROOT:
        raise UserError(
            f"{path}: not a VOC annotation: wanted <{_ROOT}>, found <{tree.tag:.{_SHOWN}}>"
        )
    size = tuple(side(tree.findtext(f"size/{name}")) for name in ("height", "width"))
    objects, deleted = [], 0
    for place, item in enumerate(tree.iter("object"), 1):
        try:
            if _flag(item, "deleted"):
                deleted += 1
            else:
                objects += _objects(item)
        except ValueError as error:
            raise UserError(f"{path}: object {place}: {error}") from None
    return Annotation(size, objects, deleted)


def _objects(item: Element) -> list[Object]:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError("name wants text, found none")
    difficult = _flag(item, "difficult")
    boxes = [_corners(box) for box in item.findall("bndbox")] or [_around(item.find("polygon"))]
    for box in boxes:
        if not is_measurable(box):
            raise ValueError(f"wants a box with sides and an area below 3.4e38, found {box}")
    return [Object(name, difficult, box) for box in boxes]


def _flag(item: Element, name: str) -> bool:
    flag = (item.findtext(name) or "").strip()
    if flag not in _FLAGS:
        raise ValueError(f"{name} wants 0 or 1, found {flag!r}")
    return _FLAGS[flag]


def _corners(box: Element) -> tuple[float, ...]:
    corners = []
    for corner in _CORNERS:
        text = box.findtext(corner)
        corners.append(number(text))
        if math.isnan(corners[-1]):
            found = "none" if text is None else repr(text.strip())
            raise ValueError(f"bndbox/{corner} wants a finite number, found {found}")
    return tuple(corners)


def _around(polygon: Element | None) -> tuple[float, ...]:
    """The corners of the box around a polygon: x1, y1, x2, y2, ..., or points of x and y."""
    places = {"x": [], "y": []}
    for point in () if polygon is None else polygon.iter():
        if point.tag[:1] in places and point.tag[1:].isdecimal() | (len(point.tag) == 1):
            places[point.tag[0]].append(number(point.text))
    xs, ys = places.values()
    if not xs or len(xs) != len(ys) or any(map(math.isnan, xs + ys)):
        raise ValueError("wants a bndbox, or a polygon of finite numbers; found none")
    return min(xs), min(ys), max(xs), max(ys)
