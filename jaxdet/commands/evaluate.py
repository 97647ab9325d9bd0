"""Evaluates a run: python eval.py --workdir=FOLDER [--checkpoint=best|latest|STEP] [--split=NAME].

The settings are those that the run used last; --config=FILE names others, and
--config.SETTING=VALUE changes one. The results of the best checkpoint on the run's
own split are written to eval.json, those of another --split to eval_<split>.json.
Of another --checkpoint the file says so: eval.latest.json, eval.8.json.

With --write_proposals=FILE.npz all detections on the split are written as
proposals for a detector that takes given ones; FILE may hold {split}. All images
of the split are predicted then; the results are of `eval_images` of them.

With --results=FILE.json so are all detections as COCO's results, with the image and
category ids of the data, as its test server takes them. A split without annotations
(COCO's test-dev) is only predicted: name its files by --config.data.options.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxdet import loading, model_file
from jaxdet.commands import (
    command_line,
    config_files,
    determinism,
    finding,
    opening,
    results,
    run_model,
    splits,
)
from jaxdet.data import sources
from jaxdet.training import steps
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.types import Source, UserError
from jaxdet.whole_files import write_json


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    command_line.run(evaluate, argv or sys.argv, usage=__doc__, define=_define_flags)


def evaluate(arguments: command_line.Arguments) -> int:
    """Evaluates one checkpoint, writes its results, prints the table; gives the exit status."""
    config, workdir, flags = arguments
    determinism.ask_for(config)
    config = config_files.with_classes_of_run(config, workdir)
    split = flags.split or config.data.eval_split
    proposals_file = _name_file("--write_proposals", flags.write_proposals, ".npz", split)
    results_file = _name_file("--results", flags.results, ".json", split)
    files = proposals_file or results_file
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint to evaluate: there is no folder {folder}")
    checkpoints = SavedCheckpoints(folder)
    checkpoints.find(flags.checkpoint)  # So that it is said at once where there is none.
    changes = config_files.changes_of_run(config, config_files.last_saved(workdir))

    steps.check_division(config.eval_batch_size, name="config.eval_batch_size")
    loading.keep_programs(config.keep_programs)
    run = opening.open_run(config)
    source = splits.open_source(config, split, run.class_names, annotated=not files)
    variables = checkpoints.restore_variables(flags.checkpoint, like=run.variables)
    step = checkpoints.find(flags.checkpoint)  # The one before, where the latest is damaged.
    checkpoints.close()
    for change in changes:
        print(f"warning: the run had another config: {change}", file=sys.stderr)

    predict = finding.make_predict(config, run.detector)
    max_images = 0 if files else config.eval_images
    pairs = finding.detect(config, source, predict, steps.put_state(variables), max_images)
    found = results.judge(config, source, pairs) if sources.is_annotated(source) else None
    if found is not None:  # Before anything is written that a full disk could end.
        print(results.format_table(config, found))
    if proposals_file:
        count = results.write_proposals(proposals_file, source, pairs)
        print(f"proposals of {count} images are written to {proposals_file}")
    if results_file:
        numbers = _category_ids(run, source, workdir) if run.detector.tells_classes else None
        count = results.write_results(Path(results_file), source, pairs, numbers)
        print(f"results of {count} images are written to {results_file}")
    if found is None:
        print(f"{split} has no annotations: there is nothing to evaluate")
        return 0
    file = workdir / _name_results(split, flags.checkpoint, own=config.data.eval_split)
    write_json(file, found)
    where = splits.describe_split(config.data, split)
    print(f"checkpoint {step} ({flags.checkpoint}) on {where}; written to {file}")
    return 0


def _name_file(flag: str, given: str | None, suffix: str, split: str) -> str:
    """The file that a flag names; "" for none."""
    file = (given or "").replace("{split}", split)
    if file and not file.endswith(suffix):
        raise UserError(f"{flag} wants a file{suffix}, found {file}")
    return file


def _category_ids(run: opening.Run, source: Source, workdir: Path) -> tuple[int, ...] | None:
    """The numbers of the classes in the data's files, as the split, the run or its data has them.

    A split may leave out categories that label nothing in it, and then knows none.
    """
    if found := run_model.category_ids(source, run.source):
        return found
    try:
        if (file := workdir / model_file.NAME).is_file():
            contents, _ = model_file.read(file)
            if contents.class_names == run.class_names and contents.category_ids:
                return contents.category_ids
        learnt = splits.open_source(run.config, run.config.data.train_split, run.class_names)
        if found := run_model.category_ids(learnt):
            return found
        reason = "neither the split nor the training data has them all"
    except UserError as error:
        reason = str(error)
    print(
        f"warning: the categories have the numbers 1 to {len(run.class_names)} in the results, "
        f"not the data's own: {reason}",
        file=sys.stderr,
    )
    return None


def _name_results(split: str, checkpoint: str, *, own: str) -> str:
    part = "" if split == own else "_" + re.sub(r"[^\w.+-]+", "-", split)
    return f"eval{part}{'' if checkpoint == 'best' else f'.{checkpoint}'}.json"


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", default="best", metavar="NAME", help="best, latest or a step")
    add("--split", metavar="NAME", help="split to evaluate; the run's own if none")
    add("--write_proposals", metavar="FILE.npz", help="file for all detections, as proposals")
    add("--results", metavar="FILE.json", help="file for all detections, as COCO's results")
