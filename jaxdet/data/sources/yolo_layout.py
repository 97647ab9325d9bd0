"""Where a data set of YOLO has its pictures and the names of its classes.

Read are ultralytics' data.yaml, darknet's obj.data, and a list classes.txt beside images/.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources import text, yaml_text
from jaxdet.data.sources.folders import find_files, list_pictures
from jaxdet.text_files import read_text
from jaxdet.types import UserError

DARKNET = "obj.data"
NAMES_ALONE = "classes.txt"
_NONE = ("", "~", "null", "None")
_NO_TEXT = re.compile("[\ud800-\udfff]")  # Halves of letters, which an escape of YAML can name.


class Layout(NamedTuple):
    """What the files of a data set say.

    Attributes:
        file: which says it.
        names: of the classes, number 0 first.
        pictures: of the split, in the order of its list or sorted.
        pose: numbers of key points in each line; 0 for none.
    """

    file: Path
    names: list[str]
    pictures: list[Path]
    pose: int


def read(root: Path, split: str, file: str = "") -> Layout:
    """Reads what a folder has.

    Args:
        root: of the data; nothing outside of it is read.
        split: "train", "val" (or "valid") or "test", as the file has it.
        file: name of the .yaml; empty looks for the one that there is.

    Raises:
        UserError: if there is no such file or split, and for what it cannot mean.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    path = find_file(root, file)
    if path.name == NAMES_ALONE:
        names, said, pose = _lines(path), {"train": "images"}, 0
    elif path.name == DARKNET:
        said, pose = _darknet(path), 0
        names = _lines(_inside(root, path, said.get("names", "obj.names"), "names"))
        _check_count(path, said.get("classes"), len(names))
    else:
        said = yaml_text.read_mapping(path)
        names, pose = _names(path, said), _pose(path, said)
    known = _splits(path, said)
    key = split if split in known else {"valid": "val", "val": "valid"}.get(split)
    if key not in known:
        raise UserError(f"{path}: no split {split!r}; it has {', '.join(known) or 'none'}")
    listed = []
    for part in _parts(path, key, said[key]):
        listed += _pictures(root, path, said, part, key)
    named = ((picture.relative_to(root).as_posix(), picture) for picture in listed)
    return Layout(path, names, text.take_once(named, f"{path} ({key})"), pose)


def find_file(root: Path, file: str = "") -> Path:
    """The file that says what a folder holds.

    Raises:
        UserError: if there is none, or several and none of them is data.yaml.
    """
    if file:
        candidates = [root / file]
    else:
        endings = [*root.glob("*.yaml"), *root.glob("*.yml")]
        candidates = sorted([path for path in endings if path.name[0] != "."])
        named = [path for path in candidates if path.stem == "data"]
        candidates = named[:1] or candidates
        candidates = candidates or [p for n in (DARKNET, NAMES_ALONE) if (p := root / n).is_file()]
    if not candidates or not candidates[0].is_file():
        wanted = file or f"data.yaml, {DARKNET} or {NAMES_ALONE}"
        raise UserError(f"{root}: a YOLO data.root wants {wanted}; there is none")
    if len(candidates) > 1 and candidates[0].name != DARKNET:
        listed = ", ".join(path.name for path in candidates)
        raise UserError(f"{root}: name one of {listed} in data.options.file")
    return candidates[0]


def splits(path: Path) -> list[str]:
    """The splits that a file of `find_file` names.

    Raises:
        UserError: if it cannot be read.
    """
    if path.name == NAMES_ALONE:
        return ["train"]
    return _splits(path, _darknet(path) if path.name == DARKNET else yaml_text.read_mapping(path))


def _splits(path: Path, said: dict[str, Any]) -> list[str]:
    return [key for key in ("train", "val", "valid", "test") if _parts(path, key, said.get(key))]


def _names(path: Path, said: dict[str, Any]) -> list[str]:
    names = said.get("names")
    if isinstance(names, dict):
        order = [str(i) for i in range(len(names))]
        if set(names) != set(order):
            raise UserError(
                f"{path}: names wants the numbers 0 to {len(names) - 1}, found {', '.join(names)}"
            )
        names = [names[number] for number in order]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names wants a list of classes, found {names!r:.60}")
    for name in names:
        if not isinstance(name, str) or not name.strip() or _NO_TEXT.search(name):
            raise UserError(f"{path}: names wants text, found {name!r:.60}")
    _check_count(path, said.get("nc"), len(names))
    return [name.strip() for name in names]


def _check_count(path: Path, said: Any, count: int) -> None:
    if said not in (None, *_NONE) and said != str(count):
        raise UserError(f"{path}: says {said!r:.20} classes, and names {count}")


def _pose(path: Path, said: dict[str, Any]) -> int:
    shape = said.get("kpt_shape")
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(str(n).isdecimal() for n in shape):
        return int(shape[0]) * int(shape[1])
    raise UserError(f"{path}: kpt_shape wants two numbers, found {shape!r:.60}")


def _darknet(path: Path) -> dict[str, str]:
    pairs = [line.partition("=") for line in read_text(path).splitlines() if line.strip()]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _lines(path: Path) -> list[str]:
    """The names in a text file, one a line; empty lines at its end are none."""
    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not all(names) or not names:
        raise UserError(f"{path}: wanted names of classes, one a line; found an empty line")
    return names


def _parts(path: Path, key: str, value: Any) -> Sequence[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        if not isinstance(each, str):
            raise UserError(f"{path}: {key} wants places, found {each!r:.60}")
    return [each for each in values if each not in _NONE]


def _pictures(root: Path, path: Path, said: dict[str, Any], part: str, key: str) -> list[Path]:
    base = said.get("path")
    place = _inside(root, path, part, key, base if isinstance(base, str) else "")
    if place.is_dir():
        return list_pictures(place, root=root, where=path)
    lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    for line in lines:
        if not line.lower().endswith(SUFFIXES):
            raise UserError(f"{place}: wanted pictures, one a line; found {line!r:.60}")
    parents = {line: line.replace("\\", "/").rpartition("/") for line in lines}
    folders = {parent for parent, *_ in parents.values()}
    found = {parent: _inside(root, place, parent, "a line") for parent in folders}
    names = [(found[parent] / name).relative_to(root) for parent, _, name in parents.values()]
    return find_files(root, [name.as_posix() for name in names], root=root, where=place)


def _inside(root: Path, path: Path, part: str, key: str, base: str = "") -> Path:
    """A folder or file of a data set, wherever that lay when its file was written.

    It is tried in `path` of a data.yaml, beside the file that names it, and in the root. Roboflow
    writes "../train/images" for train/images, CVAT data/ before all that it names, other
    programs where things are on their own disk: then the longest end counts that is in the root.
    """
    part = part.replace("\\", "/")
    words = [word for word in part.split("/") if word not in ("", ".", "..")]
    # A folder called images alone may be that of another split.
    last = len(words) - (len(words) > 1 and words[-1] == "images")
    ends = ["/".join(words[i:]) for i in range(last)]
    tries = [root / base / part] if base not in _NONE else []
    tries += [path.parent / part, *(folder / end for end in ends for folder in (path.parent, root))]
    top = os.path.abspath(root)
    for place in map(os.path.abspath, tries):
        if os.path.exists(place) and os.path.commonpath((place, top)) == top:
            return root / os.path.relpath(place, top)
    raise UserError(f"{path}: {key} wants a place in {root}, found {part!r:.80}")
