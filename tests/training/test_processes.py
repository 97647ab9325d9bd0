"""What processes tell each other; commands/test_end_to_end.py has two of them."""

import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from data.drawn_data import ListSource, make_example
from ml_collections import ConfigDict

from jaxdet.commands import fingerprint, train
from jaxdet.commands.job import Job
from jaxdet.training import processes
from jaxdet.training import state as states
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.going_back import GoingBack
from jaxdet.training.numerics import BrokenRun
from jaxdet.training.writer import Writer
from jaxdet.types import UserError


@pytest.fixture
def beside(monkeypatch):
    """Has another process tell a value, or why it failed, whatever it is asked."""

    def beside(value, reason=None):
        other = pickle.dumps((value, reason))
        monkeypatch.setattr(processes, "_gather_bytes", lambda told: [told, other])
        monkeypatch.setattr(jax, "process_count", lambda: 2)

    return beside


def test_all_values_are_gathered_in_order_and_one_process_has_its_own(beside):
    assert processes.gather(lambda: 0.1) == [0.1]
    beside(0.2)
    assert processes.gather(lambda: 0.1) == [0.1, 0.2]


def test_what_fails_on_one_process_fails_on_all(beside):
    beside(None, "UserError: no proposals")
    with pytest.raises(UserError, match="process 1 failed: UserError: no proposals"):
        processes.gather(lambda: 0.1)
    beside(0.2)
    with pytest.raises(ZeroDivisionError):
        processes.gather(lambda: 1 / 0)


def test_processes_that_differ_are_refused_with_what_differs(beside):
    beside({"config.seed": 0, "steps_done": 8})
    processes.check_alike(config={"seed": 0}, steps_done=8)
    with pytest.raises(UserError, match="config.seed is 1 on process 0, and 0 on process 1"):
        processes.check_alike(config={"seed": 1}, steps_done=8)
    with pytest.raises(UserError, match="steps_done is 4 on process 0, and 8 on process 1"):
        processes.check_alike(config={"seed": 0}, steps_done=4)


@pytest.mark.parametrize("end, printed", [("", "\nthe last line\n"), ("say('ended')", "")])
def test_a_line_outlives_a_process_that_is_killed_and_no_other(end, printed):
    program = f"""
import os, signal
from jaxdet.training.processes import _watched
with _watched() as say:
    say("the last line")
    {end}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL and ended.stderr == printed


@pytest.fixture
def state(toy):
    return states.create(toy.variables(toy.detector()), optax.sgd(0.1))


def test_processes_that_go_back_to_different_steps_are_refused(beside, state, tmp_path):
    class Saved(Checkpoints):
        latest = 4

        def __init__(self):
            pass

        def restore(self, which, *, like):
            return state.replace(step=np.int32(4))

    back = GoingBack(state, Saved(), Writer(tmp_path, active=False))
    beside({"went_back_to": 2})
    with pytest.raises(UserError, match="went_back_to is 4 on process 0, and 2 on process 1"):
        back.go_back(BrokenRun("broken", 5), 1.0)


def test_processes_that_start_with_other_weights_or_other_data_are_refused(beside, state, tmp_path):
    source = ListSource([make_example([[0, 0, 4, 4]])])
    source.annotations = lambda: source.examples
    data = {"train_split": "a", "eval_split": "b", "proposals": f"{tmp_path}/{{split}}.npz"}
    for split in ("a", "b"):
        (tmp_path / f"{split}.npz").write_text(split)
    run = SimpleNamespace(config=ConfigDict({"data": data}), source=source)
    opened = Job(run, source, len, None, tmp_path, True)
    train._check_starts_alike(opened, state)  # Alone it asks nobody.
    told = {"steps_done": 0, "variables": fingerprint.hash_variables(state.variables)}
    for name, split in (("training_data", "a"), ("evaluation_data", "b")):
        described = fingerprint.describe_data(source, f"{tmp_path}/{split}.npz")
        told |= {f"{name}.{key}": value for key, value in described.items()}
    beside(told)
    train._check_starts_alike(opened, state)
    for name in told.keys() - {"steps_done"}:
        beside(told | {name: "other"})
        with pytest.raises(UserError, match=f"{name} is .* on process 0, and 'other' on process"):
            train._check_starts_alike(opened, state)
