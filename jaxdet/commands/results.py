"""What variables find on a source: results, pictures, proposals for another detector."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxdet import visualize
from jaxdet.commands.prediction_files import write_json
from jaxdet.data import pipeline, proposal_files, sources
from jaxdet.detectors import views
from jaxdet.evaluation import EVALUATIONS, ImageDetections, coco, runner
from jaxdet.training import steps
from jaxdet.types import Detector, Example, Source

# What a batch of an evaluation takes of the section "data".
EVAL_KEYS = ("canvas", "resize", "resize_rule", "max_proposals", "num_threads", "exif")
# The class of what a detector finds that tells none apart.
OBJECT = ("object",)


class Files(NamedTuple):
    """Where all that is found on a source is written; "" for nowhere.

    Attributes:
        proposals: see `data.proposal_files`.
        results: JSON as COCO's results.
    """

    proposals: str = ""
    results: str = ""


NO_FILES = Files()
NOTHING = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def make_predict(config: ConfigDict, detector: Detector) -> Callable:
    """The compiled prediction of evaluations, in the views that the config wants.

    Raises:
        UserError: for scales out of range.
    """
    detector = views.with_views(detector, flip=config.eval_flip, scales=config.eval_scales)
    return steps.pmap_predict_step(detector)


def evaluate(
    config: ConfigDict,
    source: Source,
    predict: Callable,
    variables: Any,
    files: Files = NO_FILES,
    *,
    category_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The results of the variables on a source, as eval.json has them.

    Of a source without annotations they are empty.

    Args:
        config: of the run.
        source: the examples.
        predict: `(variables, images) -> Detections`.
        variables: of the detector.
        files: where any is named, all images are predicted and what is found on
            them is written; then `config.eval_images` of them are evaluated as usual.
        category_ids: number of each label in the results; None for the label + 1.
    """
    max_images = 0 if any(files) else config.eval_images
    examples, found, unreadable = detect(config, source, predict, variables, max_images)
    if files.proposals:
        _write_proposals(files.proposals, source, examples, found)
    if files.results:
        numbers = category_ids or range(1, len(source.class_names) + 1)
        _write_results(Path(files.results), examples, found, numbers)
    if not sources.is_annotated(source):
        return {}
    if any(files):
        places = _spread(len(examples), config.eval_images)
        examples, found = [examples[i] for i in places], [found[i] for i in places]
        unreadable = sum(each is NOTHING for each in found)
    measured = measure(config, examples, found, source.class_names)
    objects = sum(int(np.sum(~example.crowd)) for example in examples)
    return {**measured, "images": len(examples), "objects": objects, "unreadable": unreadable}


def format_table(config: ConfigDict, found: Mapping[str, Any]) -> str:
    """The results of an evaluation as text, with what they are results of."""
    counts = f"{found['images']} images with {found['objects']} objects"
    if found["unreadable"]:
        counts += f"; {found['unreadable']} cannot be read: their objects count as missed"
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


def _draw_images(config, detector, source, predict, variables):
    if config.num_pictures == 0:
        return []
    with closing(_eval_batches(config, source, config.num_pictures, keep_images=True)) as batches:
        found = runner.run(lambda images: predict(variables, images), batches)
    names, pictures = source.class_names, []
    for example, detections in zip(*found, strict=True):
        if not detector.tells_classes:
            names = OBJECT
            example = example._replace(labels=np.zeros_like(example.labels))
        picture = visualize.compare(
            example.image, example, detections, names, min_score=config.picture_score
        )
        pictures.append((str(example.id), picture))
    return pictures


def detect(
    config: ConfigDict, source: Source, predict: Callable, variables: Any, max_images: int
) -> tuple[list[Example], list[ImageDetections], int]:
    """The examples, what is found on each, and how many images cannot be read.

    On those nothing is found. Where the source does not know what they show, they are left out.

    Args:
        config: of the run.
        source: the examples.
        predict: as for `evaluate`.
        variables: of the detector.
        max_images: so many at most, spread over the source; 0 for all.
    """
    with closing(_eval_batches(config, source, max_images)) as batches:
        examples, found = runner.run(lambda images: predict(variables, images), batches)
    lost, total = batches.lost, len(examples) + len(batches.lost)
    if lost:
        log = logging.getLogger("jaxdet")
        log.warning("%d of %d images cannot be read", len(lost), total)
    pairs = iter(zip(examples, found, strict=True))
    pairs = [(lost[i], NOTHING) if i in lost else next(pairs) for i in range(total)]
    known = [pair for pair in pairs if pair[0] is not None]
    return [example for example, _ in known], [each for _, each in known], len(lost)


def _write_proposals(file, source, examples, found):
    """Images that cannot be read get no proposals, so that the file has all of the source."""
    ids = [example.id for example in examples]
    if len(ids) < len(source):
        known = set(ids)
        ids += [i for i in _all_ids(source) if i not in known]
    found = [*found, *[NOTHING] * (len(ids) - len(found))]
    proposal_files.write(file, ids, [each.boxes for each in found], [each.scores for each in found])


def _write_results(file, examples, found, category_ids):
    items = [
        item
        for example, detections in zip(examples, found, strict=True)
        for item in coco.result_items(detections, example.id, category_ids)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, items)


def _spread(count, wanted):
    wanted = min(wanted or count, count)
    return [i * count // wanted for i in range(wanted)]


def _eval_batches(config: ConfigDict, source: Source, max_images: int, **more: Any) -> Any:
    keywords = {key: config.data[key] for key in EVAL_KEYS}
    return pipeline.eval_batches(
        source, batch_size=config.eval_batch_size, max_images=max_images, **keywords, **more
    )


def _all_ids(source):
    # A source without `ids` is read once more, which is slow but rarely needed.
    return source.ids() if hasattr(source, "ids") else [source[i].id for i in range(len(source))]
