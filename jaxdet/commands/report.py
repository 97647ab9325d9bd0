"""Says how good a detector is, and why, on a page of HTML.

    jaxdet report MODEL [--split=NAME] [--out=FILE] [--data.SETTING=VALUE]

MODEL is the folder of a run, whose own data is measured on, or a model.safetensors,
which does not know any: then say --data.source=voc --data.root=FOLDER --split=test.
--data.SETTING=VALUE is --config.data.SETTING=VALUE; --config.SETTING=VALUE changes
any other setting, as for eval. docs/settings.md lists them.

The page needs no other file. It is written to report.html in the run's folder
(report_<split>.html for another split than the run's own), or here.
"""

import argparse
import importlib.metadata
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import model_file, visualize
from jaxdet import report as pages
from jaxdet.commands import (
    command_line,
    config_files,
    ending,
    finding,
    foreign_model,
    run_model,
    splits,
)
from jaxdet.data import transforms
from jaxdet.data.transforms import UnreadableImage
from jaxdet.evaluation import analysis
from jaxdet.model_file import Contents
from jaxdet.training import leaves, steps
from jaxdet.types import Detector, Example, Source, UserError

NAME = "report.html"  # In the folder of a run.
PICTURES = 8  # Of the worst images.
BATCH_SIZE = 8  # Images predicted at once where no run says it.

Changes = Sequence[tuple[str, str | None]]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command."""
    argv = argv or sys.argv
    with ending.in_one_line(argv):
        spelled = (re.sub(r"^--data\.", "--config.data.", text) for text in argv[1:])
        changes, rest = command_line.split(list(spelled))
        sys.exit(report(_parser(argv[0]).parse_args(rest), changes))


def report(flags: argparse.Namespace, changes: Changes) -> int:
    """Predicts a split, measures, writes the page, says where; gives the exit status."""
    path, named = Path(flags.model).expanduser(), dict(changes)
    if path.is_file() and not (named.get("data.source") and named.get("data.root")):
        raise UserError(
            f"{path} does not know its data: name it, such as "
            "--data.source=voc --data.root=FOLDER --split=test"
        )
    contents, detector = _read_model(path)
    if not can_report(detector, contents.class_names):
        raise UserError(
            f"{contents.detector} tells no classes apart: a report is about classes; "
            "jaxdet eval gives the recall of its proposals"
        )
    config, own_split = _read_config(path, contents, changes)
    if any(name.startswith(("detector", "model.")) for name in named):
        contents, detector = _change_model(config, contents, path)
    # Not put into the config: that name would be of what is held out, where the config says so.
    split = flags.split or config.data.eval_split
    steps.check_division(config.eval_batch_size, name="config.eval_batch_size")
    source = splits.open_source(config, split, contents.class_names)
    out = Path(flags.out).expanduser() if flags.out else _name_page(path, split, own_split)
    predict = finding.make_predict(config, detector)
    print(write(config, contents, source, predict, out, name=path.name, split=split))
    return 0


def can_report(detector: Detector, class_names: Sequence[str]) -> bool:
    """Whether what a detector finds has the classes of the data."""
    return detector.tells_classes or len(class_names) == 1


def write(
    config: ConfigDict,
    contents: Contents,
    source: Source,
    predict: Callable,
    out: Path,
    *,
    name: str,
    split: str,
) -> str:
    """Predicts, measures and writes the page.

    Args:
        config: says how the data is read, and what it is.
        contents: of the model's file; its variables are predicted with.
        source: the examples.
        predict: `(variables, images) -> Detections`, for the local devices.
        out: file of the page.
        name: of the model, for the title.
        split: of the source.

    Returns:
        Lines that say what was found, and where.
    """
    numbered = _Numbered(source, config.data.exif)
    variables = steps.put_state(contents.variables)
    pairs = finding.detect(config, numbered, predict, variables, config.eval_images)
    examples, found, _ = finding.known(pairs)
    measured = analysis.analyse(examples, found, contents.class_names)
    drawn = (_draw(numbered, examples[i], found[i], measured, i) for i in _worst(measured))
    # Those that cannot be read are nothing to look at.
    pictures = list(itertools.islice(filter(None, drawn), PICTURES))
    where = splits.describe_split(config.data, split)
    facts = pages.Facts(
        model=name,
        detector=contents.detector,
        data=f"{config.data.source} {config.data.root}, split {where}",
        version=importlib.metadata.version("jaxdet"),
        unreadable=finding.count_unreadable(pairs),
        unusable=sum(len(e.labels) - len(transforms.clean(e).labels) for e in examples),
    )
    pages.write_page(out, measured, facts, pictures)
    ap = "no objects" if measured.totals["AP"] is None else f"AP {measured.totals['AP']:.3f}"
    return f"{ap} on {len(examples)} images, best --score={measured.score:.2f}\nreport: {out}"


class _Numbered:
    """A source whose examples have their places as ids."""

    def __init__(self, source: Source, exif: str):
        self.class_names, self._source, self._exif = source.class_names, source, exif
        if hasattr(source, "annotations"):
            numbered = enumerate(source.annotations())
            self._annotations = [example._replace(id=i) for i, example in numbered]
            self.annotations = lambda: self._annotations

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._source[index]._replace(id=index)

    def named(self, index: int) -> Example:
        """The example as the source has it, decoded."""
        return transforms.decode(self._source[index], exif=self._exif)


def _worst(measured):
    """Places of the images with mistakes, the most first."""
    mistakes = measured.wrong + measured.missed
    order = np.argsort(-mistakes, kind="stable")
    return [int(i) for i in order if mistakes[i]]


def _draw(source: _Numbered, example: Example, found: Any, measured: analysis.Analysis, i: int):
    try:
        named = source.named(int(example.id))
    except (UnreadableImage, OSError):
        return None
    picture = visualize.compare(
        named.image, named, found, measured.class_names, min_score=measured.score
    )
    wrong, missed = int(measured.wrong[i]), int(measured.missed[i])
    return picture, f"{named.id}: {wrong} false, {missed} missed"


def _read_model(path: Path) -> tuple[Contents, Detector]:
    if not path.is_dir():
        return model_file.read(path)
    if (path / model_file.NAME).is_file():
        return model_file.read(path / model_file.NAME)
    return run_model.read(path)


def _change_model(config: ConfigDict, contents: Contents, path: Path) -> tuple[Contents, Detector]:
    """The model with the settings that the config has of it, which its variables have to fit."""
    contents = contents._replace(detector=config.detector, settings=config.model.to_dict())
    detector = foreign_model.build(contents, "config.model")
    canvas, rule = contents.canvas, contents.resize_rule
    images = model_file.blank_images(1, canvas, contents.max_proposals, rule)
    wanted = jax.eval_shape(detector.init, jax.random.key(0), images)
    if difference := leaves.first_difference(contents.variables, wanted):
        leaf, found, want = difference
        raise UserError(f"{path} does not fit the config: {leaf}: wanted {want}, found {found}")
    return contents, detector


def _read_config(path: Path, contents: Contents, changes: Changes) -> tuple[ConfigDict, str]:
    """The settings, and the split that needs no saying."""
    if path.is_dir():
        saved = config_files.read_json(config_files.last_saved(path))
        own = command_line.finish(saved).data.eval_split
        return command_line.finish(saved, changes), own
    config = {
        "detector": contents.detector,
        "model": contents.settings,
        "batch_size": BATCH_SIZE,
        "num_steps": 1,
        "data": {
            "source": dict(changes)["data.source"],
            "canvas": contents.canvas,
            "more_canvases": contents.more_canvases,
            "resize": contents.resize,
            "resize_rule": contents.resize_rule,
            "max_proposals": contents.max_proposals,
            "max_boxes": 1,  # Of a training.
        },
        "optimizer": {"learning_rate": 1.0, "base_batch_size": 1},
    }
    finished = command_line.finish(config, changes)
    return finished, finished.data.eval_split


def _name_page(path: Path, split: str, own: str) -> Path:
    if not path.is_dir():
        return Path(NAME)
    if split == own:
        return path / NAME
    return path / ("report_" + re.sub(r"[^\w.+-]+", "-", split) + ".html")


def _parser(program: str) -> ending.Parser:
    parser = ending.Parser(program, __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="the folder of a run, or a model.safetensors")
    add("--split", metavar="NAME", help="split to measure on; the run's own if none")
    add("--out", metavar="FILE", help=f"the page; {NAME} in the run's folder, or here")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser
