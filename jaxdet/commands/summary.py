"""Counts what a detector is made of, and what a step and a prediction cost.

    jaxdet summary --config=FILE [--batch_size=N] [--memory] [--json]
    jaxdet summary MODEL [--batch_size=N] [--memory] [--json]

MODEL is a model.safetensors, or the folder of a run. There are parameters by part, the
levels with their anchors or grid points, FLOPs, and bytes.

FLOPs are XLA's count of the program as it is lowered, for one image of the canvas: a
multiplication and an addition are two, and the body of a loop (suppression, RoI pooling)
counts once. With --memory both programs are compiled for the device at hand, and their
temporaries added: that takes from seconds to many minutes. A config that names no classes
needs its data, or --num_classes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxdet import model_file
from jaxdet.commands import command_line, config_files, costs, ending, opening
from jaxdet.commands.costs import Subject
from jaxdet.types import UserError

# Of an epoch: a step costs the same however many there are.
SOME_IMAGES = 100_000


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = list(argv or sys.argv)
    model = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else ""
    with ending.in_one_line(argv):
        subject, flags = _open(argv, model)
        found = costs.measure(subject, memory=flags.memory)
        print(json.dumps(found, indent=2) if flags.json else costs.format_tables(found))
        sys.exit(0)


def _open(argv: list[str], model: str) -> tuple[Subject, argparse.Namespace]:
    """What the command line names: a config, a run, or a model file."""
    path = Path(model).expanduser()
    if model and path.is_dir() and not (path / config_files.SAVED_NAME).is_file():
        path = path / model_file.NAME  # A folder to which only the model was taken.
    if model and not path.is_dir():
        parser = ending.Parser(argv[0], __doc__)
        parser.add_argument("--debug", action="store_true")
        _define_flags(parser)
        flags = parser.parse_args(argv[1:])
        return _from_model(path, _check(1 if flags.batch_size is None else flags.batch_size)), flags
    named = [f"--workdir={path}"] if model else []
    config, _, flags = command_line.read(
        [argv[0], *named, *argv[1:]], usage=__doc__, define=_define_flags
    )
    if flags.num_classes and not config.data.classes:
        config.data.classes = tuple(f"class {k}" for k in range(flags.num_classes))
    size = config.batch_size if flags.batch_size is None else flags.batch_size
    return _from_config(config, _check(size)), flags


def _from_model(path: Path, batch_size: int) -> Subject:
    contents, detector = model_file.read(path)
    return Subject(
        name=contents.detector,
        num_classes=len(contents.class_names),
        detector=detector,
        variables=jax.eval_shape(lambda: contents.variables),
        images=lambda count: model_file.blank_images(
            count, contents.canvas, contents.max_proposals, contents.resize_rule
        ),
        batch_size=batch_size,
    )


def _from_config(config: Any, batch_size: int) -> Subject:
    run = opening.open_run(config)
    config = opening.in_steps(config, SOME_IMAGES)
    run = opening.with_optimizer(run._replace(config=config))
    return Subject(
        name=config.detector,
        num_classes=len(run.class_names),
        detector=run.detector,
        variables=run.variables,
        images=lambda count: opening.blank_images(config, count),
        batch_size=batch_size,
        run=run,
    )


def _check(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"--batch_size wants at least 1, found {batch_size}")
    return batch_size


def _define_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch_size", type=int, metavar="N", help="images on a device; the config's, or 1")
    add("--num_classes", type=int, metavar="K", help="of a config that names none, without data")
    add("--memory", action="store_true", help="compile, and add what temporaries take")
    add("--json", action="store_true", help="print JSON, in bytes and single FLOPs")
