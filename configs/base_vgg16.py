"""What the recipes on VGG-16 and Pascal VOC 2007 share: data, anchors and a softmax RPN.

`root` holds VOC2007/; `init_from` is torchvision's ImageNet VGG-16. From scratch:
--config.model.backbone.norm=group --config.model.backbone.frozen_stages=0 --config.init_from=
"""

import base_voc
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All but the detector."""
    config = base_voc.get_config()
    config.init_from = "data/vgg16.pth"
    config.log_every = 40
    config.data.num_threads = 8

    config.model = ConfigDict()
    config.model.backbone = ConfigDict({"name": "vgg", "frozen_stages": 2})
    config.model.neck = ConfigDict({"name": "none"})
    config.model.rpn = ConfigDict()
    config.model.rpn.head = ConfigDict({"softmax": True})
    config.model.rpn.anchors = ConfigDict()
    config.model.rpn.anchors.scales = (8.0, 16.0, 32.0)
    config.model.rpn.anchors.centre = 0.5
    config.model.rpn.anchors.divisor = 16
    config.model.rpn.anchors.whole_cells = True
    # Anchors that leave the image train nothing.
    config.model.rpn.inside = ConfigDict({"allowed_border": 0.0, "count_touching": True})
    config.model.rpn.assign = ConfigDict({"min_positive_iou": 0.0, "reassign_low_quality": False})
    config.model.rpn.loss = ConfigDict({"least_samples": 0, "box": {"kind": "smooth_l1"}})
    config.model.rpn.test = ConfigDict({"pre_nms": 6000, "num_proposals": 300})

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 5e-4
    return config
