"""The page of several runs: what differs between them, and their curves in the same axes."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdet.report import charts, markup, page

MOST_RUNS = charts.STYLES  # Of more, lines could not be told apart.
TICKS = 5  # About so many along an axis.
ROOM = 1.05  # Steps of the axis for each that was done: the last one's number has to stand there.
DOT = 0.008  # Of the axis: half of what a curve of one point is drawn as.
PARTS = {
    "results": "Results",
    "curves": "Curves",
    "settings": "Settings",
    "fingerprints": "Fingerprints",
}


class Chart(NamedTuple):
    """Curves of one value over steps.

    Attributes:
        title: what the value is.
        curves: steps and values of each run, by its name.
        logarithmic: whether equal ratios are as far apart, where no value is below or at 0.
        continuous: whether there is a value between two points, too.
    """

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    logarithmic: bool = False
    continuous: bool = True


def write_page(
    path: str | os.PathLike,
    names: Sequence[str],
    tables: Mapping[str, markup.Rows],
    figures: Sequence[Chart],
    version: str,
) -> None:
    """Writes the page in one move.

    Args:
        path: of the file.
        names: of the runs, `MOST_RUNS` at most.
        tables: rows of text for each of `PARTS` but the curves.
        figures: the curves; those without any point are left out.
        version: of jaxdet.
    """
    said = {
        "results": "What each run came to. Times are those of steps, without evaluations.",
        "settings": "All settings that are not the same in all runs.",
        "fingerprints": "Data, code, versions and devices that are not the same in all runs.",
    }
    body = {
        name: _section(name, names, tables[name], said[name]) for name in PARTS if name != "curves"
    }
    drawn = [_figure(chart, names) for chart in figures if any(chart.curves.values())]
    body["curves"] = markup.section(
        "curves", PARTS["curves"], markup.charts(drawn), "Each run over its steps."
    )
    heading = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    text = page.lay_out(
        f"{heading}: comparison",
        heading,
        f"{len(names)} runs side by side",
        PARTS,
        [body[name] for name in PARTS],
        f"Made by jaxdet {version}.",
    )
    page.write(path, text)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers about as far apart as `TICKS` in the range, which must not be empty."""
    rough = (high - low) / (TICKS - 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _section(name, names, rows, says):
    body = markup.table(("", *names), rows) if rows else "<p>No difference.</p>"
    return markup.section(name, PARTS[name], body, says)


def _figure(chart, names):
    points = [point for curve in chart.curves.values() for point in curve]
    end = ROOM * max(max(step for step, _ in points), 1)
    place, marks = _axis([value for _, value in points], chart.logarithmic)
    lines = []
    for style, name in enumerate(names):
        if curve := chart.curves.get(name):
            x, y = np.array([s for s, _ in curve]) / end, place([value for _, value in curve])
            if len(curve) == 1:
                x, y = np.concatenate([x - DOT, x + DOT]), np.concatenate([y, y])
            lines.append(charts.Line(name, x, y, f"k{style}"))
    picture = charts.lines(
        chart.title,
        f"{chart.title} over steps of {', '.join(line.name for line in lines)}",
        lines,
        labels=("step", chart.title),
        ticks=([(step / end, f"{step:,.0f}") for step in ticks(0, end)], marks),
    )
    last = {line.name: f"{chart.curves[line.name][-1][1]:.4g}" for line in lines}
    caption = "The last value stands beside each name."
    return markup.figure(chart.title, picture + charts.legend(lines, last), caption)


def _axis(values, logarithmic):
    """A function from values to places in 0..1, and the ticks."""
    low, high = min(values), max(values)
    logarithmic = logarithmic and low > 0
    low = low if logarithmic else min(low, 0)
    if not high > low:  # A straight line lies in the middle.
        low, high = (low / 2, low * 2) if logarithmic else (low - 0.5, high + 0.5)
    move = np.log if logarithmic else np.asarray
    first, last = float(move(low)), float(move(high))

    def place(values):
        return (move(np.asarray(values, float)) - first) / (last - first)

    marks = _log_ticks(low, high) if logarithmic else ticks(low, high)
    return place, [(float(place(value)), f"{value:.6g}") for value in marks]


def _log_ticks(low, high):
    """Of 1, 2 and 5 times the powers of ten, or round numbers where too few of them lie there."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = len(powers) > TICKS
    found = [m * 10.0**p for p in powers for m in ((1,) if many else (1, 2, 5))]
    found = [value for value in found if low <= value <= high]
    return found if len(found) > 1 else [value for value in ticks(low, high) if value > 0]
