"""Evaluates a run: python eval.py --workdir=DIR [--checkpoint=best|latest|STEP] [--split=NAME].

The settings are those that the run began with; --config=FILE names others, and
--config.key=VALUE changes one. The results of the run's own split are written
to eval.json, those of another --split to eval_<split>.json.

With --write_proposals=FILE.npz all detections on the split are written as
proposals for a detector that takes given ones; FILE may hold {split}. All images
of the split are predicted then; the results are of `eval_images` of them.
"""

import re
import sys
from collections.abc import Sequence

from absl import flags

from jaxdet import commands, configuration
from jaxdet.evaluation import EVALUATIONS
from jaxdet.training import steps
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.writer import write_json
from jaxdet.types import UserError


def main(argv: Sequence[str]) -> int:
    """Evaluates one checkpoint, writes its results, prints the table; gives the exit status."""
    command = configuration.read_command_line(argv, define=_define_flags)
    config, workdir, which = command.config, command.workdir, command.flags.checkpoint
    split = command.flags.split or config.data.eval_split
    proposals_file = (command.flags.write_proposals or "").replace("{split}", split)
    if proposals_file and not proposals_file.endswith(".npz"):
        raise UserError(f"--write_proposals wants a file.npz, found {proposals_file}")
    commands.check(config, starts=False)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint to evaluate: there is no folder {folder}")
    checkpoints = Checkpoints(folder)
    step = checkpoints.find(which)
    differences = configuration.differing_keys(config, workdir / configuration.SAVED_NAME)

    class_names = commands.class_names(config)
    source = commands.build_source(config, split, class_names)
    detector = commands.build_detector(config, num_classes=len(class_names))
    like = commands.abstract_variables(config, detector)
    variables = steps.put_state(checkpoints.restore_variables(step, like=like))
    checkpoints.close()
    for difference in differences:
        print(f"warning: the run had another config: {difference}", file=sys.stderr)

    predict = steps.pmap_predict_step(detector)
    results = commands.evaluate(config, source, predict, variables, proposals_file=proposals_file)
    if proposals_file:
        print(f"proposals of {len(source)} images are written to {proposals_file}")
    file = workdir / _name_results(split, own=config.data.eval_split)
    write_json(file, results)
    print(EVALUATIONS[config.evaluation.name].format_table(results))
    print(f"checkpoint {step} ({which}) on {split}; written to {file}")
    return 0


def _name_results(split: str, *, own: str) -> str:
    if split == own:
        return "eval.json"
    return "eval_" + re.sub(r"[^\w.+-]+", "-", split) + ".json"


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step", flag_values=values)
    flags.DEFINE_string(
        "split", None, "split to evaluate; the run's own if none", flag_values=values
    )
    flags.DEFINE_string("write_proposals", None, "file for all detections", flag_values=values)


if __name__ == "__main__":
    commands.run_command(main)
