"""Trains a detector: python train.py --config=FILE [--workdir=FOLDER] [--config.SETTING=VALUE].

Run again on the same workdir, it resumes; finished, it says so. Then --config may
be left out: the run goes on with the settings that it used last.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from jaxdet import loading
from jaxdet.commands import command_line, config_files, determinism, fingerprint, job
from jaxdet.training import lock, processes, watching
from jaxdet.training.state import TrainState
from jaxdet.types import UserError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    command_line.run(train, argv or sys.argv, usage=__doc__, define=_define_flags)


def train(arguments: command_line.Arguments) -> int:
    """Trains, or resumes; gives the exit status."""
    config, workdir, flags = arguments
    if flags.against:
        return _compare(config, flags.against)
    watching.check_profile_steps(config.profile_steps)
    determinism.ask_for(config)
    with _join(flags, config.heartbeat_seconds) if flags.distributed else nullcontext():
        first_process = jax.process_index() == 0
        with lock.owned(workdir, active=first_process):
            return _train(config, workdir, first_process)


def _train(config: ConfigDict, workdir: Path, first_process: bool) -> int:
    """Trains, or resumes, in a folder that nobody else writes to."""
    if job.has_begun(workdir):
        config = config_files.with_classes_of_run(config, workdir)
    loading.keep_programs(config.keep_programs)
    opened = job.open_job(config, workdir, first_process)
    done = opened.checkpoints.latest or 0
    _check_alike(opened.run.config, done, len(opened.run.source))
    finished = job.why_finished(opened, done)
    if finished:
        job.leave_model(opened)
        opened.checkpoints.close()
        print(f"{workdir} is finished: {finished}; eval.py evaluates it again")
        return 0
    start = job.find_start(opened, done)
    _check_starts_alike(opened, start.state)
    return job.work(opened, start)


def _compare(config: ConfigDict, against: str) -> int:
    """Prints the settings in which two configs differ."""
    try:
        other = command_line.finish(config_files.read(against)[0])
    except UserError as error:
        raise UserError(f"--against: {error}") from error
    found = config_files.differences(other.to_dict(), config.to_dict())
    for key, (before, now) in found.items():
        print(f"{key}: {before} -> {now}")
    print(f"{len(found)} settings differ from {against}")
    return 0


def _join(flags: argparse.Namespace, heartbeat_seconds: int) -> AbstractContextManager:
    return processes.joined(
        flags.coordinator,
        flags.num_processes,
        flags.process_id,
        heartbeat_seconds=heartbeat_seconds,
    )


def _check_alike(config: ConfigDict, done: int, num_images: int) -> None:
    """Checks that all processes of a run have the same before them; paths are each one's own."""
    settings = fingerprint.without_paths(config.to_dict())
    processes.check_alike(config=settings, steps_done=done, training_images=num_images)


def _check_starts_alike(opened: job.Job, state: TrainState) -> None:
    """Checks that all processes go on from the same state, to learn and find the same objects."""
    if jax.process_count() > 1:
        config = opened.run.config
        describe = partial(fingerprint.describe_split, config)
        processes.check_alike(
            steps_done=int(state.step),
            variables=fingerprint.hash_variables(state.variables),
            training_data=describe(config.data.train_split, opened.run.source),
            evaluation_data=describe(config.data.eval_split, opened.eval_source),
        )


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--against", metavar="FILE", help="print what differs from this config, and end")
    add("--distributed", action="store_true", help="join the other processes of the run first")
    # On a cluster that JAX knows (TPU pods, Slurm, ...) these three are found by themselves.
    add("--coordinator", metavar="HOST:PORT", help="of process 0")
    add("--num_processes", type=int, metavar="N", help="processes of the run")
    add("--process_id", type=int, metavar="I", help="which of them this is")
