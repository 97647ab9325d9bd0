"""Checkpoints in `<directory>/<step>/`: some of the latest and of the best are kept.

A kill at any moment, a full disk or a damaged file costs at most the steps since
the last complete one. While a run goes on there may be one checkpoint more: the
next save removes it, once this one is known to be complete.

Each holds two items, so that evaluation needs no optimizer: `variables`
(params and batch_stats) and `training` (step and optimizer state). Where a
state keeps averages, they are the `variables`, and `training` holds the params
and batch_stats that they are averages of.
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
from flax import serialization

from jaxdet import whole_files
from jaxdet.training import leaves, leftovers, processes
from jaxdet.training import state as states
from jaxdet.training.state import TrainState
from jaxdet.types import UserError

ITEMS = ("variables", "training")

log = logging.getLogger("jaxdet")


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        directory: str | Path,
        *,
        metric: str | None = None,
        keep_latest: int = 1,
        keep_best: int = 1,
    ):
        """Opens the folder, or makes it.

        Args:
            directory: folder of the run's checkpoints.
            metric: result of the evaluation of which the largest is the best.
                Checkpoints saved with another one are never the best. None
                takes whichever they were saved with; it is for reading only.
            keep_latest: so many of the latest are kept,
            keep_best: and so many of the best.

        Raises:
            UserError: if there are only incomplete checkpoints. Beside complete
                ones they are left out, and a line in the log says so.
        """
        leftovers.quieten()
        self._directory = Path(directory).absolute()
        self.metric, self._keep = metric, (keep_latest, keep_best)
        self._left_out = leftovers.incomplete(self._directory)
        self._saving: int | None = None  # The step that was saved last, or is being saved.
        self._unsaved: UserError | None = None  # Of the last save, where it failed.
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                step_name_format=leftovers.NamesOfComplete(self._left_out),
                todelete_subdir=leftovers.REMOVED,
                create=metric is not None,
            ),
            item_handlers={item: ocp.StandardCheckpointHandler() for item in ITEMS},
        )
        # It would ask the runtime of jax.distributed with steps, among the numbers of `Stop`.
        self._manager.reached_preemption = lambda step: False
        for step, reason in sorted(self._left_out.items()):
            self._leave_out(self._damaged(step, reason))

    @property
    def latest(self) -> int | None:
        """The last step saved, None where there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the best result, None where no evaluation gave one, or it was deleted."""
        self._settle()
        step = self._manager.best_step()
        return None if step is None or not math.isfinite(self._score_of(step)) else step

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
            ValueError: if this step is saved already, or the folder was opened
                without a metric.
            UserError: if a parameter is not finite; nothing is saved then.
        """
        if self.metric is None:
            raise ValueError("these checkpoints were opened for reading, without a metric")
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
        self._settle()
        saved = f"step {self.latest} is" if self.latest else "no step is"
        return (
            f"the last good state stays: {saved} saved, and a new start goes on from there; a "
            "lower optimizer.learning_rate or an optimizer.clip_norm, such as 10, usually helps, "
            "in the first steps a longer optimizer.warmup_steps"
        )

    def restore(self, which: int | str, *, like: TrainState) -> TrainState:
        """Reads a whole state, as NumPy arrays.

        Args:
            which: a step, "latest" or "best". A latest one that is damaged gives
                way to the one before, with a line in the log.
            like: state of the wanted shapes; `jax.eval_shape` gives one.

        Raises:
            UserError: if there is no such checkpoint, if it is damaged, or if
                it does not fit; the message names the first leaf that differs.
        """
        items = self._read(which, states.split(like))
        variables, training = items["variables"], items["training"]
        state = {"ema": variables, **training} if like.ema else {"ema": {}, **variables, **training}
        return serialization.from_state_dict(like, state)

    def restore_variables(self, which: int | str, *, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads only what prediction needs, as NumPy arrays: the averages where they were kept.

        Args:
            which: a step, "latest" or "best".
            like: variables of the wanted shapes, for example from
                `jax.eval_shape` of the detector's `init`.

        Raises:
            UserError: as `restore`.
        """
        wanted = {"params": like["params"], "batch_stats": like.get("batch_stats", {})}
        variables = self._read(which, {"variables": serialization.to_state_dict(wanted)})
        return {name: variables["variables"][name] for name in like}

    def find(self, which: int | str) -> int:
        """The step that "latest", "best" or a number stands for.

        Raises:
            UserError: if there is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no checkpoint in {self._directory}")
        if which == "latest":
            return steps[-1]
        if which == "best":
            return self._manager.best_step()
        if str(which).isdecimal() and int(which) in steps:
            return int(which)
        raise UserError(
            f"no checkpoint {which!r} in {self._directory}; found latest, best and "
            f"{', '.join(map(str, steps))}"
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
        self._manager.close()

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
        if jax.process_index() == 0:
            leftovers.clear(self._directory, (), self.latest or 0)
        before = f"that of step {self.latest} stays" if self.latest else "there is none before it"
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
            leftovers.clear(self._directory, self._left_out, self.latest or 0)
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

    def _leave_out(self, damage: leftovers.Damaged) -> None:
        """Goes on without a damaged checkpoint, if there is another."""
        if not self._manager.all_steps():
            raise damage
        log.warning("warning: %s; it is left out", damage)

    def _read(self, which: int | str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The wanted items of a checkpoint, once their trees and shapes are found to fit."""
        self._settle()
        while True:
            step = self.find(which)
            try:
                return self._read_step(step, wanted)
            except leftovers.Damaged as damage:
                if which != "latest":
                    raise
                self._left_out[step] = str(damage)
                self._manager.reload()
                self._leave_out(damage)

    def _read_step(self, step: int, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            found = self._manager.item_metadata(step)
        except Exception as error:  # Orbax raises whatever its parsers and file system meet.
            raise self._damaged(step, error) from error
        for item, tree in wanted.items():
            if item not in found.keys():
                raise self._damaged(step, f"{item} is missing")
            self._check(step, item, found[item], tree)
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore() for item in wanted})
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int | str, reason: Any) -> leftovers.Damaged:
        before = [each for each in self._manager.all_steps() if each < int(step)]
        purpose = "use the one before" if before else "begin anew"
        return leftovers.Damaged(
            f"the checkpoint {self._path(step)} is damaged: {leftovers.reason(reason)}; "
            f"remove this folder to {purpose}"
        )

    def _check(self, step: int, item: str, metadata: Any, tree: Any) -> None:
        difference = leaves.first_difference(None if metadata is None else metadata.tree, tree)
        if difference:
            name, found, wanted = difference
            averaged = item == "training" and name.partition("/")[0] in states.VARIABLES
            hint = " (beside the averages of config.ema_decay)" if averaged else ""
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit the config: "
                f"{name}{hint}: wanted {wanted}, found {found}"
            )

    def _score(self, results: Mapping[str, float]) -> float:
        if self.metric is None:
            return max(results.values())
        return results.get(self.metric, -math.inf)

    def _score_of(self, step: int) -> float:
        results = self._manager.metrics(step) if self._path(step).is_dir() else None
        return self._score(results) if results else -math.inf

    def _path(self, step: int | str) -> Path:
        return self._directory / str(step)
