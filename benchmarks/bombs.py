"""Reads annotation files that are made to fill the memory, each in a process with a limit of it.

    python benchmarks/bombs.py [--folder=FOLDER] [--limit=4]

The files are an xml whose entities expand a billion times, one that repeats a long entity,
one of 1 GB, 100,000 brackets as xml and as json, a json of 1 GB of brackets, one of 1 GB of
annotations with polygons, and one of 1 GB of the smallest annotations there are. What comes of
each is printed with its seconds and its peak of memory; a limit of 4 GB holds for each.
Ends with status 1 if anything but annotations or one line came of a file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from pathlib import Path
from jaxdet.data.sources import coco_json, voc_xml
from jaxdet.types import UserError
path = Path(sys.argv[1])
try:
    if path.suffix == ".json":
        print(f"{len(coco_json.read(path).annotations):,} annotations")
    else:
        print(f"{len(voc_xml.read(path).objects)} objects")
except UserError as error:
    print(f"refused: {str(error).replace(str(path), path.name)[:130]}")
"""
LARGE = 10**9  # Bytes.
HEAD = (
    b'{"images":[{"id":1,"file_name":"a.jpg"}],"categories":[{"id":1,"name":"a"}],"annotations":['
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--limit", type=float, default=4, help="memory of each process, GB")
    flags = parser.parse_args()
    folder, failed = (flags.folder or Path(tempfile.mkdtemp())).resolve(), 0
    for name, write in FILES.items():
        path = folder / name
        with path.open("wb") as file:
            write(file.write)
        size = path.stat().st_size
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", READ, str(path), str(int(flags.limit * 2**30))],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        said = process.stdout.read().strip()
        _, status, used = os.wait4(process.pid, 0)
        path.unlink()
        failed += bool(status)
        seconds, peak = time.monotonic() - began, used.ru_maxrss / 1024
        print(f"{name} ({size:,} bytes): {seconds:.1f} s, {peak:.0f} MB; {said}", flush=True)
    sys.exit(failed > 0)


def billion_laughs(write: Callable) -> None:
    """Ten entities, each of ten of the one before."""
    entities = b'<!ENTITY a0 "lol">'
    for k in range(1, 10):
        entities += b'<!ENTITY a%d "%s">' % (k, b"&a%d;" % (k - 1) * 10)
    write(b"<!DOCTYPE a [" + entities + b"]><annotation>&a9;</annotation>")


def quadratic(write: Callable) -> None:
    """An entity of 1 MB, 20,000 times."""
    write(b'<!DOCTYPE a [<!ENTITY a "' + b"a" * 10**6 + b'">]><annotation>')
    write(b"&a;" * 20_000 + b"</annotation>")


def many_objects(write: Callable) -> None:
    """An xml of 1 GB of objects."""
    item = (
        b"<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        b"</bndbox></object>"
    )
    write(b"<annotation>")
    _fill(write, item * 1000)
    write(b"</annotation>")


def full_xml(write: Callable) -> None:
    """As many elements as an xml that is read can have."""
    write(b"<annotation>" + b"<a/>" * ((2**24 - 25) // 4) + b"</annotation>")


def annotations(write: Callable) -> None:
    """A json of 1 GB of annotations with polygons."""
    polygon = b",".join(b"%d.25" % (k % 300) for k in range(60))
    item = b'{"id":1,"image_id":1,"category_id":1,"bbox":[1.5,2.5,30.25,40.75],"area":99.5,'
    item += b'"iscrowd":0,"segmentation":[[' + polygon + b"]]},"
    write(HEAD)
    _fill(write, item * 1000)
    write(item[:-1] + b"]}")


def smallest(write: Callable) -> None:
    """A json of 1 GB of the shortest annotations that are read."""
    item = b'{"image_id":1,"category_id":1,"bbox":[0,0,1,1]},'
    write(HEAD)
    _fill(write, item * 1000)
    write(item[:-1] + b"]}")


def brackets(write: Callable) -> None:
    """A json of 1 GB of brackets in a part that is passed over."""
    write(b'{"info":')
    _fill(write, b"[" * 10**6)


def _fill(write: Callable, block: bytes) -> None:
    for _ in range(LARGE // len(block)):
        write(block)


FILES = {
    "billion_laughs.xml": billion_laughs,
    "quadratic.xml": quadratic,
    "deep.xml": lambda write: write(b"<a>" * 100_000 + b"</a>" * 100_000),
    "full.xml": full_xml,
    "many_objects.xml": many_objects,
    "deep.json": lambda write: write(b'{"info":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "brackets.json": brackets,
    "annotations.json": annotations,
    "smallest.json": smallest,
}


if __name__ == "__main__":
    main()
