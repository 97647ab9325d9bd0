"""Lays runs side by side: what differs between them, and what each came to.

    jaxdet compare RUN RUN ... [--out=FILE.html]

RUN is the folder of a run, finished or not; there may be six. Printed are the settings
that are not the same in all of them; of their fingerprints (run.json) the data, code,
versions and devices that are not the same; a table of results; and loss, results of
evaluations and learning rate over steps. With --out a page of HTML has the same, with
curves; it needs no other file. docs/compare.md says what a fingerprint has.
"""

import argparse
import importlib.metadata
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdet.commands import ending, past_runs
from jaxdet.commands.past_runs import PastRun, Row
from jaxdet.commands.text_table import align
from jaxdet.report import comparison
from jaxdet.types import UserError

MOST_STEPS = 12  # Of curves as text.
WIDEST = 44  # Characters of a value; the page has all of them.


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    with ending.in_one_line(argv):
        sys.exit(compare(_parser(argv[0]).parse_args(argv[1:])))


def compare(flags: argparse.Namespace) -> int:
    """Reads the runs, prints what differs, and writes the page; gives the exit status."""
    if not 2 <= len(flags.runs) <= comparison.MOST_RUNS:
        raise UserError(f"compare wants 2 to {comparison.MOST_RUNS} runs, found {len(flags.runs)}")
    paths = [Path(text).expanduser() for text in flags.runs]
    if len(set(map(Path.resolve, paths))) < len(paths):
        raise UserError(f"compare wants different runs, found {' '.join(flags.runs)}")
    runs = [past_runs.read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    tables = {
        "settings": past_runs.differing_settings(runs),
        "fingerprints": past_runs.differing_prints(runs),
        "results": past_runs.results(runs),
    }
    print("\n".join(_describe(runs, tables)))
    if flags.out:
        comparison.write_page(
            Path(flags.out).expanduser(),
            [run.name for run in runs],
            {
                title: [(name, [_cell(title, value) for value in values]) for name, values in rows]
                for title, rows in tables.items()
            },
            _charts(runs),
            importlib.metadata.version("jaxdet"),
        )
        print(f"\ncurves: {flags.out}")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with what is above them where two have the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _describe(runs: Sequence[PastRun], tables: dict[str, list[Row]]) -> list[str]:
    names, lines = [run.name for run in runs], []
    without = [run.name for run in runs if not run.starts]
    for title, rows in tables.items():
        if title == "fingerprints" and len(without) > len(runs) - 2:
            continue  # There are no two of them.
        shared = [row for row in rows if past_runs.ABSENT not in row[1]]
        if shared:
            cells = [
                (name, *(_short(_cell(title, value)) for value in values))
                for name, values in shared
            ]
            lines += [*align((title, *names), cells), ""]
        elif not rows:
            lines += [f"{title}: no difference", ""]
        if len(shared) < len(rows):  # As of other detectors; the page lists them all.
            lines += [f"settings of some of them alone: {_count(rows)}", ""]
    if without:
        lines += [f"without a fingerprint, as of an older jaxdet: {', '.join(without)}", ""]
    return lines + _curves(runs)


def _count(rows: Sequence[Row]) -> str:
    """How many settings not every run has, by section."""
    alone = Counter(
        ".".join(name.split(".")[:2]) for name, values in rows if past_runs.ABSENT in values
    )
    return ", ".join(f"{section} ({count})" for section, count in alone.items())


def _curves(runs: Sequence[PastRun]) -> list[str]:
    """Some steps, and each curve there: a line may end before others do."""
    evaluated = {step for run in runs for step, _ in past_runs.evaluations(run)}
    logged = {step for run in runs for step, _ in past_runs.curve(run, "loss")}
    steps = sorted(evaluated if len(evaluated) > 1 else evaluated | logged)
    if not steps:
        return ["no run has a log yet"]
    count = min(len(steps), MOST_STEPS)
    steps = [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]
    head, columns = ["step"], []
    for chart in _charts(runs):
        for name, points in chart.curves.items():
            if points:
                head.append(f"{chart.title} {name}")
                columns.append(past_runs.at_steps(points, steps, between=chart.continuous))
    rows = [(str(step), *map(_short, row)) for step, *row in zip(steps, *columns, strict=True)]
    return align(head, rows)


def _charts(runs: Sequence[PastRun]) -> list[comparison.Chart]:
    def curves(name: str) -> dict[str, list[tuple[int, float]]]:
        return {run.name: past_runs.curve(run, name) for run in runs}

    metrics = dict.fromkeys(run.metric for run in runs)
    return [
        comparison.Chart("loss", curves("loss"), logarithmic=True),
        *(
            comparison.Chart(metric, curves(f"eval/{metric}"), continuous=False)
            for metric in metrics
        ),
        comparison.Chart("learning rate", curves("learning_rate")),
    ]


def _cell(title: str, value: Any) -> str:
    """A value of a table as text: settings as they are, null among them, all else rounded."""
    return str(value) if title == "settings" and value is not past_runs.ABSENT else _text(value)


def _text(value: Any) -> str:
    if value is None or value is past_runs.ABSENT:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _parser(program: str) -> ending.Parser:
    parser = ending.Parser(program, __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs")
    add("--out", metavar="FILE.html", help="a page with the curves as well")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
