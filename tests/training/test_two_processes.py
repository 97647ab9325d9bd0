"""Two processes that train together, where something happens to one of them alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from training.metric_lines import read_lines
from training.toy_processes import PATIENCE
from training.toy_run import make_run, spoil

from jaxdet.training.history import RATE_FACTOR
from jaxdet.training.numerics import Numerics
from jaxdet.training.saved import SavedCheckpoints

# Sums over devices have another order.
CLOSE = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def two(tmp_path_factory, one_device):
    """What each of two processes told that trained the toy; see toy_processes.py."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(__file__).with_name("toy_processes.py")
    path = os.pathsep.join([str(program.parents[1]), *sys.path])
    pair = [
        subprocess.Popen(
            [sys.executable, program, address, str(index), folder],
            env=one_device | {"PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], "\n".join(errors)
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    told = [json.loads((folder / f"told_{index}.json").read_text()) for index in (0, 1)]
    return SimpleNamespace(folder=folder, told=told)


@pytest.fixture(scope="module")
def run(toy):
    """Trains the toy on the devices of this process, as the two train it."""
    return make_run(toy, norm=False, guarded=True, scaled=True)


def test_what_breaks_on_one_process_has_both_go_back(two, run, tmp_path):
    first, second = (told["gone_back"] for told in two.told)
    assert first == second and first["step"] == 12 and first["opened"] == 2
    alone = run(tmp_path, on_batch=spoil(7), numbers=Numerics("go_back"))
    assert read_rates(two.folder / "gone_back") == read_rates(tmp_path) == [(6, 0.5, 8)]
    compare_parameters(first, alone.state)


def test_two_processes_run_out_of_patience_together(two):
    first, second = (told["patience"] for told in two.told)
    assert first == second
    assert first["step"] == 2 * (1 + PATIENCE) and first["stopped"] == 0


def test_two_processes_repeat_an_evaluation_and_add_it_to_the_checkpoint(two):
    first, second = (told["repeated"] for told in two.told)
    assert first == second and first["step"] == 12 and first["results"] == {"AP": 2}
    checkpoints = SavedCheckpoints(two.folder / "repeated" / "checkpoints")
    assert checkpoints.best == 12
    checkpoints.close()


def test_the_past_is_what_the_first_process_sees(two):
    assert [told["past"] for told in two.told] == [{"scores": [0.25, 0.5], "rate": 1.0}] * 2


def test_a_signal_to_one_process_of_a_resumed_run_stops_both_and_one_goes_on(two, run, tmp_path):
    first, second = (told["stopped"] for told in two.told)
    assert first == second and first["stopped"] == signal.SIGTERM
    assert 9 <= first["step"] < 12
    assert (two.folder / "stopped" / "checkpoints" / str(first["step"])).is_dir()
    resumed, whole = run(two.folder / "stopped"), run(tmp_path)
    assert int(resumed.state.step) == 12 and resumed.outcome.results
    jax.tree.map(CLOSE, resumed.state.params, whole.state.params)


def read_rates(workdir):
    lines = [line for line in read_lines(workdir) if RATE_FACTOR in line]
    return [(line["step"], line[RATE_FACTOR], line["broken_step"]) for line in lines]


def compare_parameters(told, state):
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]
    jax.tree.map(CLOSE, [np.float32(leaf) for leaf in told["parameters"]], leaves)
