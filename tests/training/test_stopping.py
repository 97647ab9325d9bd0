import json
import math

import jax
import numpy as np
import pytest
from training.toy_run import make_run

from jaxdet.training import history, stopping
from jaxdet.training.stopping import OUT_OF_TIME, Stopping


@pytest.fixture(scope="module")
def run(toy):
    return make_run(toy)


@pytest.mark.parametrize(
    "scores, patience, min_delta, expected",
    [
        ((), 1, 0, False),
        ((0.5,), 1, 0, False),
        ((0.5, 0.5), 1, 0, True),
        ((0.5, 0.4, 0.3), 3, 0, False),
        ((0.5, 0.4, 0.3, 0.2), 3, 0, True),
        ((0.5, 0.4, 0.6, 0.5), 2, 0, False),
        ((0.5, 0.55, 0.59), 2, 0.1, True),  # No single one is so much better,
        ((0.5, 0.55, 0.65), 2, 0.1, False),  # but this one is, than the best before.
        ((0.5, math.nan, math.nan), 2, 0, True),
        ((math.nan, math.nan), 2, 0, True),
        ((0.5,) * 99, 0, 0, False),
    ],
)
def test_patience_counts_evaluations_without_an_improvement(scores, patience, min_delta, expected):
    assert Stopping(patience, min_delta).out_of_patience(scores) == expected


@pytest.mark.parametrize("stopped_at", [None, 5])
def test_a_run_out_of_patience_is_finished_also_if_it_was_resumed(run, tmp_path, stopped_at):
    def fall(variables):
        return {"AP": -float(variables["params"]["head"]["bias"].sum())}

    settings = dict(eval_every=2, evaluate=fall)
    if stopped_at:
        run(tmp_path, **settings, num_steps=stopped_at)
    log = run(tmp_path, **settings, stopping=Stopping(patience=3))
    # The first is the best; of the run that ended at 5 that one was evaluated, too.
    assert int(log.state.step) == (6 if stopped_at else 8)
    assert log.outcome.stopped == 0 and log.outcome.results
    past = history.read(tmp_path / "metrics.jsonl", "AP", 99)
    assert Stopping(patience=3).out_of_patience(past.scores.values())


def test_patience_may_end_where_an_evaluation_had_failed(run, tmp_path):
    scores = iter([3, 2, OSError("gone"), 1])

    def fall(variables):
        score = next(scores)
        if isinstance(score, OSError):
            raise score
        return {"AP": score}

    settings = dict(eval_every=2, evaluate=fall, stopping=Stopping(patience=2))
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, **settings)
    log = run(tmp_path, **settings)
    assert int(log.state.step) == 6 and log.outcome.results == {"AP": 1}


def test_a_run_out_of_time_saves_and_goes_on_to_the_same_bits(run, tmp_path):
    whole = run(tmp_path / "whole")
    late = run(tmp_path / "late", stopping=Stopping(max_hours=1e-9))
    assert late.outcome.stopped == OUT_OF_TIME and int(late.state.step) == 1
    resumed = run(tmp_path / "late", stopping=Stopping(max_hours=1e3))
    assert resumed.outcome.stopped == 0
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


def test_the_time_counts_from_the_start_of_the_process(monkeypatch, tmp_path):
    age = stopping.seconds_of_process()
    assert age > 0
    monkeypatch.setattr(
        stopping.time, "clock_gettime", lambda clock: (_ for _ in ()).throw(OSError)
    )
    assert 0 < stopping.seconds_of_process() < age, "else from the start of the module"


def test_the_past_of_a_run_is_read_from_its_log(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert history.read(file, "AP", 9) == history.NO_HISTORY
    lines = [
        {"step": 2, "eval/AP": 0.25, "eval/AP50": 0.5},
        {"step": 3, "loss": 1.0},
        {"step": 3, "rate_factor": 0.5},
        {"step": 4, "eval/AP": None},
        {"step": 6, "eval/AP": 0.75, "rate_factor": 0.25},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1, "ev')
    found = history.read(file, "AP", 5)
    assert found.rate == 0.5 and list(found.scores) == [2, 4]
    assert found.scores[2] == 0.25 and math.isnan(found.scores[4])
    assert list(found.until(3).scores) == [2]


def test_what_is_no_number_is_no_score(tmp_path):
    lines = [{"step": 2, "eval/AP": "x", "rate_factor": None}, {"step": 4, "eval/mAP": 0.5}]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = history.read(file, "AP", 9)
    assert math.isnan(found.scores[2]) and found.rate == 1
    assert found.evaluated == {2, 4} and list(found.scores) == [2]
    assert found.until(3).evaluated == {2}
    assert history.as_score(np.float32(0.5)) == 0.5
