"""Errors of the caller that all metrics look for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdet.types import Example


def check_input(examples: Sequence[Example], detections: Sequence[Any], num_classes: int) -> None:
    """Checks that there are detections for each example, and only labels 0..num_classes-1.

    Raises:
        ValueError: for the first thing that is wrong.
    """
    if len(examples) != len(detections):
        raise ValueError(f"{len(examples)} examples, but detections of {len(detections)} images")
    for example in examples:
        _check_labels(example.labels, num_classes, f"example {example.id!r}")
    for image, found in enumerate(detections, start=1):
        _check_labels(found.labels, num_classes, f"the detections of image {image}")


def _check_labels(labels, num_classes, where):
    labels = np.asarray(labels)
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} in {where}, but there are {num_classes} classes")
