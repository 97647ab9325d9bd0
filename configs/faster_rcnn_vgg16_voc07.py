"""Faster R-CNN on VGG-16 and Pascal VOC 2007, as simple-faster-rcnn trains it.

    python train.py --config=configs/faster_rcnn_vgg16_voc07.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/vgg16.pth

`root` holds VOC2007/; `init_from` is torchvision's ImageNet VGG-16. One image a
step, 14 epochs; the best checkpoint is reloaded when the rate drops after the
tenth. The reference reaches 11-point mAP .685 to .701; not yet run here. It differs
in keeping 300 detections an image (there all), and in what regions at the border of
an image read: the canvas beside it (there nothing). From scratch:
--config.model.backbone.norm=group --config.model.backbone.frozen_stages=0 --config.init_from=
"""

import base_vgg16
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_vgg16.get_config()
    config.detector = "faster_rcnn"
    config.batch_size = 1
    config.num_steps = "14 epochs"
    config.checkpoint_every = 2500
    config.pictures_every = 500
    config.reload_best_at_milestones = True
    config.data.canvas = (1008, 1008)
    config.data.resize = (600, 1000)
    config.evaluation.eleven_point = True

    rpn = config.model.rpn
    rpn.coder = ConfigDict({"max_ratio": float("inf")})
    rpn.loss.box.beta = 1 / 9  # Sigma 3.
    small = {"min_size": 16.0, "min_size_of_original": True, "filter_first": True}
    rpn.train = ConfigDict({"pre_nms": 12000, "num_proposals": 2000, **small})
    rpn.test.update(small)
    rpn.confusion = True
    roi = config.model.roi = ConfigDict()
    roi.coder = ConfigDict({"max_ratio": float("inf")})
    roi.sample = ConfigDict({"num_samples": 128})
    roi.pool = ConfigDict({"kind": "pool"})
    roi.head = ConfigDict({"hidden": 4096})
    roi.loss = ConfigDict({"box": {"kind": "smooth_l1"}})
    roi.suppress = ConfigDict({"iou_threshold": 0.3, "max_detections": 300})
    roi.confusion = True

    config.optimizer.base_batch_size = 1
    config.optimizer.decay_biases = False
    config.optimizer.bias_rate = 2.0
    config.optimizer.milestones = ("10 epochs",)
    return config
