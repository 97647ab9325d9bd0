"""Draws the pictures of docs/ops.md with the ops themselves.

`python docs/draw_ops.py` writes docs/images/ops_*.png again; `--folder` writes them elsewhere.
"""

import argparse
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet import ops
from jaxdet.data.sources.pictures import draw_picture
from jaxdet.visualize import BLACK, FONT, PALETTE, WHITE

BLUE, ORANGE, GREEN, RED = PALETTE[:4]
YELLOW = PALETTE[7]
GREY, PALE, INK = (150, 150, 150), (225, 225, 225), (40, 40, 40)
GAP, LINE, TEXT = 18, 20, 0.46

HEIGHT, WIDTH = 120, 168  # Of the picture, in pixels; it is drawn ZOOM times as large.
ZOOM = 1.8
CELL = 36  # Side of a drawn feature cell.
KINDS = ("circle", "square", "triangle", "star")
RATIO_NAMES = "ratio 0.5 blue, 1 green, 2 red; scales 1, 2"


def draw_anchors():
    """Anchors of one cell, at its corner and in its middle; and which cells an image covers."""
    stride, cell = 24, (2, 3)
    grid = (HEIGHT // stride, WIDTH // stride)
    scales, ratios = (1, 2), (0.5, 1.0, 2.0)
    panels = []
    for centre, place in ((0.0, "corner"), (0.5, "middle")):
        every = ops.pyramid_anchors([grid], [stride], scales=scales, ratios=ratios, centre=centre)
        mine = every.reshape(*grid, -1, 4)[cell]
        canvas = _faded_scene()
        _grid_lines(canvas, stride)
        for box, colour in zip(mine, (BLUE, BLUE, GREEN, GREEN, RED, RED), strict=True):
            _box(canvas, box, colour)
        point = (np.array(cell[::-1]) + centre) * stride
        _dot(canvas, point, 5, BLACK)
        panels.append((canvas, f"centre={centre}: in the cell's {place};\n{RATIO_NAMES}"))

    size = (88, 130)
    valid = ops.anchors.pyramid_valid([grid], [stride], jnp.array(size), num_base=1, divisor=1)
    canvas = _faded_scene()
    canvas[round(size[0] * ZOOM) :] = PALE
    canvas[:, round(size[1] * ZOOM) :] = PALE
    _grid_lines(canvas, stride)
    for number, real in enumerate(np.asarray(valid)):
        point = (np.array([number % grid[1], number // grid[1]]) + 0.5) * stride
        _dot(canvas, point, 5, GREEN if real else WHITE)
    title = (
        "pyramid_valid: of a canvas (grey) larger than\nits image, only green cells have anchors"
    )
    return _row([*panels, (canvas, title)])


def draw_deltas():
    """What `encode` says of an anchor and its object."""
    _, truth = _scene()
    anchor, target = jnp.array([64.0, 34, 104, 74]), truth[2]
    deltas = np.asarray(ops.box_coder.encode(anchor, jnp.asarray(target)))
    canvas = _faded_scene()
    _box(canvas, anchor, ORANGE)
    _box(canvas, target, GREEN)
    centres = np.asarray(ops.boxes.xyxy_to_cxcywh(jnp.stack([anchor, target])))[:, :2]
    start, end = (tuple(int(v) for v in centre * ZOOM) for centre in centres)
    cv2.arrowedLine(canvas, start, end, BLACK, 2, cv2.LINE_AA, tipLength=0.15)
    words = np.full((canvas.shape[0], 330, 3), 255, np.uint8)
    lines = [
        ("orange: the anchor, green: the object", INK),
        (f"dx = {deltas[0]:+.2f}   of the anchor's width, to the right", INK),
        (f"dy = {deltas[1]:+.2f}   of its height, down", INK),
        (f"dw = {deltas[2]:+.2f}   log of the object's width / the anchor's", INK),
        (f"dh = {deltas[3]:+.2f}   log of its height / the anchor's", INK),
    ]
    for number, (text, colour) in enumerate(lines):
        _write(words, text, (6, 46 + 30 * number), colour)
    return _row([(canvas, ""), (words, "")])


def draw_assignment():
    """Positive, negative and ignored anchors, and which of them a sampler draws."""
    stride = 8
    grid = (HEIGHT // stride, WIDTH // stride)
    every = jnp.asarray(ops.pyramid_anchors([grid], [stride], scales=(4,), ratios=(1,), centre=0.5))
    _, truth = _scene()

    @jax.jit
    def learn(key, truth):
        usable, real = jnp.ones(len(every), bool), jnp.ones(len(truth), bool)
        assigned = ops.assign_by_iou(
            every, usable, truth, real, ~real, positive_iou=0.5, negative_iou=0.35
        )
        samples = ops.sample_labels(key, assigned.labels, num_samples=24, positive_fraction=0.25)
        return assigned, samples

    assigned, samples = learn(jax.random.key(3), truth)
    labels, index = np.asarray(assigned.labels), np.asarray(assigned.index)
    centres = np.asarray(ops.boxes.xyxy_to_cxcywh(every))[:, :2]

    def dots(chosen):
        canvas = _faded_scene()
        for box, colour in zip(truth, PALETTE, strict=False):
            _box(canvas, box, colour)
        for place in chosen:
            colours = {0: GREY, -1: YELLOW, 1: PALETTE[index[place]]}
            _dot(canvas, centres[place], 4, colours[int(labels[place])])
        return canvas

    one_each = _faded_scene()
    for slot, (box, colour) in enumerate(zip(truth, PALETTE, strict=False)):
        for place in np.flatnonzero((labels == 1) & (index == slot)):
            _box(one_each, every[place], colour, 1)
        _box(one_each, box, colour, 3)
    drawn = np.asarray(samples.index)[np.asarray(samples.valid)]
    count = [int(np.sum(labels == value)) for value in (1, 0, -1)]
    return _row(
        [
            (one_each, "Positive anchors, thin,\nand the objects that they learn"),
            (
                dots(range(len(labels))),
                f"{count[0]} positive (coloured), {count[1]} negative\n"
                f"(grey) and {count[2]} ignored (yellow) anchors",
            ),
            (dots(drawn), "sample_labels draws 24 of them,\nat most a quarter positive"),
        ]
    )


def draw_nms():
    """A chain of three boxes under greedy and soft suppression."""
    chain = jnp.array([[20.0, 14, 90, 74], [48, 14, 118, 74], [76, 14, 146, 74]])
    scores, real = jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool)
    overlaps = np.asarray(ops.boxes.pairwise_iou(chain, chain))
    kept = ops.nms(chain, scores, real, iou_threshold=0.3)
    soft = ops.soft_nms(chain, scores, real, method="linear", iou_threshold=0.3)

    def panel(scores, kept):
        canvas = np.full((round(80 * ZOOM), round(WIDTH * ZOOM), 3), 255, np.uint8)
        rows = sorted(range(3), key=lambda row: kept[row])  # What is dropped lies below.
        for row in rows:
            colour = (BLUE, ORANGE, GREEN)[row] if kept[row] else GREY
            _tint(canvas, chain[row], colour)
            _box(canvas, chain[row], colour, 2 if kept[row] else 1)
            left, top = (np.asarray(chain[row, :2]) * ZOOM).astype(int)
            text = f"{'ABC'[row]} {scores[row]:.2f}" if kept[row] else f"({'ABC'[row]})"
            _write(canvas, text, (left, top - 8), colour)
        return canvas

    titles = (
        f"IoU: A-B {overlaps[0, 1]:.2f}, B-C {overlaps[1, 2]:.2f},\n"
        f"A-C {overlaps[0, 2]:.2f}; threshold 0.3",
        "nms: A drops B; B is gone,\nso nothing drops C",
        "soft_nms: B falls by 1 - IoU(A, B),\nthen C, picked before B, lowers B again",
    )
    panels = (
        panel(scores, [True] * 3),
        panel(scores, np.asarray(kept)),
        panel(np.asarray(soft.scores), np.asarray(soft.keep)),
    )
    return _row(list(zip(panels, titles, strict=True)))


def draw_roi():
    """The cells that one bin of RoIAlign and of RoIPool reads."""
    region, chosen, bins = np.array([1.3, 1.2, 7.9, 5.7]), (0, 1), 3  # In cells.
    align, pool = _probe_pooling(region, bins)
    panels = [_cells(read[chosen]) for read in (align, pool)]
    sides = (region[2:] - region[:2]) / bins
    for row, column in np.ndindex(bins, bins):
        corner = region[:2] + sides * (column, row)
        _box(panels[0], [*corner, *(corner + sides)], BLUE, 1, zoom=CELL)
        for part in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
            colour = RED if (row, column) == chosen else BLUE
            _dot(panels[0], corner + sides * part, 4, colour, zoom=CELL)
        _box(panels[1], _around(pool[row, column]), BLUE, 1, zoom=CELL)
    _box(panels[1], _around(pool[chosen]), RED, 2, zoom=CELL)
    for canvas in panels:
        _box(canvas, region, BLACK, 2, zoom=CELL)
    titles = (
        "roi_align: nothing is rounded; a bin is the mean\n"
        "of its samples; orange: what the red ones read",
        "roi_pool: the region (black) and its bins are\n"
        "whole cells; a bin is the largest of its cells",
    )
    return _row(list(zip(panels, titles, strict=True)))


def draw_losses():
    """Curves of classification, delta and box losses."""
    logits = jnp.linspace(-4, 4, 81)
    ones = jnp.ones_like(logits)
    classes = [
        ("sigmoid_cross_entropy", ops.losses.sigmoid_cross_entropy(logits, ones), BLUE),
        ("sigmoid_focal", ops.losses.sigmoid_focal(logits, ones), RED),
    ]
    difference = jnp.linspace(-2, 2, 81)
    zeros = jnp.zeros_like(difference)
    deltas = [
        ("l1", ops.losses.l1(difference, zeros), BLUE),
        ("smooth_l1, beta 1", ops.losses.smooth_l1(difference, zeros), RED),
        ("smooth_l1, beta 1/9", ops.losses.smooth_l1(difference, zeros, beta=1 / 9), GREEN),
    ]
    shift = jnp.linspace(0, 3, 81)
    moved = jnp.stack([shift, 0 * shift, shift + 1, 0 * shift + 1], axis=-1)
    box = jnp.array([0.0, 0, 1, 1])
    whole = [
        ("iou_loss", ops.iou_loss(moved, box), BLUE),
        ("giou_loss", ops.giou_loss(moved, box), RED),
        ("diou_loss", ops.diou_loss(moved, box), GREEN),
    ]
    return _row(
        [
            (_plot(logits, classes, 4), "classification: logit, target 1"),
            (_plot(difference, deltas, 2), "deltas: difference"),
            (_plot(shift, whole, 2, ticks=4), "boxes: shift, in widths of the box"),
        ]
    )


PICTURES = {
    "anchors": draw_anchors,
    "deltas": draw_deltas,
    "assignment": draw_assignment,
    "losses": draw_losses,
    "nms": draw_nms,
    "roi": draw_roi,
}


def draw_all(folder: pathlib.Path) -> None:
    """Writes every picture into a folder."""
    for name, draw in PICTURES.items():
        bgr = draw()[..., ::-1]
        cv2.imwrite(str(folder / f"ops_{name}.png"), bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _probe_pooling(region, bins, rows=7, columns=9):
    """How much of each cell is in each bin of RoIAlign and RoIPool, (bins, bins, rows, columns).

    The ops say so themselves: each channel is a map with a single one in it.
    """
    probes = jnp.eye(rows * columns).reshape(rows, columns, -1)
    settings = dict(stride=1.0, output_size=bins)

    @jax.jit
    def pool(rois):
        align = ops.roi_align(probes, rois, sampling_ratio=2, **settings)
        return align, ops.roi_pool(probes, rois, **settings)

    pooled = pool(jnp.array([region], jnp.float32))
    return [np.asarray(read).reshape(bins, bins, rows, columns) for read in pooled]


def _cells(weights):
    """A grid of cells, the more orange the more they weigh."""
    share = np.kron(weights / weights.max(), np.ones((CELL, CELL)))[..., None]
    canvas = (WHITE + share * (np.array(ORANGE) - WHITE)).astype(np.uint8)
    canvas[::CELL], canvas[:, ::CELL] = PALE, PALE
    return cv2.copyMakeBorder(canvas, 0, 1, 0, 1, cv2.BORDER_CONSTANT, value=PALE)


def _around(weights):
    """The box of all cells that weigh something, a little smaller, so that neighbours show."""
    rows, columns = np.flatnonzero(weights.any(1)), np.flatnonzero(weights.any(0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return corners + [0.1, 0.1, -0.1, -0.1]


def _scene():
    """A generated picture, and its boxes."""
    return draw_picture(
        np.random.default_rng(21),
        size=(HEIGHT, WIDTH),
        kinds=KINDS,
        num_objects=3,
        size_range=(26, 80),
    )[:2]


def _faded_scene():
    """The picture enlarged, pale and smooth: lines stand out, and the file stays small."""
    image, _ = _scene()
    size = round(WIDTH * ZOOM), round(HEIGHT * ZOOM)
    image = cv2.resize(cv2.medianBlur(image, 5), size, interpolation=cv2.INTER_CUBIC)
    return (255 - (255 - image) // 16 * 16 * 0.45).astype(np.uint8)


def _grid_lines(canvas, stride):
    for k in range(0, WIDTH + 1, stride):
        cv2.line(canvas, (round(k * ZOOM), 0), (round(k * ZOOM), canvas.shape[0]), GREY, 1)
    for k in range(0, HEIGHT + 1, stride):
        cv2.line(canvas, (0, round(k * ZOOM)), (canvas.shape[1], round(k * ZOOM)), GREY, 1)


def _box(canvas, box, colour, thickness=2, zoom=ZOOM):
    x1, y1, x2, y2 = (round(float(v) * zoom) for v in box)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, thickness, cv2.LINE_AA)


def _tint(canvas, box, colour):
    x1, y1, x2, y2 = (round(float(v) * ZOOM) for v in box)
    inside = canvas[y1:y2, x1:x2]
    inside[:] = 0.8 * inside + 0.2 * np.array(colour)


def _dot(canvas, point, radius, colour, zoom=ZOOM):
    centre = tuple(round(float(v) * zoom) for v in point)
    cv2.circle(canvas, centre, radius, colour, cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, centre, radius, INK, 1, cv2.LINE_AA)


def _write(canvas, text, bottom_left, colour=INK):
    cv2.putText(canvas, text, bottom_left, FONT, TEXT, colour, 1, cv2.LINE_AA)


def _row(panels):
    """Panels, each with its title above, side by side; titles are of equally many lines."""
    lines = len(panels[0][1].splitlines())
    top = GAP + lines * LINE + 6 * (lines > 0)
    height = top + max(canvas.shape[0] for canvas, _ in panels) + GAP
    width = sum(canvas.shape[1] + GAP for canvas, _ in panels) + GAP
    sheet, left = np.full((height, width, 3), 255, np.uint8), GAP
    for canvas, title in panels:
        for number, line in enumerate(title.splitlines()):
            _write(sheet, line, (left + 2, GAP + LINE * (number + 1) - 5))
        sheet[top : top + canvas.shape[0], left : left + canvas.shape[1]] = canvas
        left += canvas.shape[1] + GAP
    return sheet


def _plot(x, curves, top, ticks=5):
    """Curves over one axis, with their names at the top left; the y axis runs from 0 to `top`."""
    height, width, margin = 220, 290, 26
    canvas = np.full((height, width, 3), 255, np.uint8)
    x = np.asarray(x)

    def place(x_, y):
        across = margin + (x_ - x[0]) / (x[-1] - x[0]) * (width - 2 * margin)
        return np.stack([across, height - margin - y / top * (height - 2 * margin)], axis=-1)

    for value in np.linspace(0, top, 3):
        start, end = place(x[[0, -1]], np.full(2, value)).round().astype(int).tolist()
        cv2.line(canvas, start, end, PALE, 1)
        _write(canvas, f"{value:g}", (4, start[1] + 5), GREY)
    for value in np.linspace(x[0], x[-1], ticks):
        left, bottom = place(value, 0.0).round().astype(int).tolist()
        _write(canvas, f"{value:g}", (left - 6, bottom + 18), GREY)
    for number, (name, y, colour) in enumerate(curves):
        points = (place(x, np.asarray(y)) * 16).round().astype(np.int32)
        # Later curves are thinner: where they meet, both are seen.
        cv2.polylines(canvas, [points], False, colour, 6 - 2 * number, cv2.LINE_AA, shift=4)
        _write(canvas, name, (margin + 60, 16 + 18 * number), colour)
    return canvas


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path(__file__).parent / "images"
    )
    draw_all(parser.parse_args().folder)
