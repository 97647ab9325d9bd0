"""Checkpoints in `<directory>/<step>/`: some of the latest and of the best are kept.

A kill at any moment, a full disk or a damaged file costs at most the steps since
the last complete one. While a run goes on there may be one checkpoint more: the
next save removes it, once this one is known to be complete. `saved.py` reads them.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet import whole_files
from jaxdet.training import leaves, leftovers, processes
from jaxdet.training import state as states
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.training.state import TrainState
from jaxdet.types import UserError

log = logging.getLogger("jaxdet")


class Checkpoints(SavedCheckpoints):
    """The checkpoints of a run that goes on."""

    def __init__(
        self, directory: str | Path, *, metric: str, keep_latest: int = 1, keep_best: int = 1
    ):
        """Opens the folder, or makes it.

        Args:
            directory: folder of the run's checkpoints.
            metric: result of the evaluation of which the largest is the best.
                Checkpoints saved with another one are never the best.
            keep_latest: so many of the latest are kept,
            keep_best: and so many of the best.

        Raises:
            UserError: as `SavedCheckpoints`.
        """
        Path(directory).mkdir(parents=True, exist_ok=True)
        super().__init__(directory, metric=metric)
        self._keep = keep_latest, keep_best
        self._saving: int | None = None  # The step that was saved last, or is being saved.
        self._unsaved: UserError | None = None  # Of the last save, where it failed.
        # It would ask the runtime of jax.distributed with steps, among the numbers of `Stop`.
        self._manager.reached_preemption = lambda step: False

    def save(self, state: TrainState, results: Mapping[str, Any] | None = None) -> None:
        """Starts to save a state; the writing goes on in the background.

        A process that is killed meanwhile leaves the checkpoint before intact.
        So does a disk that is full: that is a line in the log, the next save
        tries again, and `check_saved` raises it.

        Args:
            state: the state after its step; it is copied to the host first.
            results: of the evaluation at this step. A state without results,
                or whose metric is not finite, is never the best.

        Raises:
            ValueError: if this step is saved already.
            UserError: if a parameter is not finite; nothing is saved then.
        """
        # A plain device_get may share memory with a buffer that the next step overwrites.
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(state))
        step = int(host.step)
        name = leaves.first_not_finite(host.variables)
        if name:
            raise UserError(f"{name} is not finite at step {step}; {self.where_to_go_on()}")
        self._settle()
        if step in self._manager.all_steps():
            raise ValueError(f"the checkpoint of step {step} already exists")
        score = (results or {}).get(self.metric)
        known = score is not None and math.isfinite(score)
        items = {name: ocp.args.StandardSave(tree) for name, tree in states.split(host).items()}
        metrics = {self.metric: float(score) if known else -math.inf}
        self._saving = step
        try:
            self._tidy()
            # Without `force` a step that is saved already is silently left as it is.
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)
        except Exception as error:  # Orbax raises whatever its file system meets.
            self._lose(error)

    def judge(self, step: int, results: Mapping[str, Any]) -> None:
        """Adds the results of an evaluation to a checkpoint that was saved without.

        All processes must call it. Where the disk refuses it there is a line in the log, and
        the checkpoint stays as it is.

        Args:
            step: of the checkpoint.
            results: as `save` takes them.
        """
        score = results.get(self.metric)
        if score is None or not math.isfinite(score):
            return
        file = self._path(step) / "metrics" / "metrics"  # As Orbax writes it.

        def write() -> None:
            if jax.process_index() == 0:
                try:
                    whole_files.write_json(file, {self.metric: float(score)})
                except OSError as error:
                    log.warning("warning: %s is not written: %s", file, leftovers.reason(error))

        processes.gather(write)
        self._manager.reload()
        self._saving = step  # What is kept may be others now.

    def is_judged(self, step: int) -> bool:
        """Whether a checkpoint has a number to choose the best by, as the first process sees it.

        All processes must ask.
        """
        return processes.gather(lambda: math.isfinite(self._score_of(step)))[0]

    def check_saved(self) -> None:
        """Waits for the last save.

        Raises:
            UserError: if it failed.
        """
        self._settle(say=False)
        if self._unsaved:
            raise self._unsaved

    def where_to_go_on(self) -> str:
        """The end of a line about a run whose numbers became infinite."""
        saved = f"step {self.latest} is" if self.latest else "no step is"
        return (
            f"the last good state stays: {saved} saved, and a new start goes on from there; a "
            "lower optimizer.learning_rate or an optimizer.clip_norm, such as 10, usually helps, "
            "in the first steps a longer optimizer.warmup_steps"
        )

    def close(self, *, tidy: bool = True) -> None:
        """Waits until everything is written, and removes what is not kept.

        Args:
            tidy: whether to remove, for which all processes must be there.
        """
        self._settle()
        if self._saving is not None and tidy:
            try:
                self._tidy()
            except OSError as error:
                log.warning("warning: old checkpoints are not removed: %s", error)
        super().close()

    def _settle(self, *, say: bool = True) -> None:
        """Waits for a save that goes on; says whether it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._lose(error, say=say)
        else:
            if self._unsaved and self._saving in self._manager.all_steps():
                self._unsaved = None
                log.warning("checkpoints are saved again: that of step %s is", self._saving)

    def _lose(self, error: Exception, *, say: bool = True) -> None:
        """Takes a failed save back, so that the next one can be tried."""
        self._manager.reload()
        latest = self._manager.latest_step() or 0
        if jax.process_index() == 0:
            leftovers.clear(self._directory, (), latest)
        before = f"that of step {latest} stays" if latest else "there is none before it"
        line = (
            f"the checkpoint of step {self._saving} could not be saved: {leftovers.reason(error)}; "
        )
        if say and not self._unsaved:
            log.warning("warning: %s%s; the next save tries again", line, before)
        self._unsaved = UserError(f"{line}{before}, and a new start goes on from there")

    def _tidy(self) -> None:
        """Removes what is neither of the latest nor of the best, and what failures have left."""
        # Of several processes all have looked before the first removes something.
        superfluous = processes.gather(self._superfluous)[0]
        if jax.process_count() == 1:
            for step in superfluous:
                self._manager.delete(step)
        elif superfluous:
            # The manager's own way has each process look for what the first has removed already.
            processes.gather(partial(self._set_aside, superfluous))
            self._manager.reload()
        if jax.process_index() == 0:
            leftovers.clear(self._directory, self._left_out, self._manager.latest_step() or 0)
        self._left_out.clear()

    def _superfluous(self) -> list[int]:
        """The steps that are neither of the latest nor of the best."""
        there = [each for each in self._manager.all_steps() if self._path(each).is_dir()]
        scores = {step: self._score_of(step) for step in there}
        return sorted(scores.keys() - leftovers.to_keep(scores, *self._keep))

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves checkpoints to where `leftovers.clear` removes them, on the first process."""
        if jax.process_index() == 0:
            leftovers.set_aside(self._directory, steps)
