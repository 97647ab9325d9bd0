"""One training in its folder: where it starts, the loop, what it leaves."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxdet import model_file
from jaxdet.commands import (
    batch_log,
    config_files,
    costs,
    fed_images,
    finding,
    fingerprint,
    opening,
    report,
    results,
    run_model,
    splits,
    telling,
)
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import history, log_lines, loop, state, steps
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.history import History
from jaxdet.training.numerics import Numerics
from jaxdet.training.plan import Plan
from jaxdet.training.spikes import Spikes
from jaxdet.training.stopping import Stopping
from jaxdet.training.watching import Profile
from jaxdet.training.writer import Writer
from jaxdet.types import Source

# In the workdir.
PROFILE_NAME = "profile"
FIRST_WEIGHTS_NAME = "init_from.txt"  # What became of each array.


class Job(NamedTuple):
    """A training and its folder.

    Attributes:
        run: with its optimizer.
        eval_source: what is evaluated.
        predict: the compiled prediction of evaluations.
        checkpoints: of the folder.
        workdir: the folder.
        first_process: whether this process writes there; the others only read.
    """

    run: opening.Run
    eval_source: Source
    predict: Callable
    checkpoints: Checkpoints
    workdir: Path
    first_process: bool

    @property
    def stopping(self) -> Stopping:
        """What may end it before its last step."""
        config = self.run.config
        return Stopping(config.patience, config.min_delta, config.max_hours)


class Start(NamedTuple):
    """Where a training starts or goes on.

    Attributes:
        state: on the host.
        origin: a line that says where it comes from.
        lines: one for each array of `init_from`.
        past: of a run that goes on.
    """

    state: state.TrainState
    origin: str
    lines: tuple[str, ...] = ()
    past: History = history.NO_HISTORY


def open_job(config: ConfigDict, workdir: Path, first_process: bool) -> Job:
    """Opens what a config says, and the checkpoints of the folder.

    Raises:
        UserError: for what does not work in the config, in the data or in the folder.
    """
    run = opening.open_training(config, begins=not has_begun(workdir))
    config = run.config
    eval_source = splits.open_source(config, config.data.eval_split, run.class_names)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        metric=EVALUATIONS[config.evaluation.name].BEST,
        keep_latest=config.keep_latest,
        keep_best=config.keep_best,
    )
    predict = finding.make_predict(config, run.detector)
    return Job(run, eval_source, predict, checkpoints, workdir, first_process)


def has_begun(workdir: Path) -> bool:
    """Whether a folder has a checkpoint, whole or not."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def why_finished(job: Job, done: int) -> str:
    """What of a run is done, where nothing is left to do; else nothing.

    Args:
        job: the training.
        done: steps that are saved.
    """
    num_steps, past = job.run.config.num_steps, _past(job, done)
    early = bool(done) and job.stopping.out_of_patience(past.scores.values())
    if done < num_steps and not early:
        return ""
    if done == num_steps and not past.has_evaluated(done, job.checkpoints):
        return ""  # The last evaluation failed, or was not written.
    return f"{done} of {num_steps} steps are done" + f"; {job.stopping.why()}" * early


def find_start(job: Job, done: int) -> Start:
    """The latest checkpoint, or the first variables.

    Args:
        job: the training.
        done: steps that are saved; 0 for a run that is new.

    Raises:
        UserError: if the checkpoint or the pretrained weights do not fit.
    """
    run, config = job.run, job.run.config
    create = partial(state.create, tx=run.tx, ema=config.ema_decay > 0)
    if not done:
        variables, origin, lines = opening.first_variables(run)
        return Start(create(variables), origin, lines)
    start = job.checkpoints.restore("latest", like=jax.eval_shape(create, run.variables))
    done = int(start.step)  # Of the one before, where the latest was damaged.
    for change in config_files.changes_of_run(config, config_files.last_saved(job.workdir)):
        print(f"warning: the run had another config so far: {change}", file=sys.stderr)
    past, origin = _past(job, done), f"resuming after step {done}"
    if past.rate < 1:
        applies = config.on_not_finite == "go_back"
        share = f"{past.rate:g} of the learning rate, as it went back"
        origin += f" with {share}" if applies else f"; no more with {share} (config.on_not_finite)"
    return Start(start, origin, past=past)


def work(job: Job, start: Start) -> int:
    """Trains from a start to the end of the run, or to what stops it; gives the exit status."""
    config, done = job.run.config, int(start.state.step)
    loaders = []  # One, or one more each time that the run goes back.

    def batches(step: int) -> Iterator:
        loaders.append(opening.train_batches(config, job.run.source, step))
        if not config.log_batches:
            return loaders[-1]
        return batch_log.logged(loaders[-1], job.run, job.workdir, step)

    writer = Writer(
        job.workdir, start_step=done, num_steps=config.num_steps, active=job.first_process
    )
    ended = False
    try:
        if job.first_process:
            _prepare_folder(job, start)
        outcome = loop.train(
            steps.put_state(start.state),
            step=_make_step(job.run),
            batches=batches,
            writer=writer,
            history=start.past,
            **_keywords_of_loop(job),
        )
        writer.close()
        if outcome.results and job.first_process:  # Whatever can't be written behind this.
            print(results.format_table(config, outcome.results))
        job.checkpoints.check_saved()
        if not outcome.stopped:
            leave_model(job)
        ended = True
    finally:
        writer.close()
        # The other processes know nothing of an error of this one: they would not take part.
        job.checkpoints.close(tidy=ended or jax.process_count() == 1)
    for loader in loaders:
        for sentence in telling.losses_of_data(loader):
            print(sentence)
    return telling.say_outcome(outcome, job.workdir, first_process=job.first_process)


def leave_model(job: Job) -> None:
    """Writes the model file and the report of a run whose steps are done, where they are missing.

    A kill in between leaves neither or one of them to the next start.
    """
    run, source, workdir = job.run, job.eval_source, job.workdir
    if not (workdir / model_file.NAME).is_file():
        run_model.write(run, source, job.checkpoints, workdir, active=job.first_process)
    wanted = run.config.report and report.can_report(run.detector, run.class_names)
    if job.first_process and wanted and not (workdir / report.NAME).is_file():
        best = model_file.read(workdir / model_file.NAME)[0]
        out, split = workdir / report.NAME, run.config.data.eval_split
        report.write(run.config, best, source, job.predict, out, name=workdir.name, split=split)


def _past(job: Job, done: int) -> History:
    """What a run has to know of its past up to a step."""
    return history.read(job.workdir / log_lines.NAME, job.checkpoints.metric, done)


def _prepare_folder(job: Job, start: Start) -> None:
    """Writes what a run begins with, and says it."""
    run, config, workdir = job.run, job.run.config, job.workdir
    done, origin = int(start.state.step), start.origin
    config_files.keep(config, workdir, done)
    data = {config.data.train_split: run.source, config.data.eval_split: job.eval_source}
    fingerprint.keep(workdir, done, config, data, start.state.variables)
    # Of a shorter run in this folder; what is best now is not known yet.
    for name in (model_file.NAME, report.NAME):
        (workdir / name).unlink(missing_ok=True)
    print(f"settings that are not the defaults (all: {config_files.last_saved(workdir)}):")
    for line in config_files.describe_differences(config):
        print(textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    "))
    if start.lines:
        (workdir / FIRST_WEIGHTS_NAME).write_text("\n".join(start.lines) + "\n")
        origin = f"{origin} (each in {workdir / FIRST_WEIGHTS_NAME})"
    telling.say_data(run, job.eval_source)
    print(f"{origin}; {len(run.source)} training images; writing to {workdir}")


def _make_step(run: opening.Run) -> Callable:
    """The compiled step."""
    config = run.config
    return steps.pmap_train_step(
        **costs.settings_of_step(run),
        accumulate=config.accumulate,
        heights=config.multiscale_heights,
        height_every=config.multiscale_every,
        scaled=costs.is_scaled(run),
    )


def _keywords_of_loop(job: Job) -> dict[str, Any]:
    """What `loop.train` takes of a job as it is."""
    config, detector = job.run.config, job.run.detector
    found = config, detector, job.eval_source, job.predict
    return {
        "plan": _plan(config),
        "evaluate": partial(results.evaluate, config, job.eval_source, job.predict),
        # Those of the other processes would be thrown away.
        "draw": partial(finding.draw, *found) if job.first_process else lambda *_: [],
        "checkpoints": job.checkpoints,
        "stopping": job.stopping,
        "numbers": _make_numerics(job.run, job.first_process),
        "profile": Profile(job.workdir / PROFILE_NAME, config.profile_steps * job.first_process),
    }


def _plan(config: ConfigDict) -> Plan:
    reload_best_at = config.optimizer.milestones if config.reload_best_at_milestones else ()
    lengths = [name for name in Plan._fields if name != "reload_best_at"]
    return Plan(**{key: config[key] for key in lengths}, reload_best_at=reload_best_at)


def _make_numerics(run: opening.Run, first_process: bool) -> Numerics:
    """What becomes of broken steps and of spikes; only the first process draws."""
    config, spikes = run.config, None
    if config.spike_pictures and first_process:
        spikes = Spikes(
            config.spike_pictures, lambda step: [("batch", fed_images.draw_batch(run, step))]
        )
    names = partial(fed_images.names, run)
    return Numerics(config.on_not_finite, name_images=names, spikes=spikes)
