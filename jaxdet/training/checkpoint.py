"""Checkpoints in `<directory>/<step>/`: the latest and the best are kept.

Each holds two items, so that evaluation needs no optimizer: `variables`
(params and batch_stats) and `training` (step and optimizer state). Where a
state keeps averages, they are the `variables`, and `training` holds the params
and batch_stats that they are averages of.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxdet.training.state import TrainState
from jaxdet.types import UserError

ITEMS = ("variables", "training")
VARIABLES = ("params", "batch_stats")
# Every complete checkpoint has these, and they are not empty.
FILES = (*(f"{item}/_METADATA" for item in ITEMS), "metrics/metrics")
MAX_REASON = 200  # Characters of orbax's own message that are shown.


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: str | Path, *, metric: str | None = None):
        """Opens the folder, or makes it.

        Args:
            directory: folder of the run's checkpoints.
            metric: result of the evaluation of which the largest is the best.
                Checkpoints saved with another one are never the best. None
                takes whichever they were saved with; it is for reading only.

        Raises:
            UserError: if a checkpoint is incomplete.
        """
        self._directory = Path(directory).absolute()
        self._check_complete()
        self._metric = metric
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(1), BestN(get_metric_fn=self._score, n=1)]
                ),
            ),
            item_handlers={item: ocp.StandardCheckpointHandler() for item in ITEMS},
        )

    @property
    def latest(self) -> int | None:
        """The last step saved, None where there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the best result, None where no evaluation gave one, or it was deleted."""
        self._manager.wait_until_finished()
        step = self._manager.best_step()
        results = None if step is None else self._manager.metrics(step)
        return step if results and math.isfinite(self._score(results)) else None

    def save(self, state: TrainState, results: Mapping[str, Any] | None = None) -> None:
        """Starts to save a state; the writing goes on in the background.

        A process that is killed meanwhile leaves the checkpoint before intact.

        Args:
            state: the state after its step; it is copied to the host first.
            results: of the evaluation at this step. A state without results,
                or whose metric is not finite, is never the best.

        Raises:
            ValueError: if this step is saved already, or the folder was opened
                without a metric.
        """
        if self._metric is None:
            raise ValueError("these checkpoints were opened for reading, without a metric")
        # A plain device_get may share memory with a buffer that the next step overwrites.
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(state))
        step = int(host.step)
        score = (results or {}).get(self._metric)
        known = score is not None and math.isfinite(score)
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(host).items()}
        # Without `force` a step that is saved already is silently left as it is.
        self._manager.save(
            step,
            args=ocp.args.Composite(**items),
            metrics={self._metric: float(score) if known else -math.inf},
            force=True,
        )

    def restore(self, which: int | str, *, like: TrainState) -> TrainState:
        """Reads a whole state, as NumPy arrays.

        Args:
            which: a step, "latest" or "best".
            like: state of the wanted shapes; `jax.eval_shape` gives one.

        Raises:
            UserError: if there is no such checkpoint, if it is damaged, or if
                it does not fit; the message names the first leaf that differs.
        """
        items = self._read(which, _items(like))
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

    def reached_preemption(self, step: int) -> bool:
        """Whether one of several processes was told to stop; all of them agree on the step."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def _read(self, which: int | str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The wanted items of a checkpoint, once their trees and shapes are found to fit."""
        self._manager.wait_until_finished()
        step = self.find(which)
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

    def _check_complete(self) -> None:
        for folder in self._directory.glob("*"):
            if not folder.name.isdecimal():
                continue  # Not a checkpoint yet; orbax renames it when all is written.
            for name in FILES:
                if not (folder / name).is_file() or not (folder / name).stat().st_size:
                    raise self._damaged(folder.name, f"{name} is missing or empty")

    def _damaged(self, step: int | str, reason: Any) -> UserError:
        reason = str(reason).strip().splitlines() or [type(reason).__name__]
        return UserError(
            f"the checkpoint {self._directory / str(step)} is damaged: {reason[0][:MAX_REASON]}; "
            "remove this folder to use the one before"
        )

    def _check(self, step: int, item: str, metadata: Any, wanted: Any) -> None:
        found_leaves = {} if metadata is None else _describe(metadata.tree)
        wanted_leaves = _describe(wanted)
        for name in [*wanted_leaves, *found_leaves]:
            found, want = found_leaves.get(name, "nothing"), wanted_leaves.get(name, "nothing")
            if found != want:
                averaged = item == "training" and name.partition("/")[0] in VARIABLES
                hint = " (beside the averages of config.ema_decay)" if averaged else ""
                raise UserError(
                    f"checkpoint {step} in {self._directory} does not fit the config: "
                    f"{name}{hint}: wanted {want}, found {found}"
                )

    def _score(self, results: Mapping[str, float]) -> float:
        if self._metric is None:
            return max(results.values())
        return results.get(self._metric, -math.inf)


def _items(state: TrainState) -> dict[str, Any]:
    """A state as plain nested dicts, split into the items of a checkpoint."""
    tree = serialization.to_state_dict(state)
    trained = {name: tree[name] for name in VARIABLES}
    training = {name: tree[name] for name in ("step", "opt_state")}
    if not state.ema:
        return {"variables": trained, "training": training}
    return {"variables": tree["ema"], "training": {**training, **trained}}


def _describe(tree: Any) -> dict[str, str]:
    """Each leaf's path and what it is, such as "(64, 3) float32"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{tuple(leaf.shape)} {leaf.dtype}"
        for path, leaf in leaves
    }
