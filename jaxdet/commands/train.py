"""Trains a detector: python train.py --config=FILE [--workdir=FOLDER] [--config.SETTING=VALUE].

Run again on the same workdir, it resumes; finished, it says so. Then --config may
be left out: the run goes on with the settings that it used last.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from jaxdet import loading, model_file
from jaxdet.commands import (
    command_line,
    config_files,
    determinism,
    fed_images,
    fingerprint,
    opening,
    report,
    results,
    run_model,
)
from jaxdet.data import inventory
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import history, lock, loop, state, steps, watching
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.history import NO_HISTORY
from jaxdet.training.numerics import Numerics
from jaxdet.training.spikes import Spikes
from jaxdet.training.stopping import OUT_OF_TIME, Stopping
from jaxdet.training.watching import Profile
from jaxdet.training.writer import LINES_NAME, Writer
from jaxdet.types import Source, UserError

PROFILE_NAME = "profile"  # In the workdir.
FIRST_WEIGHTS_NAME = "init_from.txt"  # In the workdir: what became of each array.


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
    if flags.distributed:
        _join(flags)
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
    keep = {"keep_latest": config.keep_latest, "keep_best": config.keep_best}
    checkpoints = Checkpoints(workdir / "checkpoints", metric=evaluation.BEST, **keep)
    done = checkpoints.latest or 0
    past = history.read(workdir / LINES_NAME, evaluation.BEST, done)
    stopping = Stopping(config.patience, config.min_delta, config.max_hours)
    early = stopping.out_of_patience(past.scores.values())
    if done >= config.num_steps or (done and early):
        predict = results.make_predict(config, detector)
        _leave_model(run, eval_source, checkpoints, predict, workdir, first_process)
        checkpoints.close()
        print(
            f"{workdir} is finished: {done} of {config.num_steps} steps are done; "
            + f"{stopping.why()}; " * early
            + "eval.py evaluates it again"
        )
        return 0
    lines = ()
    if done:
        start = checkpoints.restore("latest", like=like)
        done = int(start.step)  # Of the one before, where the latest was damaged.
        origin = f"resuming after step {done}"
        for change in config_files.changes_of_run(config, config_files.last_saved(workdir)):
            print(f"warning: the run had another config so far: {change}", file=sys.stderr)
    else:
        variables, origin, lines = opening.first_variables(run)
        start = create(variables)

    predict = results.make_predict(config, detector)
    # Anew, because the step is another one where the latest checkpoint was damaged.
    past = history.read(workdir / LINES_NAME, evaluation.BEST, done) if done else NO_HISTORY
    loaders = []  # One, or one more each time that the run goes back.

    def batches(step: int) -> Iterator:
        loaders.append(opening.train_batches(config, run.source, step))
        return loaders[-1]

    writer = Writer(workdir, start_step=done, num_steps=config.num_steps, active=first_process)
    if first_process:
        # Of a shorter run in this folder; what is best now is not known yet.
        for name in (model_file.NAME, report.NAME):
            (workdir / name).unlink(missing_ok=True)
        config_files.keep(config, workdir, done)
        data = {config.data.train_split: run.source, config.data.eval_split: eval_source}
        fingerprint.keep(workdir, done, config, data, start.variables)
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
                accumulate=config.accumulate,
                ema_decay=config.ema_decay,
                ema_ramp=config.ema_ramp,
                heights=config.multiscale_heights,
                height_every=config.multiscale_every,
                guarded=config.on_not_finite != "stop",
                scaled=config.on_not_finite == "go_back",
            ),
            batches=batches,
            evaluate=partial(results.evaluate, config, eval_source, predict),
            draw=partial(results.draw, config, detector, eval_source, predict),
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
            stopping=stopping,
            numbers=_make_numerics(run, first_process),
            history=past,
            profile=Profile(workdir / PROFILE_NAME, config.profile_steps * first_process),
        )
        writer.close()
        if outcome.results and first_process:  # Whatever can't be written behind this.
            print(results.format_table(config, outcome.results))
        checkpoints.check_saved()
        if not outcome.stopped:
            _leave_model(run, eval_source, checkpoints, predict, workdir, first_process)
    finally:
        writer.close()
        checkpoints.close()
    return _say_outcome(workdir, outcome, loaders)


def _make_numerics(run: opening.Run, first_process: bool) -> Numerics:
    """What becomes of broken steps and of spikes; only the first process draws."""
    config, spikes = run.config, None
    if config.spike_pictures and first_process:
        spikes = Spikes(
            config.spike_pictures, lambda step: [("batch", fed_images.draw_batch(run, step))]
        )
    names = partial(fed_images.names, run)
    return Numerics(config.on_not_finite, name_images=names, spikes=spikes)


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


def _say_outcome(workdir: Path, outcome: loop.Outcome, loaders: Sequence[object]) -> int:
    for loader in loaders:
        for sentence in losses_of_data(loader):
            print(sentence)
    if outcome.stopped:
        late = outcome.stopped == OUT_OF_TIME
        reason = "after config.max_hours" if late else f"by signal {outcome.stopped}"
        step = int(outcome.state.step)
        print(f"stopped {reason}; step {step} is saved, run again to resume")
        return 0 if late else 128 + outcome.stopped
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


def _join(flags: argparse.Namespace) -> None:
    """Joins the other processes of the run, before any device is used."""
    given = {"num_processes": flags.num_processes, "process_id": flags.process_id}
    try:
        jax.distributed.initialize(flags.coordinator, **given)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {str(error).splitlines()[0]}") from error


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--against", metavar="FILE", help="print what differs from this config, and end")
    add("--distributed", action="store_true", help="join the other processes of the run first")
    # On a cluster that JAX knows (TPU pods, Slurm, ...) these three are found by themselves.
    add("--coordinator", metavar="HOST:PORT", help="of process 0")
    add("--num_processes", type=int, metavar="N", help="processes of the run")
    add("--process_id", type=int, metavar="I", help="which of them this is")
