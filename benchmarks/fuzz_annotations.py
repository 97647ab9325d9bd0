"""Damages annotation files at random: each is read, or refused in a line.

    python benchmarks/fuzz_annotations.py [NUMBER]

Files of json, xml, txt (lists, and labels of YOLO), yaml and csv, and the arrays of proposals files
(npz), are changed by bits, cuts, repeats and words of their own formats, NUMBER times in all
(100,000). Nothing but UserError may be raised, and where a file is read, the number of its objects
is the one that a plain reader of the format counts.
"""

import collections
import contextlib
import csv
import io
import json
import logging
import random
import re
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from jaxdet.data import proposal_shape
from jaxdet.data.sources import coco_json, csv_rows, text, voc_xml, yolo_labels, yolo_layout
from jaxdet.types import UserError

COCO = {
    "info": {"year": 2024},
    "images": [
        {"id": i, "file_name": f"p{i}.png", "width": 96, "height": 72 + i} for i in range(4)
    ],
    "annotations": [
        {
            "id": i,
            "image_id": i % 4,
            "category_id": 1 + i % 2,
            "bbox": [51.5, i, 25, 20],
            "area": 500,
            "iscrowd": i % 2,
            "segmentation": [[5, 5, 30, 5, 30, 40]],
        }
        for i in range(6)
    ],
    "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}],
}
BOX = "<bndbox><xmin>52</xmin><ymin>23</ymin><xmax>76</xmax><ymax>42.5</ymax></bndbox>"
VOC = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<annotation><size><width>96</width>'
    "<height>72</height><depth>3</depth></size>"
    + f"<object><name>box</name><difficult>0</difficult>{BOX}</object>" * 3
    + "</annotation>"
)
LIST = "p0\nfolder/p1.png\np2  1\np3 -1\nmy photo\n"
ARRAYS = {
    "ids": np.array(["p0", "p1", "p2", "p3"]),
    "counts": np.array([2, 0, 1, 3]),
    "boxes": np.float32([[0, 0, 5, 9], [1, 2, 3, 4], [-1, 0, 9, 9]] * 2),
    "scores": np.float32([0.75, 0.5, 0.25, 1, 0.5, 0]),
}
NUMBERS = (0, 1, -1, 2, 3, 0.5, 1e9, 1e300, 2**63, float("nan"), float("inf"))
TYPES = ("u1", "i2", "i8", "u8", ">i4", "f2", "f8", ">f4", "c8", "?", "U3", "S2", "O", "M8[s]")
LABELS = "0 0.5 0.5 0.25 0.125\n1 .1 .2 .5 .2 .5 .75\r\n\n0 1 1 0 0.5\n"
YAML = """path: ../data
train: images  # folder
val: images
nc: 3

names:
  0: box
  1: "a disc"
  2: no
"""
TABLE = """image,width,height,x1,y1,x2,y2,class
p0.png,96,72,1,2,30.5,40,box
p0.png,96,72,5,5,9,9,"a disc, red"
p1.png,,,,,,,
p2.png,96,72,1,2,30,40,box
"""
WORDS = (
    *(b"null", b"true", b'"0"', b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"[[", b"]]"),
    *(b"<object>", b"</object>", b"<bndbox/>", b"&amp;", b"&x;", b"<!--", b"-->", b"]]>", b"<a"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r\n", b"..", b"\\", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(
        b"&a ",
        b"*a",
        b"!!python/object:os ",
        b"- ",
        b": ",
        b"? ",
        b"|\n",
        b"\t",
        b",",
        b'","',
        b";",
    ),
)
# What stands between quotes, commas, brackets or tags, and what may take its place.
TOKENS = re.compile(rb'(?<=[">:,\[ \n])[\w.-]+(?=["<,\] \r\n}])')
VALUES = (
    *(b"0", b"1", b"-1", b"2", b"1.0", b"3", b"1e9", b"1e400", b"nan", b"null", b"true", b"x"),
    *(b"", b" ", b"'1'", b"[1]", b"box", b"p1", b"../p1", "größer".encode(), b"9" * 400),
)


def main() -> None:
    """Runs it."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    logging.getLogger("jaxdet").setLevel(logging.ERROR)
    kinds = {
        "json": (json.dumps(COCO).encode(), read_coco, count_coco),
        "xml": (VOC.encode(), read_voc, count_voc),
        "txt": (LIST.encode(), read_names, count_names),
        "npz": (None, read_proposals, count_proposals),
        "yolo": (LABELS.encode(), read_labels, count_labels),
        "yaml": (YAML.encode(), read_classes, count_classes),
        "csv": (TABLE.encode(), read_rows, count_rows),
    }
    start, outcomes = time.perf_counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind, (good, read, count) in kinds.items():
            path, rng = Path(folder, f"file.{kind}"), random.Random(kind)
            Path(folder, "images").mkdir(exist_ok=True)
            for _ in range(number // len(kinds)):
                path.write_bytes(data := damage(good, rng) if good else damage_arrays(rng))
                try:
                    found = read(path)
                except UserError as error:
                    assert str(path) in str(error) and "\n" not in str(error), (error, data)
                    outcomes[kind, "refused"] += 1
                    continue
                wanted = count(data)
                assert found == wanted, (kind, found, wanted, data)
                outcomes[kind, "read"] += 1
    for (kind, outcome), times in sorted(outcomes.items()):
        print(f"{kind:<5}{outcome:<9}{times}")
    print(f"{sum(outcomes.values())} files in {time.perf_counter() - start:.0f} s")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three changes."""
    if rng.random() < 0.5 and TOKENS.search(
        data
    ):  # Values alone, so that the rest stays well-formed.
        for _ in range(rng.choice((1, 1, 2, 3))):
            token = rng.choice(list(TOKENS.finditer(data)) or [re.search(b"", data)])
            data = data[: token.start()] + rng.choice(VALUES) + data[token.end() :]
        return data
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 64))
        match rng.randrange(6):
            case 0:
                data[place:place] = rng.choice(WORDS)
            case 1:
                data[place : place + length] = rng.choice(WORDS)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case _:
                source = rng.randrange(len(data) + 1)
                data[place : place + length] = data[source : source + length]
    return bytes(data)


def damage_arrays(rng: random.Random) -> bytes:
    """A proposals file with a changed array, head of an array, or bytes."""
    arrays, kind = dict(ARRAYS), rng.randrange(4)
    for _ in range(rng.choice((1, 1, 2)) if kind < 2 else 0):
        name = rng.choice(list(arrays))
        arrays[name] = change(arrays[name], rng)
    files = {f"{name}.npy": pack(array) for name, array in arrays.items()}
    if kind == 2:  # What the checksums of the archive do not see.
        name = rng.choice(list(files))
        files[name] = damage(files[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for name, data in files.items():
            if rng.random() > 0.01:
                archive.writestr(name, data)
    return damage(out.getvalue(), rng) if kind == 3 else out.getvalue()


def change(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """An array of another type, shape, order or with another value."""
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.suppress(ValueError, TypeError, OverflowError, IndexError, RuntimeError),
    ):
        match rng.randrange(5):
            case 0:
                return array.astype(rng.choice(TYPES))
            case 1:
                return array[: rng.randrange(len(array))]
            case 2:
                return array.reshape(rng.choice(((-1,), (-1, 2), (2, -1), (1, -1), (-1, 1, 2))))
            case 3:
                return array[np.array(rng.choices(range(len(array)), k=len(array)))]
            case _:
                changed = array.astype(array.dtype if array.dtype.kind == "U" else "f8")
                if rng.random() < 0.5:
                    changed = array.copy()
                changed.flat[rng.randrange(array.size)] = rng.choice(NUMBERS)
                return changed
    return array


def pack(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def read_proposals(path: Path) -> int:
    """The number of proposals that are read."""
    return len(proposal_shape.read(path).scores)


def count_proposals(data: bytes) -> int:
    """The number of proposals that NumPy finds."""
    with np.load(io.BytesIO(data)) as arrays:
        return len(arrays["scores"])


def read_coco(path: Path) -> int:
    """The number of objects that are read."""
    return len(coco_json.read(path).annotations)


def count_coco(data: bytes) -> int:
    """The number of annotations that the standard library finds, which may be none at all."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return len(json.loads(data.decode(encoding, errors="replace")).get("annotations") or ())


def read_voc(path: Path) -> int:
    """The number of objects that are read."""
    return len(voc_xml.read(path).objects)


def count_voc(data: bytes) -> int:
    """The number of boxes of objects that the standard library finds."""
    tags = [
        [part.tag.rpartition("}")[2].lower() for part in (item, *item)]
        for item in ElementTree.fromstring(data).iter()
    ]
    return sum(inside.count("bndbox") or 1 for name, *inside in tags if name == "object")


def read_names(path: Path) -> int:
    """The number of names that are read."""
    return len(text.read_list(path, (), (".png",)))


def count_names(data: bytes) -> int:
    """The number of different names of lines that are not marked with -1."""
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = data.decode("utf-16" if marked else "utf-8-sig")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [line for line in lines if not line.endswith(" -1")]
    for flag in (" 1", " 0"):
        names = [name.removesuffix(flag).strip() for name in names]
    names = [name.replace("\\", "/").rpartition("/")[2] for name in names]
    return len({name[:-4] if name.lower().endswith(".png") else name for name in names})


def read_labels(path: Path) -> int:
    """The number of objects that are read, and of lines that repeat one."""
    found = yolo_labels.read(path, 2)
    return len(found.numbers) + found.repeated


def count_labels(data: bytes) -> int:
    """The number of lines with something on them."""
    return len([line for line in decode(data).splitlines() if line.strip()])


def read_classes(path: Path) -> int:
    """The number of classes."""
    return len(yolo_layout.read(path.parent, "train", path.name).names)


def count_classes(data: bytes) -> int:
    """The number of names that PyYAML finds."""
    return len(yaml.load(decode(data), yaml.BaseLoader)["names"])


def read_rows(path: Path) -> int:
    """The number of objects."""
    return sum(row.box is not None for row in csv_rows.read(path))


def count_rows(data: bytes) -> int:
    """The number of rows that say a class, in the place that the first row gives it."""
    content = decode(data)
    first = next(line for line in content.splitlines() if line.strip())
    rows = list(
        csv.reader(
            io.StringIO(content, newline=""),
            delimiter=max(",;\t", key=first.count),
            skipinitialspace=True,
        )
    )
    head, *rest = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    names = [cell.lower().replace(" ", "_").replace("-", "_") for cell in head]
    place = next(i for i, name in enumerate(names) if name in csv_rows.COLUMNS["class"])
    return sum(bool(row[place]) for row in rest)


def decode(data: bytes) -> str:
    """The text of a file in UTF-16 that says so, or UTF-8."""
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if marked else "utf-8-sig")


if __name__ == "__main__":
    main()
