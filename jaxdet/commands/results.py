"""What variables find on a source: results, pictures, proposals for another detector."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import visualize
from jaxdet.commands.prediction_files import write_json
from jaxdet.data import pipeline, proposal_files
from jaxdet.detectors import views
from jaxdet.evaluation import EVALUATIONS, ImageDetections, coco, runner
from jaxdet.training import processes, steps
from jaxdet.types import Detections, Detector, Example, Images, Source

# What a batch of an evaluation takes of the section "data".
EVAL_KEYS = (
    *("canvas", "more_canvases", "resize", "resize_rule"),
    *("max_proposals", "num_threads", "exif"),
)
# The class of what a detector finds that tells none apart.
OBJECT = ("object",)
NOTHING = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))

log = logging.getLogger("jaxdet")

# An image and what is found on it. `NOTHING` itself stands for one that cannot be read; where
# the source does not know what it shows, either, there is no example.
Pair = tuple[Example | None, ImageDetections]


def make_predict(config: ConfigDict, detector: Detector) -> Callable:
    """The compiled prediction of evaluations, in the views that the config wants.

    Raises:
        UserError: for scales out of range.
    """
    detector = views.with_views(detector, flip=config.eval_flip, scales=config.eval_scales)
    return steps.pmap_predict_step(detector)


def evaluate(
    config: ConfigDict, source: Source, predict: Callable, variables: Any
) -> dict[str, Any]:
    """The results of the variables on `config.eval_images` of a source, as eval.json has them."""
    pairs = detect(config, source, predict, variables, config.eval_images, together=True)
    return judge(config, source, pairs)


def detect(
    config: ConfigDict,
    source: Source,
    predict: Callable,
    variables: Any,
    max_images: int,
    *,
    together: bool = False,
) -> list[Pair]:
    """The images of a source in its order, and what is found on each.

    Args:
        config: of the run.
        source: the examples.
        predict: `(variables, images) -> Detections`.
        variables: of the detector.
        max_images: so many at most, spread over the source; 0 for all.
        together: whether all processes of the run do this; each predicts its share of
            the images, and gets what the others found.
    """
    share = (jax.process_index(), jax.process_count()) if together else (0, 1)
    find = partial(_find, config, source, predict, variables, max_images, share)
    found, lost, limit = {}, {}, 0
    for part in processes.gather(find) if together else [find()]:
        found |= part[0]
        lost |= part[1]
        limit = max(limit, part[2])
    total = len(found) + len(lost)
    if lost:
        log.warning("%d of %d images cannot be read", len(lost), total)
    counts = np.array([np.sum(~example.crowd) for example, _ in found.values()])
    if np.any(counts > limit):
        log.warning(
            "%d of %d images show more objects than the %d that the detector gives, up to %d: "
            "raise max_detections in config.model (of an RPN num_proposals)",
            *(np.sum(counts > limit), total, limit, np.max(counts)),
        )
    return [(lost[i], NOTHING) if i in lost else found[i] for i in range(total)]


def known(pairs: Sequence[Pair]) -> tuple[list[Example], list[ImageDetections], int]:
    """The images of which it is known what they show, what is found on each, how many are left out.

    Those that are left out could not be read.
    """
    kept = [pair for pair in pairs if pair[0] is not None]
    return [pair[0] for pair in kept], [pair[1] for pair in kept], len(pairs) - len(kept)


def count_unreadable(pairs: Sequence[Pair]) -> int:
    """How many images could not be read."""
    return sum(found is NOTHING for _, found in pairs)


def judge(config: ConfigDict, source: Source, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The results of what is found on `config.eval_images` of the images, with their counts."""
    pairs = [pairs[i] for i in pipeline.spread(len(pairs), config.eval_images)]
    examples, found, unknown = known(pairs)
    ignored = [example.crowd | example.difficult for example in examples]
    return {
        **measure(config, examples, found, source.class_names),
        "images": len(examples),
        "objects": sum(int(np.sum(~each)) for each in ignored),
        "ignored": sum(int(np.sum(each)) for each in ignored),
        "unreadable": count_unreadable(pairs),
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


def draw(
    config: ConfigDict,
    detector: Detector,
    source: Source,
    predict: Callable,
    variables: Any,
    matrices: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[tuple[str, np.ndarray]]:
    """Pictures of some images and of confusion matrices.

    The images are spread over the source, with the ground truth left and the
    predictions right; those that cannot be read are left out.

    Args:
        config: of the run.
        detector: says what its labels and matrices mean.
        source: the examples.
        predict: as for `evaluate`.
        variables: of the detector.
        matrices: counts, rows truth and columns prediction, by name.

    Returns:
        Names and RGB pixels.
    """
    pictures = _draw_images(config, detector, source, predict, variables)
    for name, counts in matrices.items():
        if name not in detector.matrices:
            continue  # A detector of one's own may count what it does not explain.
        classes = [source.class_names if n is ... else (n,) for n in detector.matrices[name]]
        pictures.append((name, visualize.confusion_matrix(counts, tuple(chain(*classes)))))
    return pictures


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
        pairs: from `detect`.
        category_ids: number of each label in the results; None for the label + 1.
    """
    numbers = category_ids or range(1, len(source.class_names) + 1)
    examples, found, _ = known(pairs)
    items = [
        item
        for example, detections in zip(examples, found, strict=True)
        for item in coco.result_items(detections, example.id, numbers)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, items)
    return len(pairs) - count_unreadable(pairs)


def _find(config, source, predict, variables, max_images, share):
    """What is found, and what cannot be read, by places; and how much is found on an image."""
    limit = 0

    def look(images: Images) -> Detections:
        nonlocal limit
        found = predict(variables, images)
        limit = found.boxes.shape[1]
        return found

    share = dict(zip(("process_index", "process_count"), share, strict=True))
    with closing(_eval_batches(config, source, max_images, **share)) as batches:
        found = runner.run(look, batches)
    return found, batches.lost, limit


def _draw_images(config, detector, source, predict, variables):
    if config.num_pictures == 0:
        return []
    with closing(_eval_batches(config, source, config.num_pictures, keep_images=True)) as batches:
        found = runner.run(lambda images: predict(variables, images), batches)
    names, pictures = source.class_names, []
    for _, (example, detections) in sorted(found.items()):
        if not detector.tells_classes:
            names = OBJECT
            example = example._replace(labels=np.zeros_like(example.labels))
        picture = visualize.compare(
            example.image, example, detections, names, min_score=config.picture_score
        )
        pictures.append((str(example.id), picture))
    return pictures


def _eval_batches(config: ConfigDict, source: Source, max_images: int, **more: Any) -> Any:
    keywords = {key: config.data[key] for key in EVAL_KEYS}
    # No process predicts more at once than its part, whoever takes part: so much has room.
    batch_size = config.eval_batch_size // jax.process_count()
    return pipeline.eval_batches(
        source, batch_size=batch_size, max_images=max_images, **keywords, **more
    )
