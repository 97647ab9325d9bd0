"""The training loop, as a straight line: batch -> step -> log -> evaluate -> save."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.finite import SKIPPED
from jaxdet.training.going_back import Feed, GoingBack
from jaxdet.training.history import NO_HISTORY, History, as_score
from jaxdet.training.numerics import BrokenRun, Numerics
from jaxdet.training.plan import Plan
from jaxdet.training.state import TrainState
from jaxdet.training.steps import put_state
from jaxdet.training.stopping import NO_LIMIT, Stop, Stopping
from jaxdet.training.watching import Profile, device_memory
from jaxdet.training.window import Window
from jaxdet.training.writer import Writer
from jaxdet.types import UserError


class Outcome(NamedTuple):
    """How a run ended."""

    state: TrainState
    results: dict[str, Any] | None  # Of the last evaluation, None where there was none.
    stopped: int  # What stopped it, as `Stop.now` tells it, 0 when it is finished.


def train(
    state: TrainState,
    *,
    step: Callable[..., Any],
    batches: Callable[[int], Iterator],
    evaluate: Callable[..., dict[str, Any]],
    draw: Callable[..., Any],
    writer: Writer,
    checkpoints: Checkpoints,
    plan: Plan,
    stopping: Stopping = NO_LIMIT,
    numbers: Numerics | None = None,
    history: History = NO_HISTORY,
    profile: Profile | None = None,
) -> Outcome:
    """Trains from the state's step to the plan's end; always ends with an evaluation.

    Means, counts and rates in the log are those of all steps since the line
    before. A line is also written before each save, so that no window spans a
    place where a run may resume, and before pictures. The first step, which
    compiles, is left out of the rate; a canvas or a height that is
    met later compiles within its window. "data_wait" is the part of the time in which batches
    were waited for until the devices had nothing left to do: at most so much was lost.

    On SIGTERM or SIGINT, and when the time is over, the step is finished, evaluated
    if that is due, and saved, by all processes at the same step. Where evaluating or
    drawing fails, the state is saved before the exception goes on. An evaluation that is
    due where a run resumes, and that its log does not know of, is done first.

    Numbers that are not finite are found when they are logged. Where `numbers` says
    so the run goes back then, as one that resumes at the last checkpoint, with half
    of the learning rate.

    At the steps of `plan.reload_best_at` the run goes on from the best parameters
    and statistics so far, those of this step's evaluation among them; step and
    optimizer stay. That happens behind the save at this step, so a run that
    resumes there does the same again. Where averages are kept, they are what was
    the best, and both the parameters and the averages become them.

    Args:
        state: where to start, from `put_state`; its buffers are donated.
        step: `(state, batch, done, rate) -> (state, metrics)`, from `pmap_train_step`.
        batches: `step -> iterator` of the batches from this step on, which has a
            `close`, and is closed at the end.
        evaluate: `variables -> results`, by name; it gets the averages where
            they are kept, as `draw`.
        draw: `(variables, matrices) -> pictures`, a list of (name, RGB pixels);
            called after each evaluation and where pictures are due. The
            matrices are the counts of two axes, by name: sums over the steps
            since the pictures before, or since the run was resumed.
        writer: takes the logs.
        checkpoints: takes the states.
        plan: how long the run is, and what is due when.
        stopping: what else ends the run.
        numbers: what becomes of steps that break; None stops at the first.
        history: of a resumed run, from `history.read`.
        profile: traces some steps; None traces none.

    Raises:
        UserError: if a loss is not finite, or a parameter, found when it is saved, and
            the run may not go on; the last checkpoint stays.
    """
    done, results, rate = int(state.step), None, history.rate
    history, window, feed = history.until(done), Window(), Feed(batches, done)
    profile, numbers = profile or Profile(), numbers or Numerics()
    back = GoingBack(state, checkpoints, writer) if numbers.response == "go_back" else None
    with closing(feed), closing(profile), Stop(stopping.max_hours) as stop:
        known = history.has_evaluated(done, checkpoints)
        if done and not known and plan.evaluates(done):
            results = _evaluate(done, state.eval_variables, evaluate, writer, checkpoints.judge)
            history.scores[done] = as_score(results.get(checkpoints.metric))
            writer.pictures(done, draw(state.eval_variables, {}))
            if _out_of_patience(done, history, stopping, writer):
                return Outcome(state, results, 0)
        while done < plan.num_steps:
            if done in plan.reload_best_at:
                state = _reload_best(done, state, checkpoints, writer)
            batch = window.wait_for(feed)
            profile.before(done + 1)
            state, metrics = step(state, batch, done, rate)
            done += 1
            profile.after(done, metrics)
            window.add(metrics, batch.index)
            writer.advance()

            stopped = 0 if done == plan.num_steps else stop.now()
            evaluating = plan.evaluates(done)
            drawing = evaluating or (plan.draws(done) and not stopped)
            saving = evaluating or stopped or plan.saves(done)

            if saving or drawing or plan.logs(done):
                try:
                    _log(done, window, writer, numbers)
                    window.restart_clock()
                except BrokenRun as broken:
                    if back is None:
                        raise UserError(f"{broken}; {checkpoints.where_to_go_on()}") from None
                    state, rate = back.go_back(broken, rate)
                    if stopped:
                        return Outcome(state, results, stopped)
                    done = int(state.step)
                    profile.close()
                    feed.go_back(done)
                    history = history.until(done)
                    window.drop()
                    continue
            found = None
            try:
                if evaluating:
                    found = results = _evaluate(done, state.eval_variables, evaluate, writer)
                    history.scores[done] = as_score(found.get(checkpoints.metric))
                if drawing:
                    writer.pictures(done, draw(state.eval_variables, window.take_matrices()))
            except Exception:
                # The training is not lost with them; one of several processes can't save alone.
                if saving or jax.process_count() == 1:
                    checkpoints.save(state, found)
                raise
            if saving:
                checkpoints.save(state, found)
            if saving or drawing:
                window.restart_clock()
            if stopped:
                return Outcome(state, results, stopped)
            if evaluating and _out_of_patience(done, history, stopping, writer):
                break
    return Outcome(state, results, 0)


def _log(done: int, window: Window, writer: Writer, numbers: Numerics) -> None:
    values, steps = window.read()
    values |= device_memory()
    writer.scalars(done, values)
    numbers.look_at(done, steps, writer)
    if "first_step_seconds" in values:
        writer.say(f"the first step took {values['first_step_seconds']:.1f} s (compilation)")
    shown = {k: v for k, v in values.items() if "loss" in k and np.ndim(v) == 0}
    names = {"images_per_second": "images/s", "data_wait": "data wait"}
    names |= {"device_memory_gib": "GiB", SKIPPED: "skipped"}
    writer.show(shown | {name: values[k] for k, name in names.items() if k in values})


def _out_of_patience(done: int, history: History, stopping: Stopping, writer: Writer) -> bool:
    over = stopping.out_of_patience(history.scores.values())
    if over:
        writer.say(f"step {done}: finished, {stopping.why()}")
    return over


def _reload_best(
    done: int, state: TrainState, checkpoints: Checkpoints, writer: Writer
) -> TrainState:
    """The state with the best parameters and statistics; as it is, with a line, where it can't."""
    best = checkpoints.best
    if best is None:
        writer.say(f"step {done}: there is no best checkpoint to reload; the parameters stay")
        return state
    try:
        variables = checkpoints.restore_variables(best, like=state.eval_variables)
    except UserError as error:
        writer.say(f"step {done}: the parameters stay: {error}")
        return state
    writer.say(f"step {done}: reloaded the parameters of step {best}, the best so far")
    state = state.replace(**put_state(variables))
    # Copied anew: a step donates both, so they may not share their buffers.
    return state.replace(ema={**state.ema, **put_state(variables)}) if state.ema else state


def _evaluate(
    done: int, variables: Any, evaluate: Callable, writer: Writer, judge: Callable | None = None
) -> dict[str, Any]:
    start = time.perf_counter()
    results = evaluate(variables)
    if judge:  # Before the log has it: after a kill in between it is done again.
        judge(done, results)
    writer.results(done, results)
    writer.say(f"step {done}: evaluated in {time.perf_counter() - start:.0f} s")
    return results
