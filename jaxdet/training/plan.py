"""What is due after which step of a run."""

from collections.abc import Collection
from typing import NamedTuple


class Plan(NamedTuple):
    """The length of a run, and the steps between two of what happens in it; 0 is never.

    Attributes:
        num_steps: length of the run; at its end it is evaluated, whatever else is said.
        eval_every: steps between two evaluations, each of which is drawn and saved.
        checkpoint_every: steps between two saves, besides those of evaluations.
        log_every: steps between two lines of the log.
        pictures_every: steps between pictures, besides those of evaluations.
        final_steps: length of the part at the end that `final_eval_every` is for.
        final_eval_every: takes the place of `eval_every` in the final steps; 0 for no change.
        reload_best_at: steps after which the best parameters so far come back.
    """

    num_steps: int
    eval_every: int = 0
    checkpoint_every: int = 0
    log_every: int = 0
    pictures_every: int = 0
    final_steps: int = 0
    final_eval_every: int = 0
    reload_best_at: Collection[int] = ()

    def evaluates(self, done: int) -> bool:
        """Whether so many steps are followed by an evaluation."""
        final = self.final_eval_every and done > self.num_steps - self.final_steps
        every = self.final_eval_every if final else self.eval_every
        return done == self.num_steps or _due(done, every)

    def draws(self, done: int) -> bool:
        """Whether they are followed by pictures that are no evaluation's."""
        return _due(done, self.pictures_every)

    def saves(self, done: int) -> bool:
        """Whether they are saved, evaluated or not."""
        return _due(done, self.checkpoint_every)

    def logs(self, done: int) -> bool:
        """Whether a line of the log ends with them, for its own sake."""
        return _due(done, self.log_every)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
