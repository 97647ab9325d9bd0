"""Trains the toy on one of two processes: python toy_processes.py ADDRESS INDEX FOLDER.

What happens to one process alone is meant for both. Each writes what came of it.
"""

import json
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from training import toy
from training.toy_run import make_run, send, spoil

from jaxdet.training import history, processes
from jaxdet.training.numerics import Numerics
from jaxdet.training.stopping import Stopping

PATIENCE = 2
NUMBERS = dict(response="go_back", name_images=lambda places: [str(p) for p in places])


def main(address, index, folder):
    index, folder = int(index), Path(folder)
    with processes.joined(address, 2, index, heartbeat_seconds=10):
        run = make_run(toy, norm=False, guarded=True, scaled=True)
        told = {
            "gone_back": gone_back(run, folder / "gone_back", index),
            "patience": out_of_patience(run, folder / "patience", index),
            "past": past(folder / f"past_{index}", index),
            "repeated": repeated(run, folder / "repeated", index),
            # Last, since the runtime never forgets a signal.
            "stopped": stopped(run, folder / "stopped", index),
        }
        (folder / f"told_{index}.json").write_text(json.dumps(told))


def gone_back(run, workdir, index):
    """The images of the second process break a loss."""
    broken = spoil(7)
    log = run(workdir, on_batch=own(index, broken if index else None), numbers=Numerics(**NUMBERS))
    return as_told(log)


def out_of_patience(run, workdir, index):
    """The first evaluation is the best; a process that goes on would wait for the other."""

    def fall(variables):
        return {"AP": -float(variables["params"]["head"]["bias"].sum())}

    stopping = Stopping(patience=PATIENCE)
    return as_told(
        run(workdir, on_batch=own(index), eval_every=2, evaluate=fall, stopping=stopping)
    )


def past(workdir, index):
    """The file that the second process sees is older."""
    workdir.mkdir()
    lines = [{"step": step, "eval/AP": step / 8} for step in (2, 4)[: 2 - index]]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = history.read(workdir / "metrics.jsonl", "AP", 9)
    return {"scores": list(found.scores.values()), "rate": found.rate}


def repeated(run, workdir, index):
    """The last evaluation fails on both; then the run is started again."""

    def fail(variables):
        raise OSError("gone")

    try:
        run(workdir, on_batch=own(index), eval_every=0, evaluate=fail)
    except OSError:
        log = run(workdir, on_batch=own(index), eval_every=0, evaluate=lambda variables: {"AP": 2})
    return as_told(log) | {"results": log.outcome.results}


def stopped(run, workdir, index):
    """The second process alone gets a signal, in a run that was resumed, right behind a save."""
    run(workdir, on_batch=own(index), num_steps=6)
    signalled = send(signal.SIGTERM, at=8)

    def slow(n, batch):
        batch = signalled(n, batch) if index else batch
        # The runtime looks once a second: else the run is over by then, on busy cores.
        time.sleep(3 * (n == 8) + (n > 8))
        return batch

    return as_told(run(workdir, on_batch=own(index, slow)))


def own(index, change=None):
    """A process has its half of each batch, changed as it says."""

    def on_batch(n, batch):
        batch = jax.tree.map(lambda x: x[4 * index : 4 * index + 4], batch)
        return change(n, batch) if change else batch

    return on_batch


def as_told(log):
    leaves = jax.tree.leaves(log.state.params)
    return {
        "step": int(log.state.step),
        "stopped": int(log.outcome.stopped),
        "opened": log.closed,
        "parameters": [np.asarray(leaf).ravel().tolist() for leaf in leaves],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
