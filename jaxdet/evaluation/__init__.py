"""Detections on the original images and their metrics; host side, NumPy.

Each module of `EVALUATIONS` has
    evaluate(examples, detections, class_names, **settings) -> results by name,
        numbers, None or dicts of them;
    format_table(results) -> text;
    BEST, the name of the result of which the largest is the best.
"""

from types import ModuleType

from jaxdet.evaluation import coco, recall, voc
from jaxdet.evaluation.runner import ImageDetections, run

# As a config names them.
EVALUATIONS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "proposals": recall}

__all__ = ["EVALUATIONS", "ImageDetections", "coco", "recall", "run", "voc"]
