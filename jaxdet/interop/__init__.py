"""Weights of other systems <-> jaxdet variables."""

from jaxdet.interop.class_names import number_classes, read_classes
from jaxdet.interop.filling import LoadReport, from_own
from jaxdet.interop.pretrained import Weights, load_file, read_file, save_file
from jaxdet.interop.published import canvas_for, merged, resize_rule_for, settings_for
from jaxdet.interop.recognise import Recognised, recognise
from jaxdet.interop.torch_names import from_torch, to_torch

__all__ = [
    "LoadReport",
    "Recognised",
    "Weights",
    "canvas_for",
    "from_own",
    "from_torch",
    "load_file",
    "merged",
    "number_classes",
    "read_classes",
    "read_file",
    "recognise",
    "resize_rule_for",
    "save_file",
    "settings_for",
    "to_torch",
]
