"""Learning rate schedules, weight decay masks and freezing, as one optax transformation."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from jaxdet.types import UserError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine", "multistep", "warmup_cosine")

# The last parts of the parameters' paths that have rules of their own.
BIAS, NORM_SCALE = "bias", "scale"

# Name of the snapshot in the optimizer's state that holds the gradient's norm.
GRADIENT_NORM = "gradient_norm"


def build_optimizer(
    *,
    learning_rate: float,
    base_batch_size: int,
    batch_size: int,
    num_steps: int,
    name: str = "sgd",
    schedule: str = "multistep",
    milestones: tuple[int, ...] = (),
    decay_factor: float = 0.1,
    final_ratio: float = 0.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.001,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_biases: bool = True,
    decay_norms: bool = True,
    bias_rate: float = 1.0,
    clip_norm: float = 0.0,
    frozen: tuple[str, ...] = (),
    final_steps: int = 0,
) -> tuple[optax.GradientTransformation, Callable]:
    """Builds the optimizer and its learning rate schedule.

    SGD is torch's: the decay is added to the (clipped) gradient before the
    momentum, and the momentum knows no learning rate. AdamW decays apart from
    the moments.

    A bias is a parameter of that name, of a layer or of a norm, as in torch; a
    norm's scale is none. The defaults treat all parameters alike, as
    mmdetection does.

    The norm of the gradient, before clipping and without the frozen parts, is
    kept in the optimizer's state under `GRADIENT_NORM`. It is measured here
    and not in the step, so that nothing reads the gradients of frozen
    parameters and XLA drops their whole backward pass.

    Args:
        learning_rate: the rate for `base_batch_size` images a step.
        base_batch_size: batch size that the rate is stated for.
        batch_size: global batch size; the rate grows linearly with it.
        num_steps: length of the run, where the "cosine" ends.
        name: "sgd" or "adamw".
        schedule: "constant", "cosine", "multistep" or "warmup_cosine".
        milestones: steps from which on the rate is multiplied by `decay_factor`
            once more ("multistep").
        decay_factor: what the rate is multiplied by at each of the `milestones`.
        final_ratio: share of the rate that is left at the end ("cosine",
            "warmup_cosine").
        warmup_steps: length of the warmup, 0 for none; see `build_schedule`.
        warmup_ratio: share of the rate at step 0; "warmup_cosine" starts at 0.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: decay rate; 0 for none.
        decay_biases: whether biases decay too.
        decay_norms: whether the scales of norms decay too.
        bias_rate: learning rate of the biases, relative to that of the rest.
        clip_norm: upper bound of the gradient's norm; 0 for none.
        frozen: paths such as "backbone/layer1"; the parameters at and below
            them never move: no update, no decay, no momentum.
        final_steps: steps at the end that "warmup_cosine" leaves at the final
            rate.

    Returns:
        The optimizer and the function from step to learning rate. A frozen
        path that names no parameter is a UserError when the optimizer's state
        is made.

    Raises:
        UserError: if the name or the schedule is unknown, or its parts are
            longer than the run.

    Reference: Goyal et al., Accurate, Large Minibatch SGD, sec. 2,
    arXiv:1706.02677 (linear scaling, warmup).
    """
    _check_known("optimizer.name", name, OPTIMIZERS)
    rate = build_schedule(
        learning_rate=learning_rate * batch_size / base_batch_size,
        num_steps=num_steps,
        schedule=schedule,
        milestones=milestones,
        decay_factor=decay_factor,
        final_ratio=final_ratio,
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
        final_steps=final_steps,
    )
    decays = {BIAS: decay_biases, NORM_SCALE: decay_norms}
    decay = optax.add_decayed_weights(
        weight_decay,
        mask=None if all(decays.values()) else _where(lambda name: decays.get(name, True)),
    )
    if name == "sgd":
        rule = (decay, optax.trace(momentum, nesterov))
    else:
        rule = (optax.scale_by_adam(), decay)
    rates = (optax.scale_by_learning_rate(rate),)
    if bias_rate != 1:
        rates += (optax.masked(optax.scale(bias_rate), _where(lambda name: name == BIAS)),)
    trained = optax.chain(
        optax.snapshot(GRADIENT_NORM, optax.tree.norm),
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        *rule,
        *rates,
    )
    if not frozen:
        return trained, rate
    parts = {"trained": trained, "frozen": optax.set_to_zero()}
    return optax.partition(parts, lambda params: _label(params, frozen)), rate


def build_schedule(
    *,
    learning_rate: float,
    num_steps: int,
    schedule: str,
    milestones: tuple[int, ...] = (),
    decay_factor: float = 0.1,
    final_ratio: float = 0.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.001,
    final_steps: int = 0,
) -> Callable:
    """The learning rate as a function of the steps done so far.

    A linear warmup multiplies the schedule and does not shift it: milestones
    and the cosine count from step 0, as in mmdetection. "warmup_cosine" is
    YOLOX's: the rate grows from 0 with the square of the step, then falls in
    half a cosine that begins where the warmup ends, and stays at
    `final_ratio` of the rate for `final_steps`. Settings as in
    `build_optimizer`, but for `learning_rate`, which is the scaled one.

    Raises:
        UserError: if the schedule is unknown, or the warmup and the final
            steps are longer than the run.

    Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430.
    """
    _check_known("optimizer.schedule", schedule, SCHEDULES)
    if schedule == "warmup_cosine":
        return _warmup_cosine(learning_rate, num_steps, final_ratio, warmup_steps, final_steps)
    if schedule == "multistep":
        if min(milestones, default=1) < 1:
            raise UserError(
                f"config.optimizer.milestones wants steps from 1 on, found {milestones}"
            )
        regular = optax.piecewise_constant_schedule(
            learning_rate, {step: decay_factor ** milestones.count(step) for step in milestones}
        )
    elif schedule == "cosine":
        regular = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=final_ratio)
    else:
        regular = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return regular
    warmup = optax.linear_schedule(warmup_ratio, 1.0, warmup_steps)
    return lambda step: regular(step) * warmup(step)


def _warmup_cosine(
    rate: float, num_steps: int, final_ratio: float, warmup_steps: int, final_steps: int
) -> Callable:
    cosine_steps = num_steps - warmup_steps - final_steps
    if cosine_steps < 0:
        raise UserError(
            "config.optimizer.warmup_steps + config.final_steps wants at most config.num_steps, "
            f"{num_steps}, found {warmup_steps} + {final_steps}"
        )
    cosine = (
        optax.cosine_decay_schedule(rate, cosine_steps, alpha=final_ratio)
        if cosine_steps
        # The final steps come right behind the warmup, of which YOLOX makes one step more.
        else optax.constant_schedule(rate * final_ratio)
    )
    if not warmup_steps:
        return cosine
    return optax.join_schedules(
        (lambda step: rate * (step / warmup_steps) ** 2, cosine), (warmup_steps,)
    )


def _label(params: Any, frozen: tuple[str, ...]) -> Any:
    """Marks each parameter "frozen" or "trained"."""
    used = set()

    def label(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        hits = [prefix for prefix in frozen if f"{name}/".startswith(f"{prefix}/")]
        used.update(hits)
        return "frozen" if hits else "trained"

    labels = jax.tree_util.tree_map_with_path(label, params)
    for prefix in frozen:
        if prefix not in used:
            raise UserError(f"frozen path {prefix!r} names no parameter; found {sorted(params)}")
    return labels


def _where(test: Callable[[str], bool]) -> Callable:
    """A mask of the parameters by the last part of their path."""
    return partial(jax.tree_util.tree_map_with_path, lambda path, _: test(path[-1].key))


def _check_known(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown {setting} {value!r}; known: {', '.join(known)}{hint}")
