"""What a prediction writes about what it found: detections.json, images.json and a line."""

import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxdet import whole_files
from jaxdet.prediction import Found, Predictor


class Report:
    """What was found so far, as the files of JSON have it."""

    def __init__(self):
        self.detections: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[Path] = []

    def add(self, name: str, path: Path, found: Found, **more: Any) -> None:
        """Takes what is found on one image; more is what else is said of the image."""
        height, width = found.size
        item = {"id": name, "file_name": str(path), "width": width, "height": height, **more}
        self.images.append(item)
        self.detections += found.to_coco(name)

    def leave_out(self, path: Path, reason: object) -> None:
        """Counts and names a file that cannot be read."""
        self.unreadable.append(path)
        with tqdm.external_write_mode(file=sys.stderr):
            logging.getLogger("jaxdet").warning("left out: %s", reason)

    def write(self, out: Path, predictor: Predictor) -> None:
        """Writes both files of JSON; ids are numbers where all names are, as in COCO."""
        if all(image["id"].isdecimal() for image in self.images):
            for items, key in (self.images, "id"), (self.detections, "image_id"):
                items[:] = [item | {key: int(item[key])} for item in items]
        numbers = predictor.category_ids or range(1, len(predictor.class_names) + 1)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(numbers, predictor.class_names, strict=True)
        ]
        write_json(out / "detections.json", self.detections)
        write_json(out / "images.json", {"images": self.images, "categories": categories})

    def summary(self, score: float, out: Path) -> str:
        """A line."""
        frames = sum("frame" in image for image in self.images)
        parts = [_count(len(self.images) - frames, "image"), _count(frames, "frame")]
        read = " and ".join(part for part in parts if part) or "nothing"
        objects = _count(len(self.detections), "object") or "no object"
        left_out = f"; {len(self.unreadable)} could not be read" if self.unreadable else ""
        return f"{objects} of score {score:g} or more on {read}, in {out}{left_out}"


def name_files(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each file: its own without the ending, and a number behind where it is taken.

    `7` and `007` are one, as they are one number.
    """
    names, taken = {}, set()
    for path in paths:
        name, number = path.stem, 1
        while (key := int(name) if name.isdecimal() else name) in taken:
            number += 1
            name = f"{path.stem}-{number}"
        names[path] = name
        taken.add(key)
    return names


def write_json(path: Path, value: Any) -> None:
    """In one move, and on one line: there may be many detections."""
    whole_files.replace(path, json.dumps(value))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}" if number else ""
