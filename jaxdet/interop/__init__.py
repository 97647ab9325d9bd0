"""Weights of other systems <-> jaxdet variables."""

from jaxdet.interop.filling import LoadReport, from_own
from jaxdet.interop.pretrained import load_file
from jaxdet.interop.published import settings_for
from jaxdet.interop.torch_names import from_torch, to_torch

__all__ = ["LoadReport", "from_own", "from_torch", "load_file", "settings_for", "to_torch"]
