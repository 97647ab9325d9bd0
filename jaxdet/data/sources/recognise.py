"""Which format a folder of annotated images is in, by the files that it has."""

import fnmatch
import itertools
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxdet.data.decoding import SUFFIXES
from jaxdet.data.sources import csv_rows, yolo_layout
from jaxdet.text_files import read_head
from jaxdet.types import UserError

_DEPTH = 4  # Folders into each other; TFDS has name/config/version.
_LISTED = 2000  # Files of a folder that are looked at; folders of pictures have many.
_HEAD = 2**16  # Bytes of a file that are looked at.
_NAMES = re.compile(r"(?:^|[\r\n])(['\"]?)names\1\s*:")  # What other YAML does not have.
# In a namespace or in none; CVAT's own xml has <annotations>.
_VOC = re.compile(r"<(?:[\w.-]+:)?annotation[\s/>]", re.IGNORECASE)
_FIRST = ("train", "trainval", "training", "train2017", "train2014", "default")
_SECOND = ("val", "valid", "validation", "val2017", "val2014", "test", "testing")
_ROLE = re.compile(rf"(?<![a-z0-9])({'|'.join((*_FIRST, *_SECOND))})(?![a-z0-9])", re.IGNORECASE)
_FRACTION = 0.2
_PLACES = ("{split}", "images/{split}", "{split}/images", "images")  # Of the pictures of tables.
_WANTED = (
    "YOLO (data.yaml, obj.data or classes.txt), COCO (json with images and annotations), "
    "VOC (Annotations/*.xml, or *.xml beside pictures), CSV (image, x1, y1, x2, y2, class) and "
    "TFDS (dataset_info.json)"
)


class Recognised(NamedTuple):
    """What a folder is.

    Attributes:
        format: as `data.source` names it.
        settings: of the section `data` that differ from their defaults: source, root, the splits,
            and options where there are any.
        reason: the file or folder by which it was recognised, and who writes such.
    """

    format: str
    settings: dict[str, Any]
    reason: str


def recognise(root: str | Path) -> Recognised:
    """Looks at the names of files in a folder, and into the heads of a few of them.

    Of the splits that are found, train (or the first) is learnt and val (or valid, test) is
    evaluated; of one split alone a fifth is held out.

    Raises:
        UserError: if there is no such folder, or it is in none of the formats, or in several.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    names = _list(folder)
    found = []
    for look in (_tfds, _yolo, _coco, _voc, _csv):
        found += look(folder, names)
    if not found:
        if any('"shapes"' in read_head(folder / n, _HEAD) for n in _matching(names, "*.json")[:1]):
            raise UserError(f"{folder}: LabelMe's json: docs/data.md has a source for it")
        some = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{folder}: looked for {_WANTED}; found {some}")
    if len(found) > 1:
        listed = "; ".join(f"{each.format} by {each.reason}" for each in found)
        raise UserError(f"{folder} is in {len(found)} formats: {listed}: name one in data.source")
    return found[0]


def as_config(recognised: Recognised) -> str:
    """The lines of a config file that name the data."""
    lines = []
    for key, value in recognised.settings.items():
        said = f"ConfigDict({value!r})" if isinstance(value, dict) else repr(value)
        lines.append(f"config.data.{key} = {said}")
    return "\n".join(lines)


def _tfds(folder: Path, names: list[str]) -> Iterator[Recognised]:
    for name in _matching(names, "dataset_info.json", "**/dataset_info.json")[:1]:
        if "incomplete" not in name:
            place = (folder / name).parent
            files = {n.partition("-")[2].partition(".")[0] for n in os.listdir(place)}
            splits = [s for s in (*_FIRST, *_SECOND) if s in files] or ["train"]
            yield _recognised("tfds", place, splits, f"{name}, which TFDS prepares")


def _yolo(folder: Path, names: list[str]) -> Iterator[Recognised]:
    yamls = _matching(names, "data.yaml", "data.yml") or _matching(names, "*.yaml", "*.yml")
    yamls = [n for n in yamls if _NAMES.search(read_head(folder / n, _HEAD))]
    alone = "classes.txt" in names and any(n.startswith("labels/") for n in names)
    if len(yamls) > 1:
        raise UserError(f"{folder}: name one of {', '.join(yamls)} in data.options.file")
    if not yamls and yolo_layout.DARKNET not in names and not alone:
        return
    alone = yolo_layout.DARKNET if yolo_layout.DARKNET in names else yolo_layout.NAMES_ALONE
    path = folder / (yamls or [alone])[0]
    # Beside another .yaml each but data.yaml has to be named.
    options = {"file": path.name} if path.stem != "data" and _matching(names, "*.y*ml") else {}
    who = {"obj.data": "CVAT and darknet", "classes.txt": "Label Studio"}
    reason = f"{path.name}, as {who.get(path.name, 'ultralytics and Roboflow')} write it"
    splits = yolo_layout.splits(path) or ["train"]
    # Roboflow's data.yaml names splits, too, that were not exported.
    there = [split for split in splits if _is_there(folder, split, path.name)]
    yield _recognised("yolo", folder, there or splits, reason, options)


def _is_there(folder: Path, split: str, file: str) -> bool:
    try:
        return bool(yolo_layout.read(folder, split, file).pictures)
    except UserError:
        return False


def _coco(folder: Path, names: list[str]) -> Iterator[Recognised]:
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    tables = [name for name in _matching(names, *patterns) if _is_coco(folder / name)]
    ours = [name for name in tables if "/" in name and name.endswith("/_annotations.coco.json")]
    if ours:
        splits = [name.split("/")[0] for name in ours]
        options = {"annotations": "{split}/_annotations.coco.json", "images": "{split}"}
        yield _recognised("coco", folder, splits, f"{ours[0]}, as Roboflow writes it", options)
        return
    # COCO's captions and key points have images, too.
    tables = [name for name in tables if "instances" in name] or tables
    if tables:
        template, splits = _find_splits(folder, tables)
        alone = template == "result.json"
        images = "" if alone else _coco_images(folder, names, splits)
        options = {"annotations": template, "images": images}
        who = "Label Studio writes it" if alone else "COCO and CVAT write it"
        yield _recognised("coco", folder, splits or ["train"], f"{tables[0]}, as {who}", options)


def _is_coco(path: Path) -> bool:
    text = read_head(path, _HEAD)
    if '"categories"' in text and '"images"' not in text:  # Many may stand before all else.
        text = read_head(path, -1)
    return '"images"' in text or '"annotations"' in text


def _find_splits(folder: Path, tables: Sequence[str]) -> tuple[str, list[str]]:
    """The path of tables with {split} for what tells splits apart, and these; none of one alone.

    Raises:
        UserError: for several tables that do not say which split they hold.
    """
    found: dict[str, list[str]] = {}
    for name in tables:
        template, word = _divide(name)
        if word:
            found.setdefault(template, []).append(word)
    if len(found) == 1:
        return next(iter(found.items()))
    if len(tables) == 1:
        return tables[0], []
    raise UserError(
        f"{folder}: no telling which split is in which of {', '.join(tables)}: name one in "
        "data.options.annotations, with {split} for what tells splits apart"
    )


def _divide(path: str) -> tuple[str, str]:
    """A path with {split} for the last word that tells splits apart, and that word, "" for none."""
    word = (_ROLE.findall(path) or [""])[-1]
    return _ROLE.sub(lambda m: "{split}" if m[0] == word else m[0], path), word


def _coco_images(folder: Path, names: list[str], splits: list[str]) -> str:
    """Where the pictures are: in folders of the splits, at the top, in images/, or beside it."""
    for place in ("{split}", "images/{split}"):
        if splits and all((folder / place.replace("{split}", s)).is_dir() for s in splits):
            return place
    return "images" if any(n.startswith("images/") for n in names) else ""


def _voc(folder: Path, names: list[str]) -> Iterator[Recognised]:
    lists = _matching(names, "ImageSets/Main/*.txt", "*/ImageSets/Main/*.txt")
    if lists:
        stems = [PurePosixPath(n) for n in lists]
        places = [(*p.parts[:-3], p.stem) for p in stems]
        # Lists of single classes, cat_train, stand beside those of splits.
        splits = ["/".join(p) for p in places if "_" not in p[-1]]
        roles = {_role(p[-1]): "/".join(p) for p in places}
        splits = splits or (list(roles.values()) if len(roles) == len(places) else [])
        splits = splits or ["/".join(places[0])]
        yield _recognised("voc", folder, splits, f"{lists[0]}, as Pascal VOC and CVAT have it")
        return
    xmls = [n for n in _matching(names, "*.xml", "*/*.xml", "*/*/*.xml")]
    xmls = [n for n in xmls if _VOC.search(read_head(folder / n, _HEAD))]
    if not xmls:
        return
    above = PurePosixPath(xmls[0]).parent
    pictured = {PurePosixPath(n).parent for n in names if n.lower().endswith(SUFFIXES)}
    if above in pictured and len(above.parts) == 1:
        splits = sorted({n.split("/")[0] for n in _matching(names, "*/*.xml")})
        options = {"image_folder": "{split}", "annotation_folder": "{split}", "list_folder": ""}
        reason = f"{xmls[0]} beside its picture, as Roboflow writes it"
        yield _recognised("voc", folder, splits, reason, options)
        return
    divided = [_divide(str(PurePosixPath(n).parent)) for n in xmls]
    template, split = divided[0]
    splits = list(dict.fromkeys(s for t, s in divided if s and t == template)) or ["train"]
    images = _voc_images(template, split, pictured)
    options = {"image_folder": images, "annotation_folder": template, "list_folder": ""}
    reason = f"{xmls[0]}, without lists of splits, as labelImg writes it"
    yield _recognised("voc", folder, splits, reason, options)


def _voc_images(xmls: str, split: str, pictured: Container[PurePosixPath]) -> str:
    """Where the pictures of a folder of xml files are: there, or in one named for them."""
    places = [xmls]
    for name in ("JPEGImages", "images"):
        # In the place of Annotations, in which the splits may be, or which may be in them.
        parts = [part if part == "{split}" else name for part in PurePosixPath(xmls).parts]
        places += ["/".join(parts), name]
    places += ["{split}"] if split else []
    there = (p for p in places if PurePosixPath(p.replace("{split}", split)) in pictured)
    return next(there, "")


def _csv(folder: Path, names: list[str]) -> Iterator[Recognised]:
    tables = [n for n in _matching(names, "*.csv", "*/*.csv") if csv_rows.is_table(folder / n)]
    if not tables:
        return
    path = PurePosixPath(tables[0])
    if len(path.parts) > 1 and path.name == "_annotations.csv":
        splits = [n.split("/")[0] for n in tables]
        options = {"annotations": "{split}/_annotations.csv", "images": "{split}"}
        reason = f"{path}, as Roboflow writes it"
        yield _recognised("csv", folder, splits, reason, options)
        return
    template, splits = _find_splits(folder, tables)
    options = {} if template == "{split}.csv" else {"annotations": template}
    if images := _csv_images(folder, tables[0], (splits or ["train"])[0]):
        options["images"] = images
    yield _recognised("csv", folder, splits or ["train"], f"{path}, a table of boxes", options)


def _csv_images(folder: Path, table: str, split: str) -> str:
    """Where the first image of a table is; the top where it is nowhere."""
    image = csv_rows.first_image(folder / table)
    for place in ("", *_PLACES):
        if image and os.path.isfile(folder / place.replace("{split}", split) / image):
            return place
    return ""


def _recognised(source, folder, splits, reason, options=None) -> Recognised:
    settings = {"source": source, "root": str(folder)}
    roles = {split: _role(split) for split in splits}
    ranked = [s for name in _FIRST for s in roles if roles[s] == name]
    learnt = next(iter(ranked or [s for s in roles if not roles[s]] or splits))
    others = [s for s in roles if s != learnt]
    ranked = [s for name in _SECOND for s in others if roles[s] == name] or others
    settings["train_split"] = learnt
    # A name of its own for what is held out where there is one split alone.
    settings["eval_split"] = ranked[0] if ranked else "held_out" if learnt == "val" else "val"
    if not ranked:
        settings["val_fraction"] = _FRACTION
    settings["options"] = options or {}
    return Recognised(source, settings, reason)


def _role(split: str) -> str:
    """What a split is for, by the last of the usual words in its name; "" for none."""
    words = _ROLE.findall(split.rpartition("/")[2])
    return words[-1].lower() if words else ""


def _list(folder: Path) -> list[str]:
    """Paths of files below a folder, as deep and as many of each folder as are looked at."""
    found = []
    for parent, folders, files in os.walk(folder):
        here = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        if len(here.parts) >= _DEPTH:
            folders[:] = []
        # Pictures are many, and what tells formats apart is something else.
        names = sorted(n for n in files if not n.startswith("."))
        pictures = [n for n in names if n.lower().endswith(SUFFIXES)][:1]
        rest = (n for n in names if not n.lower().endswith(SUFFIXES))
        # A link may lead nowhere, and a pipe is waited for.
        rest = (n for n in rest if os.path.isfile(os.path.join(parent, n)))
        found += [(here / n).as_posix() for n in (*itertools.islice(rest, _LISTED), *pictures)]
    return sorted(found)


def _matching(names: Iterable[str], *patterns: str) -> list[str]:
    """The names that are like one of the patterns, whose stars stay within a folder."""
    found = []
    for pattern in patterns:
        deep, parts = pattern.startswith("**/"), pattern.removeprefix("**/").split("/")
        for name in names:
            own = name.split("/")
            own = own[-len(parts) :] if deep else own
            if len(own) == len(parts) and all(map(fnmatch.fnmatchcase, own, parts)):
                found.append(name)
    return list(dict.fromkeys(found))
