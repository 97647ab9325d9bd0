"""Trainings of the toy, and what may happen to them."""

import os
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np

from jaxdet.training import history, log_lines
from jaxdet.training import state as states
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.loop import train
from jaxdet.training.optimizer import build_optimizer
from jaxdet.training.plan import Plan
from jaxdet.training.steps import pmap_train_step, put_state
from jaxdet.training.writer import Writer


def make_run(toy, *, norm=True, **step_settings):
    detector = toy.detector(norm=norm)
    tx, schedule = build_optimizer(
        learning_rate=0.1, base_batch_size=8, batch_size=8, num_steps=12, schedule="cosine"
    )
    step = pmap_train_step(detector, tx, schedule, **dict(seed=0) | step_settings)
    create = partial(states.create, toy.variables(detector), tx, ema="ema_decay" in step_settings)

    def run(workdir, *, on_batch=lambda n, batch: batch, evaluate=None, draw=None, **settings):
        defaults = dict(num_steps=12, eval_every=6, checkpoint_every=4, log_every=3)
        settings = dict(step=step) | defaults | settings
        plan = Plan(**{key: settings.pop(key) for key in Plan._fields if key in settings})
        log = SimpleNamespace(evaluated=[], drawn=[], closed=0)
        state = create()
        checkpoints = Checkpoints(workdir / "checkpoints", metric="AP")
        if checkpoints.latest is not None:
            state = checkpoints.restore("latest", like=state)
        past = history.read(workdir / log_lines.NAME, "AP", int(state.step))
        writer = Writer(
            workdir,
            start_step=int(state.step),
            num_steps=plan.num_steps,
            active=jax.process_index() == 0,
        )

        def batches(n):
            try:
                while True:
                    yield on_batch(n, toy.batch(n))
                    n += 1
            finally:
                log.closed += 1

        def measure(variables):
            log.evaluated.append(float(variables["params"]["head"]["bias"][0]))
            return {"AP": log.evaluated[-1]}

        def remember(variables, matrices):
            log.drawn.append(matrices)
            return []

        try:
            outcome = train(
                put_state(state),
                batches=batches,
                evaluate=evaluate or measure,
                draw=draw or remember,
                writer=writer,
                checkpoints=checkpoints,
                history=past,
                plan=plan,
                **settings,
            )
        finally:
            writer.close()
            checkpoints.close()
        log.outcome, log.state = outcome, jax.device_get(outcome.state)
        return log

    run.step, run.start = step, lambda: put_state(create())
    return run


class Killed(BaseException):
    pass


def kill_at(step):
    def on_batch(n, batch):
        if n == step:
            raise Killed
        return batch

    return on_batch


def send(number, *, at):
    def on_batch(n, batch):
        if n == at:
            os.kill(os.getpid(), number)
        return batch

    return on_batch


def spoil(*places, times=1):
    """Makes the boxes of some batches infinite, each so often."""
    left = dict.fromkeys(places, times)

    def on_batch(n, batch):
        if not left.get(n):
            return batch
        left[n] -= 1
        return batch._replace(boxes=batch.boxes * np.float32("inf"))

    return on_batch
