"""What processes tell each other; commands/test_end_to_end.py has two of them."""

import pickle
import signal
import subprocess
import sys

import jax
import pytest

from jaxdet.training import processes
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
