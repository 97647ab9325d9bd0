"""Detections on the original images and their COCO metrics; host side, NumPy."""

from jaxdet.evaluation.coco import Curves, ImageDetections, evaluate, format_table, measure
from jaxdet.evaluation.runner import run

__all__ = ["Curves", "ImageDetections", "evaluate", "format_table", "measure", "run"]
