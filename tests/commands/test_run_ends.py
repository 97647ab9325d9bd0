"""How runs end, and say so."""

import shutil

import numpy as np
import pytest

from jaxdet import model_file
from jaxdet.commands import config_files, telling
from jaxdet.training.loop import Outcome
from jaxdet.training.state import TrainState

NOTHING = "nothing is saved yet"


def test_a_run_that_is_out_of_patience_is_finished(trained, place, run):
    workdir = shutil.copytree(trained.workdir, place.folder / "out_of_patience")
    longer = (f"--workdir={workdir}", "--config.num_steps=48", "--config.min_delta=1.0")
    ended = run("train.py", *longer, "--config.patience=2")
    assert ended.status == 0
    assert (
        "is finished: 24 of 48 steps are done; 2 evaluations were no better than the best "
        "by more than 1 (config.patience); eval.py evaluates it again"
    ) in ended.out


def test_the_weights_that_a_run_began_with_are_not_asked_for_again(trained, place, run):
    workdir = shutil.copytree(trained.workdir, place.folder / "began_with_others")
    gone = ("--config.init_from=gone.pth", "--config.model.backbone.frozen_stages=1")
    ended = run("train.py", f"--workdir={workdir}", *gone)
    assert ended.status == 0 and "is finished: 24 of 24 steps are done" in ended.out
    ended = run("train.py", "--workdir=new", *gone, config=str(workdir / "config.json"))
    assert ended.status == 1 and "config.init_from: there is no file gone.pth" in ended.err


def test_a_finished_run_without_its_log_is_finished(trained, place, run):
    workdir = shutil.copytree(trained.workdir, place.folder / "without_log")
    (workdir / "metrics.jsonl").unlink()
    ended = run("train.py", f"--workdir={workdir}")
    assert ended.status == 0 and "is finished: 24 of 24 steps are done" in ended.out
    assert (workdir / model_file.NAME).is_file()


def test_steps_to_profile_that_are_no_range_are_refused_at_once(run):
    ended = run("train.py", "--workdir=nowhere", "--config.profile_steps=(3, 2)")
    assert ended.status == 1
    assert ended.err.splitlines() == [
        "error: config.profile_steps wants (first, last) with 1 <= first <= last, found (3, 2)"
    ]


@pytest.mark.parametrize("step, saved", [(4, "step 4 is saved, run again to resume"), (0, NOTHING)])
def test_a_stopped_run_says_what_is_saved(capsys, tmp_path, step, saved):
    state = TrainState(np.int32(step), {}, {}, ())
    status = telling.say_outcome(Outcome(state, None, 15), tmp_path, first_process=True)
    assert status == 143 and capsys.readouterr().out == f"stopped by signal 15; {saved}\n"


def test_where_the_first_files_cannot_be_written_those_of_the_run_before_stay(
    trained, place, run, monkeypatch
):
    def refuse(*given):
        raise OSError(28, "No space left on device", "config.json")

    workdir = shutil.copytree(trained.workdir, place.folder / "full")
    monkeypatch.setattr(config_files, "keep", refuse)
    ended = run("train.py", f"--workdir={workdir}", "--config.num_steps=26")
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "error: config.json: No space left on device"
    for name in (model_file.NAME, "report.html", "eval.json", "metrics.jsonl"):
        assert (workdir / name).read_bytes() == (trained.workdir / name).read_bytes()
