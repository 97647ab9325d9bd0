"""The page of `jaxdet check`: what a data set holds, and what is wrong with it."""

import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdet import visualize
from jaxdet.commands import check_sizes
from jaxdet.commands.fitting import Fit
from jaxdet.data import canvases, survey, transforms
from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.inventory import LEARNT, REASONS, Judged
from jaxdet.data.survey import Note, Split
from jaxdet.report import charts, markup, page

PARTS = {
    "numbers": "In short",
    "classes": "Classes",
    "sizes": "Sizes",
    "anchors": "Shapes and anchors",
    "wrong": "What is wrong",
    "worst": "Worst images",
}
PICTURES = 8  # Of the worst images.
BARS = 20  # Classes of a chart; a table has all of them.
MANY = 12  # Rows of a table that are shown unasked.
MOST = 20_000  # Rows of one kind: more make a page that no browser shows.
RARE = 30  # Of a class with fewer objects little can be learnt or measured.
DRAWN = 200  # Boxes on a picture, the wrong ones first: more hide it.
FAULTS = ("", *(f"({reason})" for reason in REASONS), "(over an edge)", "(twice)")


def write(
    path: Path,
    config: ConfigDict,
    splits: Sequence[Split],
    notes: Sequence[Note],
    said: Sequence[str],
    fit: Fit,
) -> None:
    """Writes the page.

    Args:
        path: its file.
        config: says how the data is read.
        splits: what is there.
        notes: what is wrong with files.
        said: what is wrong with all of it.
        fit: of the anchors.
    """
    data = config.data
    every = canvases.every(data.canvas, data.more_canvases)
    body = [
        _numbers(splits, notes, said),
        _classes(splits),
        check_sizes.sizes(splits),
        check_sizes.shapes(splits, fit),
        _wrong(notes, looked=bool(splits[0].pictures)),
        _worst(splits, data.exif),
    ]
    text = page.lay_out(
        f"{data.root}: data",
        Path(data.root).name or str(data.root),
        f"{data.source} {data.root}, {' and '.join(each.name for each in splits)}",
        PARTS,
        body,
        f"Made by jaxdet {importlib.metadata.version('jaxdet')}. Sizes on the canvas are those "
        f"after the resize to {tuple(data.resize)} within {' or '.join(map(str, every))}, "
        "before any augmentation.",
    )
    page.write(path, text)


def by_kind(notes: Sequence[Note]) -> Mapping[str, list[Note]]:
    """The notes of each kind, in their order."""
    kinds = defaultdict(list)
    for note in notes:
        kinds[note.kind].append(note)
    return kinds


def _numbers(splits, notes, said):
    counts = by_kind(notes)
    looked = bool(splits[0].pictures)
    cards = [
        (f"{sum(each.counts.images for each in splits):,}", "images"),
        (f"{sum(int(each.counts.objects.sum()) for each in splits):,}", "objects to learn or find"),
        (f"{sum(int(each.counts.left_out.sum()) for each in splits):,}", "objects left out"),
        (f"{len(counts[survey.UNREADABLE]):,}" if looked else "–", "pictures that cannot be read"),
        (f"{len(counts[survey.SHARED]):,}" if looked else "–", "pictures in both splits"),
        (f"{len({(note.split, note.file) for note in notes}):,}", "files with something wrong"),
    ]
    items = "".join(
        f'<div class="number"><b>{value}</b><span>{escape(text)}</span></div>'
        for value, text in cards
    )
    rows = [
        ("images", [each.counts.images for each in splits]),
        ("of them without objects", [each.counts.empty for each in splits]),
        ("objects", [int(each.counts.objects.sum()) for each in splits]),
        ("left out", [int(each.counts.left_out.sum()) for each in splits]),
        *(
            (f"of them {reason}", [int(each.counts.left_out[:, k].sum()) for each in splits])
            for k, reason in enumerate(REASONS)
            if any(each.counts.left_out[:, k].any() for each in splits)
        ),
        ("boxes over an edge", [each.counts.over_edge for each in splits]),
    ]
    table = markup.table(("of the data", *(each.name for each in splits)), rows)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    listed = f"<ul>{sentences}</ul>" if said else ""
    note = "" if looked else " Pictures were not looked at: <code>--pictures</code> does."
    return markup.section(
        "numbers",
        "In short",
        f'<div class="numbers">{items}</div>{listed}{table}',
        f"What a training with this config finds, and what it leaves out.{note}",
    )


def _classes(splits):
    names = splits[0].source.class_names
    order = np.argsort(-splits[0].counts.objects, kind="stable")
    figures = []
    for each in splits:
        numbers = each.counts.objects
        total = max(int(numbers.sum()), 1)
        chosen = order[:BARS]
        shares = {names[k]: numbers[k] / total for k in chosen}
        picture = charts.bars(
            f"Objects of {each.name} by class",
            "A bar for each class, as long as its share of the objects.",
            shares,
            [f"{numbers[k] / total:.1%}" for k in chosen],
        )
        more = f"The {BARS} most frequent of {len(names)}." if len(names) > BARS else ""
        figures.append(markup.figure(f"Objects of {each.name}", picture, more))
    head = ["class"]
    for each in splits:
        head += [each.name, f"images of {each.name}", f"left out of {each.name}"]
    images = [_images_by_class(each.judged, len(names)) for each in splits]
    rows = [
        (
            names[k],
            [
                int(number)
                for each, own in zip(splits, images, strict=True)
                for number in (each.counts.objects[k], own[k], each.counts.left_out[k].sum())
            ],
        )
        for k in order
    ]
    table = markup.table(head, rows[:MANY])
    if len(rows) > MANY:
        table += markup.fold(
            f"the other {len(rows) - MANY} classes", markup.table(head, rows[MANY:])
        )
    rare = [names[k] for k in order if splits[0].counts.objects[k] < RARE]
    advice = f"Fewer than {RARE} objects to learn of: {', '.join(rare[:MANY])}" if rare else ""
    return markup.section(
        "classes",
        "How often each class is there",
        markup.charts(figures) + table,
        "Both splits should have much the same shares: else the measure is of another mix than "
        "what was learnt.",
        escape(advice + ", ..." * (len(rare) > MANY)),
    )


def _images_by_class(judged: Judged, num_classes: int) -> np.ndarray:
    learnt = judged.reason == LEARNT
    pairs = np.unique(np.stack([judged.labels[learnt], judged.image[learnt]]), axis=1)
    return np.bincount(pairs[0], minlength=num_classes)


def _wrong(notes, *, looked):
    body = ""
    for kind, own in by_kind(notes).items():
        rows = [(note.file, [note.split, note.text]) for note in own[:MOST]]
        table = markup.table(("file", "split", "what"), rows)
        if len(own) > MOST:
            table += f"<p>... and {len(own) - MOST:,} more.</p>"
        body += markup.fold(f"{kind}: {len(own):,} file{'s' * (len(own) > 1)}", table)
    return markup.section(
        "wrong",
        "What is wrong, file by file",
        body or "<p>Nothing was found.</p>",
        "Numbers are of the objects of an image. What is unreadable gives way to the next image in "
        "training, and its objects count as missed in an evaluation.",
        "Pictures in both splits make every measure too good: take them out of one."
        if any(note.kind == survey.SHARED for note in notes)
        else ""
        if looked
        else "Names alone were compared: --pictures compares the pictures.",
    )


def _worst(splits, exif):
    figures = []
    for split, image, count in _rank(splits):
        drawn = _draw(split, image, exif)
        if drawn is not None:
            caption = f"{split.name}: {split.files[image]}, {count} wrong"
            figures.append(
                f'<figure><img src="{page.to_url(drawn)}" alt="{escape(caption)}" loading="lazy">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        if len(figures) == PICTURES:
            break
    body = f'<div class="worst">{"".join(figures)}</div>' if figures else "<p>There is none.</p>"
    return markup.section(
        "worst",
        "The worst images",
        body,
        "Those with the most boxes that are wrong, which are named by what is wrong with them; the "
        "others have the names of their classes. Pictures that cannot be read are not here.",
    )


def _rank(splits):
    """The images with wrong boxes, the most first: (split, place, how many)."""
    ranked = []
    for split in splits:
        judged = split.judged
        counts = np.bincount(judged.image[_faults(judged) > 0], minlength=len(judged.sizes))
        worst = np.argsort(-counts, kind="stable")[: 4 * PICTURES]
        ranked += [(split, int(i), int(counts[i])) for i in worst if counts[i]]
    return sorted(ranked, key=lambda item: -item[2])


def _faults(judged: Judged) -> np.ndarray:
    """What is wrong with each object, as a place in `FAULTS`; 0 for nothing."""
    fault = np.zeros(len(judged.reason), int)
    fault[judged.over_edge] = len(REASONS) + 1
    fault[survey.find_twice(judged)] = len(REASONS) + 2
    for place, reason in enumerate(REASONS):
        if reason not in ("crowd", "difficult"):
            fault[judged.reason == place] = place + 1
    return fault


def _draw(split, image, exif):
    """The picture with its boxes; None where it cannot be read."""
    try:
        pixels = transforms.decode(split.source[image], exif=exif).image
    except (UnreadableImage, OSError):
        return None
    judged, names = split.judged, list(split.source.class_names)
    own = np.flatnonzero(judged.image == image)
    fault = _faults(judged)[own]
    chosen = np.argsort(fault == 0, kind="stable")[:DRAWN]
    own, fault = own[chosen], fault[chosen]
    labels = np.where(fault > 0, len(names) + fault, judged.labels[own])
    return visualize.draw(pixels, judged.boxes[own], labels, [*names, *FAULTS])
