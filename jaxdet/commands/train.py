"""Trains a detector: python train.py --config=FILE [--workdir=FOLDER] [--config.SETTING=VALUE].

Run again on the same workdir, it resumes; finished, it says so. Then --config may
be left out: the run goes on with the settings that it used last.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from jaxdet import loading, model_file
from jaxdet.commands import (
    batch_log,
    command_line,
    config_files,
    opening,
    report,
    results,
    run_model,
    schema,
)
from jaxdet.data import inventory
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import lock, loop, processes, state, steps
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.writer import Writer
from jaxdet.types import Source, UserError

FIRST_WEIGHTS_NAME = "init_from.txt"  # In the workdir: what became of each array.


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    command_line.run(train, argv or sys.argv, usage=__doc__, define=_define_flags)


def train(arguments: command_line.Arguments) -> int:
    """Trains, or resumes; gives the exit status."""
    config, workdir, flags = arguments
    if flags.against:
        return _compare(config, flags.against)
    with _join(flags, config.heartbeat_seconds) if flags.distributed else nullcontext():
        first_process = jax.process_index() == 0
        with lock.owned(workdir, active=first_process):
            return _train(config, workdir, first_process)


def _train(config: ConfigDict, workdir: Path, first_process: bool) -> int:
    """Trains, or resumes, in a folder that nobody else writes to."""
    if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
        config = config_files.with_classes_of_run(config, workdir)
    loading.keep_programs(config.keep_programs)
    run = opening.open_training(config)
    config, detector = run.config, run.detector
    eval_source = opening.open_source(config, config.data.eval_split, run.class_names)
    create = partial(state.create, tx=run.tx, ema=config.ema_decay > 0)
    like = jax.eval_shape(create, run.variables)

    evaluation = EVALUATIONS[config.evaluation.name]
    checkpoints = Checkpoints(workdir / "checkpoints", metric=evaluation.BEST)
    done = checkpoints.latest or 0
    _check_alike(config, done, len(run.source))
    if done >= config.num_steps:
        predict = results.make_predict(config, detector)
        _leave_model(run, eval_source, checkpoints, predict, workdir, first_process)
        checkpoints.close()
        print(
            f"{workdir} is finished: {done} of {config.num_steps} steps are done; "
            "eval.py evaluates it again"
        )
        return 0
    lines = ()
    if done:
        start = checkpoints.restore("latest", like=like)
        done = int(start.step)  # Of the one before, where the latest was damaged.
        processes.check_alike(steps_done=done)
        origin = f"resuming after step {done}"
        for change in config_files.changes_of_run(config, config_files.last_saved(workdir)):
            print(f"warning: the run had another config so far: {change}", file=sys.stderr)
    else:
        variables, origin, lines = opening.first_variables(run)
        start = create(variables)

    predict = results.make_predict(config, detector)
    batches = opening.train_batches(config, run.source, done)
    writer = Writer(workdir, start_step=done, num_steps=config.num_steps, active=first_process)
    if first_process:
        # Of a shorter run in this folder; what is best now is not known yet.
        for name in (model_file.NAME, report.NAME):
            (workdir / name).unlink(missing_ok=True)
        config_files.keep(config, workdir, done)
        print(f"settings that are not the defaults (all: {config_files.last_saved(workdir)}):")
        for line in config_files.describe_differences(config):
            print(textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    "))
        if lines:
            (workdir / FIRST_WEIGHTS_NAME).write_text("\n".join(lines) + "\n")
            origin = f"{origin} (each in {workdir / FIRST_WEIGHTS_NAME})"
        _say_data(run, eval_source)
        print(f"{origin}; {len(run.source)} training images; writing to {workdir}")
    try:
        outcome = loop.train(
            steps.put_state(start),
            step=steps.pmap_train_step(
                detector,
                run.tx,
                run.schedule,
                seed=config.seed,
                final_start=opening.final_start(config),
                ema_decay=config.ema_decay,
                ema_ramp=config.ema_ramp,
                heights=config.multiscale_heights,
                height_every=config.multiscale_every,
            ),
            batches=batch_log.logged(batches, run, workdir, done)
            if config.log_batches
            else batches,
            evaluate=partial(results.evaluate, config, eval_source, predict),
            draw=partial(results.draw, config, detector, eval_source, predict)
            if first_process
            else lambda *_: [],  # They would be thrown away.
            writer=writer,
            checkpoints=checkpoints,
            num_steps=config.num_steps,
            eval_every=config.eval_every,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
            pictures_every=config.pictures_every,
            final_steps=config.final_steps,
            final_eval_every=config.final_eval_every,
            reload_best_at=config.optimizer.milestones if config.reload_best_at_milestones else (),
        )
        writer.close()
        if outcome.results and first_process:  # Whatever can't be written behind this.
            print(results.format_table(config, outcome.results))
        checkpoints.check_saved()
        if not outcome.signal:
            _leave_model(run, eval_source, checkpoints, predict, workdir, first_process)
    finally:
        writer.close()
        checkpoints.close()
    return _say_outcome(workdir, outcome, batches)


def _leave_model(
    run: opening.Run,
    source: Source,
    checkpoints: Checkpoints,
    predict: Callable,
    workdir: Path,
    first_process: bool,
) -> None:
    """Writes the model file and the report of a run whose steps are done, where they are missing.

    A kill in between leaves neither or one of them to the next start.
    """
    if not (workdir / model_file.NAME).is_file():
        run_model.write(run, source, checkpoints, workdir, active=first_process)
    wanted = run.config.report and report.can_report(run.detector, run.class_names)
    if first_process and wanted and not (workdir / report.NAME).is_file():
        best = model_file.read(workdir / model_file.NAME)[0]
        out, split = workdir / report.NAME, run.config.data.eval_split
        report.write(run.config, best, source, predict, out, name=workdir.name, split=split)


def _say_data(run: opening.Run, eval_source: Source) -> None:
    """Prints what there is to learn and to find, and warns of what is probably a mistake."""
    data = run.config.data
    splits = {
        data.train_split: run.to_learn,
        data.eval_split: opening.take_inventory(run.config, eval_source),
    }
    splits = {split: found for split, found in splits.items() if found}
    if splits:
        print(inventory.table(splits, run.class_names))
    for split, found in splits.items():
        for sentence in inventory.warnings(found, split, run.class_names):
            print(f"warning: {sentence}", file=sys.stderr)


def _say_outcome(workdir: Path, outcome: loop.Outcome, batches: object) -> int:
    for sentence in losses_of_data(batches):
        print(sentence)
    if outcome.signal:
        step = int(outcome.state.step)
        print(f"stopped by signal {outcome.signal}; step {step} is saved, run again to resume")
        return 128 + outcome.signal
    if jax.process_index() == 0:
        print(f"pictures:    {workdir / 'pictures'}")
        print(f"checkpoints: {workdir / 'checkpoints'}")
        print(f"best model:  {workdir / model_file.NAME}")
        if (workdir / report.NAME).is_file():
            print(f"report:      {workdir / report.NAME}")
        print(f"TensorBoard: tensorboard --logdir={workdir}")
    return 0


def losses_of_data(loader: object) -> list[str]:
    """Sentences about the images and objects that a run could not use."""
    sentences = []
    if loader.unreadable:
        sentences.append(f"{loader.unreadable} times an unreadable image gave way to the next")
    if loader.left_out:
        sentences.append(f"{loader.left_out} times an object found no slot in data.max_boxes")
    for done, count in loader.put_right.counts.items():
        sentences.append(f"{count} times a picture was put right: {done}")
    return sentences


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
    values = config.to_dict()
    keys = dict(schema.leaves(schema.describe(values)))
    settings = {path: v for path, v in schema.leaves(values) if not keys[path].is_path}
    processes.check_alike(config=settings, steps_done=done, training_images=num_images)


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--against", metavar="FILE", help="print what differs from this config, and end")
    add("--distributed", action="store_true", help="join the other processes of the run first")
    # On a cluster that JAX knows (TPU pods, Slurm, ...) these three are found by themselves.
    add("--coordinator", metavar="HOST:PORT", help="of process 0")
    add("--num_processes", type=int, metavar="N", help="processes of the run")
    add("--process_id", type=int, metavar="I", help="which of them this is")
