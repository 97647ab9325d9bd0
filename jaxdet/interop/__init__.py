"""Weights of other systems <-> jaxdet variables."""

from jaxdet.interop.pretrained import load_file
from jaxdet.interop.published import resize_rule_for, settings_for
from jaxdet.interop.torch_names import LoadReport, from_torch, to_torch

__all__ = ["LoadReport", "from_torch", "load_file", "resize_rule_for", "settings_for", "to_torch"]
