"""Charts as SVG: lines, columns, bars and maps, with a title and a description to be read out."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 42  # Around the axes, for their labels.
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
BAR, GAP = 20, 10  # Heights of a bar and of what is between two.
NAMES = 128  # Width of the names of bars.
STYLES = 6  # Of lines that can be told apart: the classes k0 to k5 of style.css.


class Line(NamedTuple):
    """A curve of values 0..1; its style is a class of style.css."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str


def lines(
    title: str,
    description: str,
    curves: Sequence[Line],
    *,
    labels: tuple[str, str],
    mark: float | None = None,
    ticks: tuple[Sequence[tuple[float, str]], Sequence[tuple[float, str]]] | None = None,
) -> str:
    """Curves in the unit square.

    Args:
        title: of the chart.
        description: what it shows, in a sentence.
        curves: the last ones lie on top.
        labels: of the axes x and y.
        mark: a value of x that a line names.
        ticks: places in 0..1 and names, along x and y; None where they are one another.
    """
    parts = [_axes(*labels, ticks[1], ticks[0]) if ticks else _unit_axes(*labels)]
    for curve in curves:
        name = f"<title>{escape(curve.name)}</title>"
        parts.append(f'<path class="line {curve.style}" d="{_path(curve)}">{name}</path>')
    if mark is not None:
        parts.append(_mark(mark))
    return _svg(title, description, WIDTH, HEIGHT, parts)


def legend(curves: Sequence[Line], notes: Mapping[str, str]) -> str:
    """Names of curves beside a piece of each, with a note such as a value."""
    items = []
    for curve in curves:
        sample = f'<path class="line {curve.style}" d="M0 5H30"/>'
        note = escape(notes.get(curve.name, ""))
        items.append(
            f'<li><svg viewBox="0 0 30 10" aria-hidden="true">{sample}</svg>'
            f"<span>{escape(curve.name)} <b>{note}</b></span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def histogram(
    title: str, description: str, counts: np.ndarray, *, labels: tuple[str, str], mark: float
) -> str:
    """Columns from 0 to 1, each with its right ones below and its wrong ones above."""
    top = max(int(counts.sum(axis=0).max(initial=0)), 1)
    parts = [_axes(*labels, ((share, f"{round(share * top):,}") for share in (0, 0.5, 1)))]
    size = counts.shape[1]
    for i, (right, wrong) in enumerate(counts.T.tolist()):
        low, high = i / size, (i + 1) / size
        note = f"<title>score {low:.2f} to {high:.2f}: {right} right, {wrong} wrong</title>"
        for kind, start, stop in (("right", 0, right), ("wrong", right, right + wrong)):
            if stop > start:
                parts.append(_column(kind, low, high, start / top, stop / top, note))
    return _svg(title, description, WIDTH, HEIGHT, [*parts, _mark(mark)])


def columns(
    title: str, description: str, heights: np.ndarray, notes: Sequence[str], labels: tuple[str, str]
) -> str:
    """Columns of heights 0..1 beside the diagonal where a column says what is so; NaN has none."""
    parts = [_unit_axes(*labels)]
    size = len(heights)
    for i, (height, note) in enumerate(zip(heights, notes, strict=True)):
        if height >= 0:
            note = f"<title>{escape(note)}</title>"
            parts.append(_column("right", i / size, (i + 1) / size, 0, max(height, 0.004), note))
    parts.append(f'<path class="mark" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>')
    return _svg(title, description, WIDTH, HEIGHT, parts)


def spread(
    title: str,
    description: str,
    shares: Sequence[tuple[str, np.ndarray]],
    edges: Sequence[str],
    labels: tuple[str, str],
) -> str:
    """Columns between edges that are named, side by side for each of several data sets.

    Args:
        title: of the chart.
        description: what it shows, in a sentence.
        shares: names of the data sets, and their shares 0..1 of the columns.
        edges: names of the places between columns; one more than there are.
        labels: of the axes x and y.
    """
    top = max([1e-9, *(float(values.max(initial=0)) for _, values in shares)])
    ticks = [(place, f"{100 * place * top:.3g}") for place in (0, 0.5, 1)]
    size, parts = len(edges) - 1, []
    for k, (name, values) in enumerate(shares):
        for i, value in enumerate(values.tolist()):
            low, high = ((i + 0.08 + 0.84 * (k + j) / len(shares)) / size for j in (0, 1))
            text = f"{name}, {edges[i]} to {edges[i + 1]}: {100 * value:.2f} %"
            note = f"<title>{escape(text)}</title>"
            if value > 0:
                height = max(value / top, 0.004)
                parts.append(_column(f"s{k % 2}", low, high, 0, height, note, gap=0))
    every = -(-size // 12)  # Names of all would run into one another.
    x_ticks = [(i / size, edges[i]) for i in range(0, size + 1, every)]
    return _svg(title, description, WIDTH, HEIGHT, [_axes(*labels, ticks, x_ticks), *parts])


def scatter(
    title: str,
    description: str,
    counts: np.ndarray,
    marks: Sequence[tuple[float, float, str]],
    ticks: tuple[Sequence[tuple[float, str]], Sequence[tuple[float, str]]],
    labels: tuple[str, str],
) -> str:
    """A map of counts, darker where there are more, with rings on it.

    Args:
        title: of the chart.
        description: what it shows, in a sentence.
        counts: (rows from below, columns).
        marks: places x and y in 0..1 of rings, and what each is.
        ticks: places in 0..1 and names, along x and y.
        labels: of the axes x and y.
    """
    parts, (height, width) = [_axes(*labels, ticks[1], ticks[0])], counts.shape
    top = max(int(counts.max(initial=0)), 1)
    for row, column in np.argwhere(counts):
        number = int(counts[row, column])
        depth = 0.15 + 0.85 * np.log1p(number) / np.log1p(top)
        left, above = _x(column / width), _y((row + 1) / height)
        across, down = _x((column + 1) / width) - left, _y(row / height) - above
        parts.append(
            f'<rect class="heat" x="{left}" y="{above}" width="{across:.1f}" '
            f'height="{down:.1f}" opacity="{depth:.2f}">'
            f"<title>{number:,}</title></rect>"
        )
    for x, y, name in marks:
        note = f"<title>{escape(name)}</title>"
        parts.append(f'<circle class="ring" cx="{_x(x)}" cy="{_y(y)}" r="4.5">{note}</circle>')
    return _svg(title, description, WIDTH, HEIGHT, parts)


def keys(names: Sequence[str]) -> str:
    """Which data set has which colour in `spread`."""
    items = [
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><rect class="s{k % 2}" width="30" '
        f'height="10"/></svg>{escape(name)}</li>'
        for k, name in enumerate(names)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def bars(title: str, description: str, values: Mapping[str, float], notes: Sequence[str]) -> str:
    """A bar for each value, which are 0 or more, with a note behind it."""
    top = max(max(values.values(), default=0), 1e-9)
    room = WIDTH - NAMES - 64
    parts = []
    for i, ((name, value), note) in enumerate(zip(values.items(), notes, strict=True)):
        y, width = i * (BAR + GAP) + 4, max(value / top * room, 1)
        parts.append(
            f'<text x="{NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="right" x="{NAMES}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3"/>'
            f'<text class="value" x="{NAMES + width + 7:.1f}" y="{y + 15}">{escape(note)}</text>'
        )
    return _svg(title, description, WIDTH, len(values) * (BAR + GAP) + 4, parts)


def _svg(title, description, width, height, parts):
    said = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return f'<svg viewBox="0 0 {width} {height}" role="img">{said}{"".join(parts)}</svg>'


def _x(value):
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 1)


def _y(value):
    return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 1)


def _unit_axes(x_label, y_label):
    return _axes(x_label, y_label, ((tick, f"{tick:g}") for tick in TICKS))


def _axes(x_label, y_label, y_ticks, x_ticks=None):
    parts = []
    for value, text in y_ticks:
        parts.append(f'<path class="grid" d="M{_x(0)} {_y(value)}H{_x(1)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_y(value) + 4}" text-anchor="end">{text}</text>')
    for value, text in x_ticks or ((tick, f"{tick:g}") for tick in TICKS):
        parts.append(f'<text x="{_x(value)}" y="{_y(0) + 17}" text-anchor="middle">{text}</text>')
    middle = f'x="{_x(0.5)}" y="{HEIGHT - 6}"'
    parts.append(f'<text {middle} text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(11 {_y(0.5)}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _path(curve):
    """Only where it bends: curves of steps are mostly straight."""
    points = [(_x(x), _y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    kept = [
        point
        for i, point in enumerate(points)
        if not 0 < i < len(points) - 1 or not points[i - 1][1] == point[1] == points[i + 1][1]
    ]
    return "M" + "L".join(f"{x} {y}" for x, y in kept)


def _column(kind, low, high, start, stop, note, gap=1):
    x, width = _x(low) + gap, _x(high) - _x(low) - 2 * gap
    height = _y(start) - _y(stop)
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{_y(stop)}" width="{width:.1f}" '
        f'height="{height:.1f}">{note}</rect>'
    )


def _mark(value):
    return f'<path class="mark" d="M{_x(value)} {_y(0)}V{_y(1)}"/>'
