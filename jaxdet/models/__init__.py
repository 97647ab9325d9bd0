"""Linen modules: parameters and the forward pass, nothing else."""

from jaxdet.models.box_head import BoxHead
from jaxdet.models.cspdarknet import CSPDarknet
from jaxdet.models.fpn import FPN
from jaxdet.models.pafpn import PAFPN
from jaxdet.models.resnet import ResNet
from jaxdet.models.retina_head import RetinaHead
from jaxdet.models.rpn_head import RPNHead
from jaxdet.models.vgg import VGG
from jaxdet.models.yolox_head import YOLOXHead

__all__ = [
    "FPN",
    "MODULES",
    "PAFPN",
    "VGG",
    "BoxHead",
    "CSPDarknet",
    "RPNHead",
    "ResNet",
    "RetinaHead",
    "YOLOXHead",
]

# As a config names them.
MODULES = {
    "resnet": ResNet,
    "vgg": VGG,
    "cspdarknet": CSPDarknet,
    "fpn": FPN,
    "pafpn": PAFPN,
    "rpn_head": RPNHead,
    "box_head": BoxHead,
    "retina_head": RetinaHead,
    "yolox_head": YOLOXHead,
}
