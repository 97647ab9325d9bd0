"""Numbers that are not finite: which step broke, and what a run does about it."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxdet.training import processes
from jaxdet.training.finite import SKIPPED, UPDATE_RATIO, terms_of
from jaxdet.training.spikes import Spikes
from jaxdet.training.window import Step
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
        terms: those of `finite.terms_of`.
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
        broke = [k for k in finite if not finite[k]]
        what = "the update" if broke == [UPDATE_RATIO] else "the gradient"
        what = "the loss" if any("loss" in k for k in broke) else what
    places = broken.places[:MAX_NAMES].tolist()
    # All processes are here: what they look at is alike.
    told = processes.gather(lambda: (name_images(places), len(broken.places)))
    names = [name for named, _ in told for name in named][:MAX_NAMES]
    more = sum(count for _, count in told) - len(names)
    images = ", ".join(names) + f" and {more} more" * (more > 0)
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
