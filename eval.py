"""Evaluates a run: python eval.py --config=FILE --workdir=DIR [--checkpoint=best|latest|STEP]."""

import sys
from collections.abc import Sequence

from absl import flags

from jaxdet import commands, configuration
from jaxdet.evaluation import coco
from jaxdet.training import steps
from jaxdet.training.checkpoint import Checkpoints
from jaxdet.training.writer import write_json
from jaxdet.types import UserError


def main(argv: Sequence[str]) -> int:
    """Evaluates one checkpoint, writes eval.json, prints the table; gives the exit status."""
    command = configuration.read_command_line(argv, define=_define_flags)
    config, workdir, which = command.config, command.workdir, command.flags.checkpoint
    commands.check(config, starts=False)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"no checkpoint to evaluate: there is no folder {folder}")
    checkpoints = Checkpoints(folder)
    step = checkpoints.find(which)
    differences = configuration.differing_keys(config, workdir / "config.json")

    class_names = config.data.classes
    if not class_names:
        train_source = commands.build_source(config, config.data.train_split, ())
        class_names = train_source.class_names
    source = commands.build_source(config, config.data.eval_split, class_names)
    detector = commands.build_detector(config, num_classes=len(class_names))
    like = commands.abstract_variables(config, detector)
    variables = steps.put_state(checkpoints.restore_variables(step, like=like))
    checkpoints.close()
    for difference in differences:
        print(f"warning: the run had another config: {difference}", file=sys.stderr)

    predict = steps.pmap_predict_step(detector)
    results = commands.evaluate(config, source, predict, variables)
    write_json(workdir / "eval.json", results)
    print(coco.format_table(results))
    print(f"checkpoint {step} ({which}); written to {workdir / 'eval.json'}")
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step", flag_values=values)


if __name__ == "__main__":
    commands.run_command(main)
