"""Runs the sides of a benchmark in turn (A B A B), each in its own process, and lays them out.

Numbers of one run are compared, never those of two: whatever else the machine does then
meets both sides. A table shows medians and the middle half of the calls; --json keeps all.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
# Dense products a second, by device and type, as the vendors' data sheets have it.
PEAK_FLOPS = {
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v4": {"bfloat16": 275e12},
}


class Side(NamedTuple):
    """One of those that are compared.

    Attributes:
        name: for the table.
        script: of this folder, which serves its works.
        case: JSON for it; "work" names what it does.
        python: that runs it.
    """

    name: str
    script: str
    case: Mapping[str, Any]
    python: str = sys.executable


class Measured(NamedTuple):
    """What a side took.

    Attributes:
        side: whose it is.
        facts: what it said of itself.
        seconds: of one call, in each round.
        peak_bytes: the most memory in use up to the end.
    """

    side: Side
    facts: Mapping[str, Any]
    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Seconds between the quarter of the quickest and that of the slowest calls."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low


class SideFailedError(RuntimeError):
    """The process of a side ended; its own message stands above."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every benchmark."""
    add = parser.add_argument
    add("--beside", choices=("torch",), help="the peer on the same inputs, in turn")
    add("--rounds", type=int, default=7, help="timed calls of each side (7)")
    add("--json", type=Path, metavar="FILE", help="keep everything that was measured")
    add("--torch_python", default=sys.executable, metavar="PATH", help="that has torch")
    add("--yolox_code", default="", metavar="FOLDER", help="of YOLOX's own code, for its peer")


def compare(sides: Sequence[Side], *, rounds: int) -> list[Measured]:
    """Times the sides, one after the other, in each of the rounds.

    A side that fails, at first or in a later round, is left out with a line; the
    others go on.

    Raises:
        SideFailedError: if none is left.
    """
    with ExitStack() as stack:
        running = []
        for side in sides:
            if started := _unless_it_fails(side, _start, side, stack):
                running.append((side, *started, []))
        for _ in range(rounds):
            for each in list(running):
                side, process, _, answers = each
                if answer := _unless_it_fails(side, _ask, process):
                    answers.append(answer)
                else:
                    running.remove(each)
        if not running:
            raise SideFailedError("no side of the comparison runs")
        return [
            Measured(
                side,
                facts,
                tuple(answer["seconds"] for answer in answers),
                answers[-1]["peak_bytes"],
            )
            for side, _, facts, answers in running
        ]


def table(measured: Sequence[tuple[str, Measured]], *, units: str = "") -> str:
    """A row for each, in markdown: the last column is its time over that of its peer.

    Args:
        measured: with the name of what was done, which a side and its peers share.
        units: of which a call does `facts["count"]`, such as "images": adds a
            column of how many a second.
    """
    head = ["work", "side", "ms", "spread"]
    head += [f"{units}/s"] if units else []
    head += ["peak GB", "TFLOP/s", "of peak", "first s", "jaxdet / it"]
    bases = {name: each for name, each in measured if each.side.name == "jaxdet"}
    rows = []
    for name, each in measured:
        base = bases.get(name)
        row = [name, each.side.name, f"{1e3 * each.median:.4g}", f"{1e3 * each.spread:.2g}"]
        row += [f"{each.facts.get('count', 1) / each.median:.4g}"] if units else []
        flops = each.facts.get("flops")
        rate = flops / each.median if flops else None
        peak = _peak_flops(each.facts)
        row.append(f"{each.peak_bytes / 1e9:.2f}")
        row.append(f"{rate / 1e12:.3g}" if rate else "")
        row.append(f"{rate / peak:.1%}" if rate and peak else "")
        row.append(f"{each.facts['first_s']:.1f}")
        row.append(f"{base.median / each.median:.2f}" if base and each is not base else "")
        rows.append(row)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def keep(path: Path | None, measured: Sequence[tuple[str, Measured]]) -> None:
    """Writes everything as JSON, with the machine; nothing where there is no path."""
    if path is None:
        return
    rows = [
        {
            "name": name,
            "side": each.side.name,
            # Where a peer's code lies says nothing elsewhere.
            "case": {key: value for key, value in each.side.case.items() if key != "code"},
            "facts": dict(each.facts),
            "median_s": each.median,
            "spread_s": each.spread,
            "seconds": each.seconds,
            "peak_bytes": each.peak_bytes,
        }
        for name, each in measured
    ]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "measured": rows}, indent=1) + "\n")


def _unless_it_fails(side, function, *arguments):
    """What the function gives; None, with a line, where it finds that the side's process ended."""
    try:
        return function(*arguments)
    except SideFailedError as error:
        print(f"{side.name}: {error}", file=sys.stderr, flush=True)
        return None


def _start(side, stack):
    """The process of a side, prepared and warm, and what it says of itself.

    It ends with the stack, as its input does.
    """
    environment = dict(os.environ)
    # Two frameworks share the device: neither may take all of its memory at once.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    roots = [str(FOLDER.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    process = subprocess.Popen(
        [side.python, FOLDER / side.script, json.dumps(dict(side.case))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return stack.enter_context(process), _read(process)


def _ask(process):
    # Of a process that has ended reading tells more. Nothing is buffered, which closing the
    # pipe would try to write again.
    with suppress(BrokenPipeError):
        os.write(process.stdin.fileno(), b"again\n")
    return _read(process)


def _read(process):
    line = process.stdout.readline()
    if not line:
        raise SideFailedError(f"its process ended with status {process.wait()}")
    return json.loads(line)


def _peak_flops(facts):
    for device, rates in PEAK_FLOPS.items():
        if device in facts.get("device", ""):
            return rates.get(facts.get("dtype"))
    return None
