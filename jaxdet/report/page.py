"""The page itself: one file that needs no other, and asks nothing of the network."""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxdet import whole_files
from jaxdet.evaluation.analysis import Analysis
from jaxdet.report import sections

STYLE = Path(__file__).with_name("style.css")
PARTS = {
    "numbers": "In short",
    "classes": "Classes",
    "curves": "Curves",
    "scores": "Scores",
    "confusion": "Confusions",
    "errors": "Errors",
    "worst": "Worst images",
    "data": "Data",
}
# A browser keeps it to itself, whatever the names in it say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MAX_PICTURE_SIDE = 1100  # Pixels; pictures are shown half as wide.
JPEG_QUALITY = 80


class Facts(NamedTuple):
    """What the page says besides the measures.

    Attributes:
        model: name of the model or run.
        detector: name of its method.
        data: what it was measured on.
        version: of jaxdet.
        unreadable: images that could not be read.
        unusable: annotated boxes that are empty or outside their image.
    """

    model: str
    detector: str
    data: str
    version: str
    unreadable: int = 0
    unusable: int = 0


def write_page(
    path: str | os.PathLike,
    analysis: Analysis,
    facts: Facts,
    pictures: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], str]] = (),
) -> None:
    """Writes the page in one move: a kill leaves the old file, or none.

    Args:
        path: of the file.
        analysis: what is measured.
        facts: what else is said.
        pictures: RGB pixels of the worst images, and a caption for each.
    """
    write(path, to_html(analysis, facts, pictures))


def to_html(
    analysis: Analysis,
    facts: Facts,
    pictures: Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], str]] = (),
) -> str:
    """The page as text; see `write_page`."""
    inlined = [(to_url(pixels), caption) for pixels, caption in pictures]
    body = [
        sections.numbers(analysis),
        sections.by_class(analysis),
        sections.score_curves(analysis),
        sections.scores(analysis),
        sections.confusion(analysis),
        sections.losses(analysis),
        sections.worst(inlined, analysis.score),
        sections.data(analysis, facts.unreadable, facts.unusable),
    ]
    images = f"{analysis.num_images:,} image{'s' * (analysis.num_images != 1)}"
    classes = f"{len(analysis.class_names)} class{'es' * (len(analysis.class_names) != 1)}"
    return lay_out(
        f"{facts.model}: report",
        facts.model,
        f"{facts.detector} on {facts.data} · {images}, {classes}",
        PARTS,
        body,
        f"Made by jaxdet {facts.version}. AP is COCO’s; all else is of IoU .5 and the 100 best "
        "detections of an image. Crowd and difficult objects count neither as found nor as missed.",
    )


def lay_out(
    title: str,
    heading: str,
    subtitle: str,
    parts: Mapping[str, str],
    body: Sequence[str],
    footer: str,
) -> str:
    """A page around its sections.

    Args:
        title: of the window.
        heading: the first line.
        subtitle: the second.
        parts: the names of its sections, and what links to them say.
        body: the sections, as HTML; all else is text.
        footer: the last line.
    """
    links = "".join(f'<a href="#{name}">{escape(said)}</a>' for name, said in parts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE.read_text()}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(heading)}</h1><p class="soft">{escape(subtitle)}</p>'
        f'<nav aria-label="sections">{links}</nav></header>\n<main>\n'
        + "\n".join(body)
        + f"\n</main>\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a page in one move: a kill leaves the old file, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What a file is called need be no text, and the page is.
    whole_files.replace(path, text.encode(errors="backslashreplace"))


def to_url(pixels: UInt8[np.ndarray, "_ _ 3"]) -> str:
    """An RGB picture as a URL that holds it, made smaller where it is large."""
    factor = min(1.0, MAX_PICTURE_SIDE / max(pixels.shape[:2]))
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    if factor < 1:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
