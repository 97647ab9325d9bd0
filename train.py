"""Trains a detector: python train.py --config=FILE[:ARG] [--workdir=DIR] [--config.key=VALUE].

Run again on the same workdir, it resumes; finished, it says so. Then --config may
be left out: the run goes on with the settings that it began with.
"""

import sys
from collections.abc import Sequence
from functools import partial

import jax
from absl import flags

from jaxdet import commands, configuration
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import loop, state, steps
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.writer import Writer
from jaxdet.types import UserError


def main(argv: Sequence[str]) -> int:
    """Trains, or resumes; gives the exit status."""
    command = configuration.read_command_line(argv, define=_define_flags)
    config, workdir = command.config, command.workdir
    if command.flags.distributed:
        _join(command.flags)
    first_process = jax.process_index() == 0

    commands.check(config)
    train_source = commands.build_source(config, config.data.train_split, config.data.classes)
    class_names = train_source.class_names
    eval_source = commands.build_source(config, config.data.eval_split, class_names)
    detector = commands.build_detector(config, num_classes=len(class_names))
    tx, schedule = commands.make_optimizer(config)
    create = partial(state.create, tx=tx, ema=config.ema_decay > 0)
    like = jax.eval_shape(create, commands.abstract_variables(config, detector))
    # Finds mistakes in the settings before anything is written.
    commands.train_batches(config, train_source, 0).close()

    evaluation = EVALUATIONS[config.evaluation.name]
    checkpoints = Checkpoints(workdir / "checkpoints", metric=evaluation.BEST)
    done = checkpoints.latest or 0
    if done >= config.num_steps:
        print(
            f"{workdir} is finished: {done} of {config.num_steps} steps are done; "
            "eval.py evaluates it again"
        )
        return 0
    if done:
        start = checkpoints.restore("latest", like=like)
        origin = f"resuming after step {done}"
        differences = configuration.differing_keys(config, workdir / configuration.SAVED_NAME)
        for difference in differences:
            print(f"warning: the run began with another config: {difference}", file=sys.stderr)
    else:
        differences = []
        variables, origin = commands.first_variables(config, detector)
        start = create(variables)

    predict = steps.pmap_predict_step(detector)
    batches = commands.train_batches(config, train_source, done)
    writer = Writer(workdir, start_step=done, num_steps=config.num_steps, active=first_process)
    if first_process:
        # What the run began with stays as it is.
        if not done or differences:
            name = f"config.{done}.json" if done else configuration.SAVED_NAME
            configuration.save(config, workdir / name)
        print(config.to_json(indent=2))
        print(f"{origin}; {len(train_source)} training images; writing to {workdir}")
    try:
        outcome = loop.train(
            steps.put_state(start),
            step=steps.pmap_train_step(
                detector,
                tx,
                schedule,
                seed=config.seed,
                final_start=config.num_steps - config.final_steps if config.final_steps else None,
                ema_decay=config.ema_decay,
                ema_ramp=config.ema_ramp,
                heights=config.multiscale_heights,
                height_every=config.multiscale_every,
            ),
            batches=batches,
            evaluate=partial(commands.evaluate, config, eval_source, predict),
            draw=partial(commands.draw, config, eval_source, predict),
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
    finally:
        writer.close()
        checkpoints.close()

    for sentence in commands.losses_of_data(batches):
        print(sentence)
    if outcome.signal:
        step = int(outcome.state.step)
        print(f"stopped by signal {outcome.signal}; step {step} is saved, run again to resume")
        return 128 + outcome.signal
    if first_process:
        print(evaluation.format_table(outcome.results))
        print(f"pictures:    {workdir / 'pictures'}")
        print(f"checkpoints: {workdir / 'checkpoints'}")
        print(f"TensorBoard: tensorboard --logdir={workdir}")
    return 0


def _join(values: flags.FlagValues) -> None:
    """Joins the other processes of the run, before any device is used."""
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    coordinator = given.pop("coordinator")
    try:
        jax.distributed.initialize(coordinator, **given)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {str(error).splitlines()[0]}") from error


def _define_flags(values: flags.FlagValues) -> None:
    define = partial(flags.DEFINE_integer, lower_bound=0, flag_values=values)
    flags.DEFINE_bool(
        "distributed", False, "join the other processes of the run first", flag_values=values
    )
    # On a cluster that JAX knows (TPU pods, Slurm, ...) these three are found by themselves.
    flags.DEFINE_string("coordinator", None, "host:port of process 0", flag_values=values)
    define("num_processes", None, "processes of the run")
    define("process_id", None, "which of them this is")


if __name__ == "__main__":
    commands.run_command(main)
