"""What variables find on a source: the detections of its images, and pictures of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdet import visualize
from jaxdet.data import pipeline
from jaxdet.detectors import views
from jaxdet.evaluation import ImageDetections, runner
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
        predict: as for `detect`.
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
