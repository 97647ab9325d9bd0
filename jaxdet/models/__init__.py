"""Linen modules: parameters and the forward pass, nothing else."""

from jaxdet.models.box_head import BoxHead
from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import ResNet, frozen_parameters
from jaxdet.models.rpn_head import RPNHead

__all__ = ["FPN", "BoxHead", "RPNHead", "ResNet", "frozen_parameters"]
