"""Numbers that are not finite: which step broke, and how a step leaves no trace of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.training.optimizer import GRADIENT_NORM
from jaxdet.training.spikes import Spikes
from jaxdet.training.state import TrainState
from jaxdet.training.window import SKIPPED, Step
from jaxdet.training.writer import Writer
from jaxdet.types import UserError

Response = Literal["stop", "skip", "go_back"]

MAX_SKIPPED = 100  # In a row: by then it is no accident.
MAX_NAMES = 16  # Images that a line names.


class Broken(NamedTuple):
    """A step whose numbers are not finite.

    Attributes:
        step: its number, from 1 on.
        places: of this process's images in the order of the run.
        terms: its losses and the norm of its gradient.
        left_out: whether its update was not applied.
    """

    step: int
    places: np.ndarray
    terms: dict[str, float]
    left_out: bool


class BrokenRun(UserError):
    """Of a run that can't go on with the state that it has."""

    def __init__(self, message: str, step: int):
        """Takes the line and the step that broke."""
        super().__init__(message)
        self.step = step


def terms_of(means: Mapping[str, Any]) -> dict[str, Any]:
    """The losses among the metrics of a step, and the norm of its gradient."""
    return {k: v for k, v in means.items() if ("loss" in k or k == GRADIENT_NORM) and v.ndim == 0}


def norms(params: Any, updates: Any) -> dict[str, jax.Array]:
    """What the log tells of the parameters and of what is added to them in a step."""
    norm = optax.tree.norm(params)
    ratio = optax.tree.norm(updates) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    return {"parameter_norm": norm, "update_ratio": ratio}


def unless_broken(
    before: TrainState, after: TrainState, means: Mapping[str, jax.Array]
) -> tuple[TrainState, jax.Array]:
    """The state after a step, or that before it if a number of the step is not finite.

    Looked at are the losses, the norm of the gradient, parameters, statistics and
    averages. The number of steps goes on in any case, and so does the schedule of
    the learning rate, which counts them.

    Args:
        before: the state that the step began with.
        after: the state that it gives.
        means: its metrics, alike on all devices.

    Returns:
        The state, and 1 if the step is left out, 0 if not.
    """
    looked_at = (after.params, after.batch_stats, after.ema, terms_of(means))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(looked_at)]
    good = jnp.all(jnp.stack(finite))
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
    opt_state = kept.opt_state
    if _schedules(opt_state):
        opt_state = optax.tree.set(opt_state, _of_schedule, count=after.step)
    return kept.replace(step=after.step, opt_state=opt_state), 1 - good.astype(jnp.int32)


def find_broken(number: int, step: Step) -> Broken | None:
    """What broke in a step, None if nothing did."""
    terms = {name: float(value) for name, value in terms_of(step.means).items()}
    left_out = bool(step.counts.get(SKIPPED, 0))
    if not left_out and all(map(math.isfinite, terms.values())):
        return None
    return Broken(number, step.places, terms, left_out)


def describe(broken: Broken, name_images: Callable[[Sequence[int]], Sequence[str]]) -> str:
    """The beginning of a line: what broke, where, and on which images."""
    finite = {name: math.isfinite(value) for name, value in broken.terms.items()}
    bad, good = (
        ", ".join(f"{k} {value:.4g}" for k, value in broken.terms.items() if finite[k] == is_finite)
        for is_finite in (False, True)
    )
    if not bad:
        what = "a parameter"
    else:
        what = "the loss" if any("loss" in k for k in finite if not finite[k]) else "the gradient"
    places = broken.places[:MAX_NAMES].tolist()
    images = ", ".join(name_images(places))
    images += f" and {len(broken.places) - len(places)} more" * (len(broken.places) > len(places))
    values = "; ".join(filter(None, (bad, good and f"finite: {good}")))
    return f"{what} is not finite at step {broken.step}: {values}; its images: {images}"


class Numerics:
    """What a run does about numbers that are not finite, and about spikes of the loss."""

    def __init__(
        self,
        response: Response = "stop",
        *,
        name_images: Callable[[Sequence[int]], Sequence[str]] = lambda places: [*map(str, places)],
        spikes: Spikes | None = None,
    ):
        """Looks at no step yet.

        Args:
            response: "stop", "skip" or "go_back".
            name_images: the ids of the images at some places of the run's order.
            spikes: finds and draws them; None for none.
        """
        self.response = response
        self._name_images, self._spikes = name_images, spikes
        self._skipped = 0  # In a row, up to the last line.

    def look_at(self, done: int, steps: Sequence[Step], writer: Writer) -> None:
        """Looks at the steps of a window; spikes are drawn.

        Args:
            done: number of the window's last step.
            steps: of the window.
            writer: takes the pictures.

        Raises:
            BrokenRun: if the run can't go on with the state after them.
        """
        spike = self._spikes and self._spikes.find(done, steps)
        if spike:
            writer.say(f"step {spike.step}: the loss is {spike.loss:.4g}; its batch is drawn")
            writer.pictures(spike.step, self._spikes.draw(spike.step - 1))
        for number, step in enumerate(steps, done - len(steps) + 1):
            broken = find_broken(number, step)
            self._skipped = self._skipped + 1 if broken and broken.left_out else 0
            if self._skipped > MAX_SKIPPED:
                line = f"more than {MAX_SKIPPED} steps in a row were skipped"
                raise BrokenRun(f"{line}; {describe(broken, self._name_images)}", number)
            if broken and not (self.response == "skip" and broken.left_out):
                raise BrokenRun(describe(broken, self._name_images), number)


def _of_schedule(path: Any, _: Any) -> bool:
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"


def _schedules(opt_state: Any) -> list:
    return optax.tree.get_all_with_path(opt_state, "count", _of_schedule)
