"""Linen modules: parameters and the forward pass, nothing else."""

from jaxdet.models.box_head import BoxHead
from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import ResNet
from jaxdet.models.retina_head import RetinaHead
from jaxdet.models.rpn_head import RPNHead
from jaxdet.models.vgg import VGG

__all__ = ["FPN", "VGG", "BoxHead", "RPNHead", "ResNet", "RetinaHead"]
