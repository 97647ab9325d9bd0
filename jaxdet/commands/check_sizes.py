"""The sections of `jaxdet check`'s page about sizes, shapes and anchors."""

from collections.abc import Sequence
from html import escape

import numpy as np

from jaxdet.commands import fitting
from jaxdet.commands.fitting import Fit
from jaxdet.data import transforms
from jaxdet.data.inventory import LEARNT, Judged
from jaxdet.data.survey import Split
from jaxdet.report import charts, markup

STEPS = 4  # Columns of a histogram to a doubling of the size.
SIDES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # Borders of the sizes in the table.


def sizes(splits: Sequence[Split]) -> str:
    """The section of how large objects are."""
    own = {each.name: _sides(_learnt_boxes(each.judged, each.judged.boxes)) for each in splits}
    shown = {
        each.name: _sides(_learnt_boxes(each.judged, each.judged.on_canvas)) for each in splits
    }
    figures = [
        _size_figure("Size in the image", own, "Sides of squares as large, as annotated."),
        _size_figure(
            "Size on the canvas", shown, "After the resize: this is what the detector sees."
        ),
    ]
    return markup.section(
        "sizes",
        "How large objects are",
        markup.charts(figures),
        "The side of a square as large as an object, in pixels; four columns double it.",
        "Objects below 8 pixels of the canvas are hardly found: enlarge "
        "<code>config.data.canvas</code> and <code>config.data.resize</code>, or cut the images.",
    )


def _size_figure(title, sides, caption):
    every = np.concatenate(list(sides.values()))
    low, high = (np.log2(every.min()), np.log2(every.max())) if len(every) else (0, 1)
    steps = np.arange(np.floor(low * STEPS), np.floor(high * STEPS) + 2) / STEPS
    names = [f"{2**step:.3g}" if step < 9.5 else f"{2**step:.0f}" for step in steps]
    shares, rows = [], []
    for name, values in sides.items():
        counts = np.histogram(np.log2(values), steps)[0]
        shares.append((name, counts / max(len(values), 1)))
        rows.append(counts)
    picture = charts.spread(
        title,
        f"Columns of the share of objects by {title.lower()}, for each split.",
        shares,
        names,
        ("pixels", "share of objects, %"),
    )
    spans = [f"{a} to {b}" for a, b in zip(names[:-1], names[1:], strict=True)]
    table = markup.table(
        ("pixels", *sides),
        [(span, [int(row[i]) for row in rows]) for i, span in enumerate(spans)],
    )
    return markup.figure(title, picture + charts.keys(list(sides)), caption, table)


def _learnt_boxes(judged: Judged, boxes: np.ndarray) -> np.ndarray:
    return boxes[judged.reason == LEARNT]


def _sides(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt(transforms.areas(boxes.astype(np.float64)))


def shapes(splits: Sequence[Split], fit: Fit) -> str:
    """The section of what shapes objects have, and how the anchors fit them."""
    boxes = np.concatenate([_learnt_boxes(each.judged, each.judged.on_canvas) for each in splits])
    figures = [_shape_figure(boxes, fit.anchors)]
    body = ""
    if fit.overlaps:
        body = markup.table(
            (
                "objects on the canvas",
                "count",
                f"best IoU below {fit.positive:g}",
                "learnt by none",
                "median of the best IoU",
            ),
            _reach_rows(boxes, np.concatenate(list(fit.overlaps.values())), fit),
            "Sides of squares as large, in pixels, of all splits.",
        )
    says = "Each cell counts objects of one size and shape on the canvas, darker where more are."
    if len(fit.anchors):
        says += " Rings are the detector’s anchors: objects far from all rings fit none."
    advice = " ".join(escape(f"{line[:1].upper()}{line[1:]}.") for line in fit.lines)
    if fit.overlaps:
        advice += (
            " Where many reach none, set the <code>scales</code> and <code>ratios</code> to "
            "where the dark cells are, or change the size of the canvas."
        )
    return markup.section(
        "anchors",
        "Shapes, and the anchors beside them",
        markup.charts(figures) + body,
        says,
        advice,
    )


def _shape_figure(boxes, anchors):
    """Width over height against the size, both in doublings."""
    sides = np.log2(_sides(boxes))
    ratios = np.log2((boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0]))
    ring_sides = np.log2(np.sqrt(anchors.prod(axis=1)))
    ring_ratios = np.log2(anchors[:, 0] / anchors[:, 1])
    both = np.concatenate([sides, ring_sides])
    low, high = (np.floor(both.min()), np.floor(both.max()) + 1) if len(both) else (0.0, 1.0)
    reach = 4.0  # Shapes from 1/16 to 16; those beyond are in the outermost cells.
    counts = np.histogram2d(
        np.clip(ratios, -reach, reach - 1e-6),
        sides,
        bins=[np.linspace(-reach, reach, 33), np.arange(low, high + 0.125, 0.25)],
    )[0].astype(int)
    marks = [
        (
            (side - low) / (high - low),
            (np.clip(ratio, -reach, reach) + reach) / (2 * reach),
            f"anchor {width:.0f} x {height:.0f} (width x height)",
        )
        for side, ratio, (height, width) in zip(ring_sides, ring_ratios, anchors, strict=True)
    ]
    x_ticks = [((k - low) / (high - low), f"{2**k:.0f}") for k in np.arange(low, high)]
    y_ticks = [
        ((k + reach) / (2 * reach), f"{2.0**k:g}" if k >= 0 else f"1/{2.0**-k:g}")
        for k in range(-4, 5, 2)
    ]
    picture = charts.scatter(
        "Shapes and sizes",
        "A map of how many objects have which size and which height to width.",
        counts,
        marks,
        (x_ticks, y_ticks),
        ("side of a square as large, pixels of the canvas", "height / width"),
    )
    return markup.figure("Shapes and sizes", picture, "All splits together.")


def _reach_rows(boxes, overlaps, fit):
    sides = _sides(boxes)
    rows = []
    for low, high in zip((0, *SIDES), (*SIDES, np.inf), strict=True):
        own = overlaps[(sides >= low) & (sides < high)]
        if len(own):
            name = f"{low} to {high}" if high < np.inf else f"{low} and more"
            below, lost = (own < fit.positive).sum(), fitting.is_lost(own, fit.least).sum()
            share = f"{below:,} ({below / len(own):.1%})"
            rows.append((name, [len(own), share, int(lost), f"{np.median(own):.2f}"]))
    return rows
