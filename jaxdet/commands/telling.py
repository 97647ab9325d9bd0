"""What a training prints: what there is to learn, what it could not use, how it ended."""

import sys
from pathlib import Path

from jaxdet import model_file
from jaxdet.commands import opening, report, splits
from jaxdet.data import inventory
from jaxdet.training.loop import Outcome
from jaxdet.training.stopping import OUT_OF_TIME
from jaxdet.types import Source


def say_data(run: opening.Run, eval_source: Source) -> None:
    """Prints what there is to learn and to find, and warns of what is probably a mistake."""
    data = run.config.data
    counted = {
        data.train_split: run.to_learn,
        data.eval_split: splits.take_inventory(run.config, eval_source),
    }
    counted = {split: found for split, found in counted.items() if found}
    if counted:
        print(inventory.table(counted, run.class_names))
    for split, found in counted.items():
        for sentence in inventory.warnings(found, split, run.class_names):
            print(f"warning: {sentence}", file=sys.stderr)


def losses_of_data(loader: object) -> list[str]:
    """Sentences about the images and objects that a run could not use."""
    sentences = []
    if loader.unreadable:
        sentences.append(f"{loader.unreadable} times an unreadable image gave way to the next")
    if loader.left_out:
        sentences.append(f"{loader.left_out} times an object found no slot in data.max_boxes")
    for done, count in loader.put_right.counts.items():
        sentences.append(f"{count} times a picture was put right: {done}")
    return sentences


def say_outcome(outcome: Outcome, workdir: Path, *, first_process: bool) -> int:
    """Prints how a run has ended; gives the exit status."""
    if outcome.stopped:
        late = outcome.stopped == OUT_OF_TIME
        reason = "after config.max_hours" if late else f"by signal {outcome.stopped}"
        step = int(outcome.state.step)
        # It may have gone back to its first state when it was stopped.
        saved = f"step {step} is saved, run again to resume" if step else "nothing is saved yet"
        print(f"stopped {reason}; {saved}")
        return 0 if late else 128 + outcome.stopped
    if first_process:
        print(f"pictures:    {workdir / 'pictures'}")
        print(f"checkpoints: {workdir / 'checkpoints'}")
        print(f"best model:  {workdir / model_file.NAME}")
        if (workdir / report.NAME).is_file():
            print(f"report:      {workdir / report.NAME}")
        print(f"TensorBoard: tensorboard --logdir={workdir}")
    return 0
