"""Runs of the tiny config, in processes of their own or in this one."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdet import interop
from jaxdet.commands import command_line, evaluate, opening, train

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "training" / "tiny_config.py"
COMMANDS = {"train.py": train.main, "eval.py": evaluate.main}


@pytest.fixture(scope="module")
def place(tmp_path_factory, one_device):
    """A folder with the data, and an environment where TensorFlow leaves a trace."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share the folder, and so the run in it.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "end_to_end"
    trap = folder / "trap"
    trap.mkdir(parents=True, exist_ok=True)
    (trap / "tensorflow.py").write_text(
        f"open({str(folder / 'tensorflow_was_imported')!r}, 'w').close()\nraise ImportError\n"
    )
    environment = {
        **one_device,
        "PYTHONPATH": str(trap),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # The runs compile the same programs.
    }
    return SimpleNamespace(folder=folder, environment=environment)


@pytest.fixture(scope="module")
def start(place):
    """Starts a command on a workdir as a process of its own."""

    def start(command, workdir, *arguments, devices=1, config=CONFIG):
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / command),
                *([f"--config={config}"] if config else []),
                f"--workdir={workdir}",
                f"--config.data.root={place.folder / 'data'}",
                *arguments,
            ],
            cwd=ROOT,
            env=place.environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def trained(place, start):
    """An unbroken run."""
    workdir, record = place.folder / "unbroken", place.folder / "unbroken.json"
    with (place.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            process = start("train.py", workdir, "--config.report=True")
            printed, errors = process.communicate()
            assert process.returncode == 0, errors
            record.write_text(json.dumps({"out": printed, "err": errors}))
    return SimpleNamespace(workdir=workdir, **json.loads(record.read_text()))


@pytest.fixture
def configure():
    """The tiny config with some overrides."""

    def configure(*arguments):
        return command_line.read(["", f"--config={CONFIG}", *arguments]).config

    return configure


@pytest.fixture(scope="module")
def weights(place):
    """A file of a tiny backbone as torchvision names it, and the variables in it."""
    shapes = opening.open_run(command_line.read(["", f"--config={CONFIG}"]).config).variables
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) / 10, shapes)
    tensors = interop.to_torch(variables, names="resnet")
    file = place.folder / "backbone.npz"
    np.savez(file, **tensors, **{"fc.bias": np.zeros(5)})
    return SimpleNamespace(file=file, variables=variables, tensors=tensors)


@pytest.fixture
def run(place, capfd):
    """Runs a command in this process up to its end; gives its status and outputs."""

    def run(command, *arguments, config=CONFIG, root=place.folder / "data"):
        named = [f"--config={config}"] if config else []
        rooted = [f"--config.data.root={root}"] if config == CONFIG else []
        with pytest.raises(SystemExit) as exit:
            COMMANDS[command]([command, *named, *rooted, *arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=exit.value.code, out=out, err=err)

    return run
