"""The command `compare`: what differs between runs, and what they came to."""

import json
import math
import re
import shutil
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdet.commands import compare, past_runs
from jaxdet.report import comparison

DOCS = Path(__file__).parents[2] / "docs" / "results"
START = {
    "step": 0,
    "time": "2026-01-01T00:00:00Z",
    "config": "c0",
    "data": {"train": {"images": 8, "annotations": "d0"}},
    "versions": {"jax": "0.10.2"},
    "devices": {"kinds": ["cpu"], "count": 1},
    "xla_flags": "",
}


def make_run(folder, lines=(), starts=(), **settings):
    """The folder of a run of the tiny settings, without its checkpoints."""
    folder.mkdir(parents=True)
    values = {
        "detector": "rpn",
        "num_steps": 40,
        "batch_size": 4,
        "data": {"source": "shapes", "root": "there", "canvas": [64, 64], "max_boxes": 4},
        "optimizer": {"learning_rate": 0.1, "base_batch_size": 4},
        "evaluation": {"name": "proposals"},
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if starts:
        (folder / "run.json").write_text(json.dumps({"starts": list(starts)}))
    return folder


def lines_of(*losses, results=()):
    lines = [
        {"step": 10 * (i + 1), "loss": loss, "images_per_second": 1.0, "learning_rate": 0.1}
        for i, loss in enumerate(losses)
    ]
    lines += [{"step": s, "eval/AR": v, "eval/AR100": v / 2, "eval/images": 8} for s, v in results]
    return sorted(lines, key=lambda line: line["step"])


@pytest.fixture
def run(capfd):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            compare.main(["jaxdet compare", *map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=ended.value.code, out=out, err=err)

    return run


@pytest.fixture
def pair(tmp_path):
    """Two runs: the second has another rate, was resumed on other devices, and was stopped."""
    results = [(10, 0.3), (20, 0.3), (40, 0.2)]  # Of equals the later one is kept.
    first = lines_of(4.0, 3.0, 2.5, 2.0, results=results)
    first[0] |= {"first_step_seconds": 7.0}
    optimizer = {"learning_rate": 0.2, "base_batch_size": 4}
    resumed = START | {"step": 20, "devices": {"kinds": ["cpu"], "count": 2}}
    data = {"train": {"images": 9, "annotations": "d1"}}
    return (
        make_run(tmp_path / "a", first, [START]),
        make_run(
            tmp_path / "b",
            lines_of(4.0, None, results=[(20, 0.4)]),
            [START | {"data": data}, resumed | {"data": data}],
            optimizer=optimizer,
        ),
    )


def rows_of(text):
    """The lines of the tables, by their first cell."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_what_differs_is_listed_and_what_is_the_same_is_not(run, pair):
    result = run(*pair)
    rows = rows_of(result.out)

    assert (result.status, result.err) == (0, "")
    assert rows["optimizer.learning_rate"] == ["0.1", "0.2"]
    assert not [name for name in rows if name.startswith(("data.", "model."))]
    assert rows["data train images"] == ["8", "9"]
    assert rows["data train annotations"] == ["d0", "d1"]
    assert rows["devices count"] == ["1", "1, then 2"]
    assert not rows.keys() & {"versions jax", "config", "xla flags"}


def test_a_setting_that_is_null_is_a_value_and_one_that_is_not_there_is_none(run, tmp_path):
    runs = [
        make_run(tmp_path / name, detector="retinanet", model={"pixels": {"padding": padding}})
        for name, padding in (("a", None), ("b", 114.0))
    ]
    out = tmp_path / "page.html"
    result = run(*runs, f"--out={out}")

    assert rows_of(result.out)["model.pixels.padding"] == ["None", "114.0"]
    assert "of some of them alone" not in result.out
    assert re.search(r"model\.pixels\.padding<.*>None<.*>114\.0<", out.read_text())

    averaged = [
        make_run(tmp_path / name, ema_decay=k) for name, k in (("c", 0.9998), ("d", 0.99984))
    ]
    assert rows_of(run(*averaged).out)["ema_decay"] == ["0.9998", "0.99984"]

    settings = {"a": {"x": None, "y": 1, "z": None}, "b": {"y": None, "z": None}}
    runs = [past_runs.PastRun(name, had, [], [], "AR") for name, had in settings.items()]
    assert past_runs.differing_settings(runs) == [
        ("x", [None, past_runs.ABSENT]),
        ("y", [1, None]),
    ]


def test_results_are_best_and_last_steps_and_speed(run, pair):
    rows = rows_of(run(*pair).out)

    assert rows["steps done"] == ["40", "20"] and rows["steps in all"] == ["40", "40"]
    assert rows["last loss"] == ["2", "4"], "a loss that is not finite is none"
    assert rows["best AR"] == ["0.3", "0.4"] and rows["last AR"] == ["0.2", "0.4"]
    assert rows["of step"] == ["20", "20"] and rows["AR100"] == ["0.15", "0.2"]
    assert "images" not in rows, "a count is no result"
    # An image a second, 4 a step: 39 of them behind the first one's 7 s, and 20.
    assert rows["seconds of steps"] == [str(7 + 39 * 4), "80"]
    assert rows["starts"] == ["1", "2"]


def test_curves_stand_side_by_side_where_each_has_a_value(run, pair):
    *_, head, _, at_20, at_40 = run(*pair).out.splitlines()

    assert re.split(r"\s{2,}", head)[:5] == ["step", "loss a", "loss b", "AR a", "AR b"]
    assert at_20.split()[:5] == ["20", "3", "–", "0.3", "0.4"], "b's loss ends with step 10"
    assert at_40.split()[:5] == ["40", "2", "–", "0.2", "–"]


def test_the_page_has_the_curves_of_all_and_asks_nothing_of_the_network(run, pair, tmp_path):
    out = tmp_path / "pages" / "page.html"
    assert run(*pair, f"--out={out}").status == 0
    text = out.read_text()
    charts = [xml.etree.ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", text)]
    charts = {chart[0].text: chart for chart in charts if chart.get("role")}

    assert charts.keys() == {"loss", "AR", "learning rate"}
    assert "http:" not in text and "https:" not in text
    assert "devices count" in text and "1, then 2" in text
    for chart in charts.values():
        lines = {e.get("class"): e for e in chart.iter("path") if e.get("class") != "grid"}
        assert lines.keys() == {"line k0", "line k1"}
        for line in lines.values():
            points = np.array(re.findall(r"[\d.]+", line.get("d")), float).reshape(-1, 2)
            assert len(points) > 1 and (points >= 0).all()
            assert (points <= [comparison.charts.WIDTH, comparison.charts.HEIGHT]).all()


def test_runs_without_a_fingerprint_and_of_other_detectors_are_compared(run, tmp_path):
    for name in ("bccd", "bccd_yolox"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(DOCS / f"{name}_config.json", folder / "config.json")
        shutil.copy(DOCS / f"{name}_metrics.jsonl", folder / "metrics.jsonl")
    result = run(tmp_path / "bccd", tmp_path / "bccd_yolox")
    rows = rows_of(result.out)

    assert (result.status, result.err) == (0, "")
    assert rows["detector"] == ["faster_rcnn", "yolox"]
    assert "model.roi (" in result.out and not [r for r in rows if r.startswith("model.roi.")]
    assert rows["best AP"] == ["0.5662", "0.6243"], "as docs/results.md has them"
    assert "without a fingerprint, as of an older jaxdet: bccd, bccd_yolox" in result.out
    assert "fingerprints" not in rows


def test_a_run_that_has_not_logged_yet_is_compared(run, tmp_path):
    young = make_run(tmp_path / "young")
    (young / "metrics.jsonl").unlink()
    cut = make_run(tmp_path / "cut", lines_of(1.0))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # It is being written.
    result = run(young, cut)

    assert (result.status, result.err) == (0, "")
    assert rows_of(result.out)["steps done"] == ["0", "10"]
    assert run(young, make_run(tmp_path / "other" / "young")).status == 0


@pytest.mark.parametrize(
    "settings, values, commit",
    [
        ({"batch_size": "4"}, {}, "c"),
        ({"batch_size": [4]}, {}, "c"),
        ({"evaluation": {"name": []}}, {}, "c"),
        ({}, {"images_per_second": 0}, "c"),
        ({}, {"loss": math.inf, "first_step_seconds": math.nan}, "c"),
        ({}, {"learning_rate": 10**400}, "c"),
        ({}, {}, 7),
    ],
)
def test_what_another_program_wrote_into_a_run_is_compared(run, tmp_path, settings, values, commit):
    lines = lines_of(4.0, 3.0)
    odd = [lines[0] | values, lines[1]]
    runs = [
        make_run(tmp_path / "a", lines, [START | {"code": {"commit": "c"}}]),
        make_run(tmp_path / "b", odd, [START | {"code": {"commit": commit}}], **settings),
    ]
    result = run(*runs, f"--out={tmp_path / 'page.html'}")

    assert (result.status, result.err) == (0, "")
    rows = rows_of(result.out)
    assert rows["last loss"] == ["3", "3"] and rows["seconds of steps"][0] == "80"


@pytest.mark.parametrize(
    "names, line",
    [
        (["a"], "compare wants 2 to 6 runs, found 1"),
        (["a"] * 7, "compare wants 2 to 6 runs, found 7"),
        (["a", "./a"], "compare wants different runs"),
        (["a", "nowhere"], "nowhere is no run: no such folder"),
        (["a", "empty"], "empty is no run: it has no config.json"),
        (["a", "broken"], "metrics.jsonl: line 1 is damaged"),
        (["a", "b", "--uot=x"], "did you mean --out?"),
    ],
)
def test_a_mistake_is_one_line(names, line, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "broken"):
        make_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text("no json\n{}\n")
    result = run(*names)

    assert (result.status, result.out) == (1, "")
    assert line in result.err and result.err.count("\n") == 1


def test_ticks_are_round_and_within_the_range():
    assert comparison.ticks(0, 1000) == [0, 500, 1000]
    np.testing.assert_allclose(comparison.ticks(0, 0.66), [0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(comparison.ticks(-0.5, 0.5), [-0.5, 0, 0.5])
    np.testing.assert_allclose(comparison._log_ticks(0.5, 11), [0.5, 1, 2, 5, 10])
    assert all(0 < tick for tick in comparison._log_ticks(3.1, 3.9))


def test_a_value_between_two_lines_is_the_one_before():
    points = [(10, 1.0), (20, 2.0)]
    assert past_runs.at_steps(points, [5, 15, 20, 25], between=True) == [None, 1.0, 2.0, None]
    assert past_runs.at_steps(points, [5, 15, 20, 25], between=False) == [None, None, 2.0, None]
