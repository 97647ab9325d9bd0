"""The harness on sides of a few lines, and each benchmark on something tiny."""

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
SIDE = """
import itertools
import os
import threading
import time
import worker

def nap(*, seconds, around=0, fails=False, ends=None):
    print("said by a library")
    if fails:
        raise RuntimeError("it has no naps")
    calls = itertools.count()
    time.sleep(around)

    def start():
        time.sleep(seconds)
        # At the fourth call: the first that is asked for, as naps are long.
        if ends is not None and next(calls) == 3:
            os._exit(7) if ends == 0 else threading.Timer(ends, os._exit, [7]).start()

    def flops():
        time.sleep(around)
        return 5e9

    facts = {"count": 2, "device": "NVIDIA H100", "dtype": "bfloat16"}
    return worker.Work(start, lambda _: None, facts, lambda: 3_000_000_000, flops)

worker.serve({"nap": nap})
"""


@pytest.fixture(scope="module")
def harness():
    sys.path.insert(0, str(FOLDER))
    import harness

    yield harness
    sys.path.remove(str(FOLDER))


@pytest.fixture
def side(harness, tmp_path, monkeypatch):
    """`side(name, seconds)`, of a script that sleeps."""
    (tmp_path / "side.py").write_text(SIDE)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))

    def make(name, seconds, **more):
        case = {"work": "nap", "seconds": seconds, **more}
        return harness.Side(name, str(tmp_path / "side.py"), case)

    return make


def test_sides_are_timed_in_turn_and_laid_beside_each_other(harness, side, tmp_path):
    sides = [side("jaxdet", 0.05), side("torch", 0.1)]
    measured = [("nap", each) for each in harness.compare(sides, rounds=3)]

    (_, ours), (_, theirs) = measured
    assert len(ours.seconds) == 3 and ours.peak_bytes == 3_000_000_000
    assert 0.05 <= ours.median < theirs.median < 1 and ours.facts["calls"] >= 3
    first, second = harness.table(measured, units="naps").splitlines()[2:]
    cells = [cell.strip() for cell in first.split("|")]
    assert cells[1:3] == ["nap", "jaxdet"] and cells[6] == "3.00"
    assert float(cells[5]) == pytest.approx(2 / ours.median, rel=1e-3)
    # 5 GFLOP in a twentieth of a second, of the 989 TFLOP/s of the chip.
    assert float(cells[7]) == pytest.approx(5e9 / ours.median / 1e12, rel=1e-2)
    assert cells[8] == f"{5e9 / ours.median / 989e12:.1%}"
    assert float(second.split("|")[-2]) == pytest.approx(ours.median / theirs.median, abs=0.01)

    times = harness.Measured(sides[0], {}, (5.0, 1.0, 2.0, 4.0, 3.0), 0)
    assert (times.median, times.spread) == (3.0, 2.0)  # From the quarter at 2 to that at 4.

    harness.keep(tmp_path / "kept" / "a.json", measured)
    kept = json.loads((tmp_path / "kept" / "a.json").read_text())["measured"]
    assert [row["side"] for row in kept] == ["jaxdet", "torch"]
    assert kept[0]["seconds"] == list(ours.seconds)


def test_the_first_call_is_timed_without_what_prepares_it_and_counts_its_flops(harness, side):
    (measured,) = harness.compare([side("jaxdet", 0.05, around=2)], rounds=1)

    assert 0.05 <= measured.facts["first_s"] < 2
    assert measured.facts["flops"] == 5e9


def test_a_side_that_fails_is_left_out(harness, side, capfd):
    sides = [side("jaxdet", 0.01), side("torch", 0.01, fails=True)]
    measured = harness.compare(sides, rounds=1)

    assert [each.side.name for each in measured] == ["jaxdet"]
    assert "torch: its process ended with status 1" in capfd.readouterr().err
    with pytest.raises(harness.SideFailedError, match="no side"):
        harness.compare(sides[1:], rounds=1)


@pytest.mark.parametrize("ends", (0, 0.05))  # While it is timed; while the other is.
def test_a_side_that_ends_within_the_rounds_is_left_out(harness, side, capfd, ends):
    sides = [side("torch", 0.3, ends=ends), side("jaxdet", 0.3)]
    measured = harness.compare(sides, rounds=2)

    assert [each.side.name for each in measured] == ["jaxdet"]
    assert len(measured[0].seconds) == 2
    assert "torch: its process ended with status 7" in capfd.readouterr().err
    with pytest.raises(harness.SideFailedError, match="no side"):
        harness.compare(sides[:1], rounds=2)


def test_a_work_without_jaxdet_is_not_compared_with_that_of_another(harness):
    rows = [("a", "jaxdet", 3.0), ("a", "torch", 2.0), ("b", "torch", 1.0)]
    measured = [
        (name, harness.Measured(harness.Side(who, "", {}), {"first_s": 1}, (seconds,), 0))
        for name, who, seconds in rows
    ]
    ratios = [line.split("|")[-2].strip() for line in harness.table(measured).splitlines()[2:]]
    assert ratios == ["", "1.50", ""]


def test_a_model_whose_peer_is_left_out_has_a_table_of_its_own_rows(harness, monkeypatch, capsys):
    # By its file: the tests' own folder of detectors has the name, too.
    detectors = runpy.run_path(FOLDER / "detectors.py")

    def compare(sides, *, rounds):
        left = [each for each in sides if (each.case["model"], each.name) != ("retinanet", "torch")]
        return [harness.Measured(each, {"first_s": 1}, (1.0,), 0) for each in left]

    monkeypatch.setattr(harness, "compare", compare)
    detectors["main"]("predict", "", ["faster_rcnn", "retinanet", "--beside=torch"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("| faster_rcnn", "| retinanet"))]
    assert [row.split("|")[2].strip() for row in rows] == ["jaxdet", "torch", "jaxdet"]


def run_small(name, *flags, json_file):
    """Runs a benchmark; gives the rows that it keeps, and what it prints."""
    command = [sys.executable, FOLDER / name, *flags, f"--json={json_file}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(json_file.read_text())["measured"], done.stdout


def test_the_ops_run_at_toy_size(tmp_path):
    small = "--regions=3 --channels=2 --boxes=5 --size=64x64 --rounds=1".split()
    rows, printed = run_small("ops.py", *small, json_file=tmp_path / "ops.json")
    assert len(rows) == 5 and all(row["median_s"] > 0 for row in rows)
    assert printed.count("| jaxdet |") == 5


def test_a_call_of_the_input_makes_its_batches_and_nothing_for_the_next(harness, monkeypatch):
    import side_input

    read, plain, had = [], side_input.Drawn.__getitem__, cv2.getNumThreads()
    monkeypatch.setattr(
        side_input.Drawn, "__getitem__", lambda self, i: read.append(i) or plain(self, i)
    )
    case = {"size": (64, 96), "target": "small", "batch": 2, "count": 3, "threads": 2}
    try:
        work = side_input.batches(**case)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(had)
    assert work.facts["count"] == 6
    for calls in (1, 2):
        work.wait(work.start())
        time.sleep(0.3)  # For what a thread might still do.
        assert len(read) == 6 * calls


def test_the_input_runs_at_toy_size(tmp_path):
    small = "--picture=64x96 --batch=1 --batches=2 --rounds=1".split()
    rows, _ = run_small("input.py", *small, json_file=tmp_path / "input.json")
    assert len(rows) == 6 and all(row["facts"]["count"] == 2 for row in rows)


def test_a_prediction_is_timed_and_told_apart_by_its_parts(tmp_path, one_device):
    tiny = "backbone.depth=10 backbone.width=8 neck.channels=8 head.channels=8".split()
    settings = [f"model.{setting}" for setting in tiny]
    toy = ["retinanet", "--size=64x64", "--batch=1", "--settings", *settings]
    located = one_device | {"JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "10"}  # By which parts are told.
    run = lambda script, *more: subprocess.run(  # noqa: E731
        [sys.executable, FOLDER / script, *toy, *more],
        **dict(capture_output=True, text=True, cwd=ROOT, env=located),
    )
    timed = run("predict.py", "--rounds=1")
    assert timed.returncode == 0, timed.stderr[-2000:]
    assert "retinanet 1 x 64 x 64 float32 | jaxdet" in timed.stdout

    shown = run("profile_step.py", "--predict", f"--json={tmp_path / 'parts.json'}")
    assert shown.returncode == 0, shown.stderr[-2000:]
    parts = json.loads((tmp_path / "parts.json").read_text())["places"]
    assert any(name.startswith("backbone/") for name in parts)
    assert not any(name.endswith("backward") for name in parts), "a prediction has none"


def test_the_function_of_a_frame_is_the_innermost_of_jaxdet():
    text = """HloModule x

FileNames
1 "/site/jax/core.py"
2 "/site/jaxdet/ops/suppression.py"
3 "/site/jaxdet/ops/contracts.py"

FunctionNames
1 "nms"
2 "checked"
3 "bind"

FileLocations
1 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=3 function_name_id=2 line=8 end_line=8 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

ENTRY main {
  %a.1 = f32[2]{0} add(%x, %x), metadata={op_name="jit(f)/transpose(jvp(f))/add" stack_frame_id=3}
  ROOT %b = f32[2]{0} dot(%a.1), metadata={op_name="jit(f)/Net/backbone/layer1/conv1/dot_general"}
}
"""
    places = runpy.run_path(str(FOLDER / "places.py"))["of_operations"](text)
    assert places == {"a.1": "suppression.nms:7, backward", "b": "backbone/layer1"}
