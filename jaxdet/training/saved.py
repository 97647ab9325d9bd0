"""The checkpoints of a run in `<directory>/<step>/`, to be read.

Each holds two items, so that evaluation needs no optimizer: `variables`
(params and batch_stats) and `training` (step and optimizer state). Where a
state keeps averages, they are the `variables`, and `training` holds the params
and batch_stats that they are averages of.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import serialization

from jaxdet.training import leaves, leftovers
from jaxdet.training import state as states
from jaxdet.training.state import TrainState
from jaxdet.types import UserError

ITEMS = ("variables", "training")

log = logging.getLogger("jaxdet")


class SavedCheckpoints:
    """What a run has saved."""

    def __init__(self, directory: str | Path, *, metric: str | None = None):
        """Opens the folder.

        Args:
            directory: folder of the run's checkpoints.
            metric: result of the evaluation of which the largest is the best.
                Checkpoints saved with another one are never the best. None
                takes whichever they were saved with, for those who only read.

        Raises:
            UserError: if there are only incomplete checkpoints. Beside complete
                ones they are left out, and a line in the log says so.
        """
        leftovers.quieten()
        self._directory = Path(directory).absolute()
        self.metric = metric
        self._left_out = leftovers.incomplete(self._directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                step_name_format=leftovers.NamesOfComplete(self._left_out),
                todelete_subdir=leftovers.REMOVED,
                create=False,
            ),
            item_handlers={item: ocp.StandardCheckpointHandler() for item in ITEMS},
        )
        for step, reason in sorted(self._left_out.items()):
            self._leave_out(self._damaged(step, reason))

    @property
    def latest(self) -> int | None:
        """The last step, None where there is none."""
        self._settle()
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the best result, None where no evaluation gave one, or it was deleted."""
        self._settle()
        step = self._manager.best_step()
        return None if step is None or not math.isfinite(self._score_of(step)) else step

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

        The best of those that were never judged is the latest.

        Raises:
            UserError: if there is no such checkpoint.
        """
        self._settle()
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no checkpoint in {self._directory}")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best
            return steps[-1] if best is None else best
        if str(which).isdecimal() and int(which) in steps:
            return int(which)
        raise UserError(
            f"no checkpoint {which!r} in {self._directory}; found latest, best and "
            f"{', '.join(map(str, steps))}"
        )

    def close(self) -> None:
        """Ends what reads them."""
        self._manager.close()

    def _settle(self) -> None:
        """Waits until what can be read is known: here at once."""

    def _leave_out(self, damage: leftovers.Damaged) -> None:
        """Goes on without a damaged checkpoint, if there is another."""
        if not self._manager.all_steps():
            raise damage
        log.warning("warning: %s; it is left out", damage)

    def _read(self, which: int | str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The wanted items of a checkpoint, once their trees and shapes are found to fit."""
        while True:
            step = self.find(which)
            try:
                return self._read_step(step, wanted)
            except leftovers.Damaged as damage:
                if not self._path(step).is_dir():
                    self._manager.reload()  # A run that goes on has removed it.
                    continue
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
            return max(results.values(), default=-math.inf)
        return results.get(self.metric, -math.inf)

    def _score_of(self, step: int) -> float:
        results = self._manager.metrics(step) if self._path(step).is_dir() else None
        return self._score(results) if results else -math.inf

    def _path(self, step: int | str) -> Path:
        return self._directory / str(step)
