"""What is found on a source, judged and written: results, proposals for another detector."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxdet.commands import finding
from jaxdet.commands.finding import Pair
from jaxdet.commands.prediction_files import write_json
from jaxdet.data import pipeline, proposal_files
from jaxdet.evaluation import EVALUATIONS, ImageDetections, coco
from jaxdet.types import Example, Source

log = logging.getLogger("jaxdet")


def evaluate(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> dict[str, Any]:
    """The results of the variables on `config.eval_images` of a source, as eval.json has them."""
    pairs = finding.detect(config, source, predict, variables, config.eval_images, together=True)
    return judge(config, source, pairs)


def judge(config: ConfigDict, source: Source, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The results of what is found on `config.eval_images` of the images, with their counts."""
    pairs = [pairs[i] for i in pipeline.spread(len(pairs), config.eval_images)]
    examples, found, unknown = finding.known(pairs)
    ignored = [example.crowd | example.difficult for example in examples]
    return {
        **measure(config, examples, found, source.class_names),
        "images": len(examples),
        "objects": sum(int(np.sum(~each)) for each in ignored),
        "ignored": sum(int(np.sum(each)) for each in ignored),
        "unreadable": finding.count_unreadable(pairs),
        "left_out": unknown,
    }


def format_table(config: ConfigDict, found: Mapping[str, Any]) -> str:
    """The results of an evaluation as text, with what they are results of."""
    counts = f"{found['images']} images with {found['objects']} objects"
    if found["ignored"]:
        counts += f" and {found['ignored']} that need not be found, crowds or difficult"
    if found["unreadable"] > found["left_out"]:
        lost = found["unreadable"] - found["left_out"]
        counts += f"; {lost} cannot be read: their objects count as missed"
    if found["left_out"]:
        counts += (
            f"; {found['left_out']} more cannot be read and are left out: nothing is known of them"
        )
    return f"{EVALUATIONS[config.evaluation.name].format_table(found)}\n{counts}"


def measure(
    config: ConfigDict,
    examples: Sequence[Example],
    found: Sequence[ImageDetections],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The results of detections, as `config.evaluation` wants them."""
    keywords = dict(config.evaluation)
    evaluation = EVALUATIONS[keywords.pop("name")]
    return evaluation.evaluate(examples, found, class_names, **keywords)


def write_proposals(file: str, source: Source, pairs: Sequence[Pair]) -> int:
    """Writes what is found on all images of a source as proposals; gives the number of images.

    Images that cannot be read get none. Where their ids are not known they are
    left out, with a line in the log.
    """
    ids = [example and example.id for example, _ in pairs]
    if hasattr(source, "ids"):
        ids = source.ids()
    rows = [(i, found) for i, (_, found) in zip(ids, pairs, strict=True) if i is not None]
    if len(rows) < len(pairs):
        missing = len(pairs) - len(rows)
        log.warning("%s: %d images that cannot be read are left out: no id is known", file, missing)
    boxes, scores = [found.boxes for _, found in rows], [found.scores for _, found in rows]
    proposal_files.write(file, [i for i, _ in rows], boxes, scores)
    return len(rows)


def write_results(
    file: Path, source: Source, pairs: Sequence[Pair], category_ids: Sequence[int] | None
) -> int:
    """Writes what is found as COCO's results; gives the number of images that were read.

    Args:
        file: of JSON; its folder is made where it is missing.
        source: of the images.
        pairs: from `finding.detect`.
        category_ids: number of each label in the results; None for the label + 1.
    """
    numbers = category_ids or range(1, len(source.class_names) + 1)
    examples, found, _ = finding.known(pairs)
    items = [
        item
        for example, detections in zip(examples, found, strict=True)
        for item in coco.result_items(detections, example.id, numbers)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, items)
    return len(pairs) - finding.count_unreadable(pairs)
