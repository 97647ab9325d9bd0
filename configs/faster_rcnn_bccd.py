"""Faster R-CNN R18-FPN on photographs of blood cells (BCCD, VOC layout), from scratch.

    python train.py --config=configs/faster_rcnn_bccd.py --config.data.root=/path/to/BCCD

Trains on 292 images and is judged on the 72 test images, all at 320 x 240.
"""

import base_blood_cells
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_blood_cells.get_config()
    config.detector = "faster_rcnn"
    base_blood_cells.use_resnet(config)

    rpn = config.model.rpn = ConfigDict()
    # Sides of 24, 48 and 96: platelets, red, white cells.
    rpn.anchors = ConfigDict({"scales": (6.0,)})
    rpn.train = ConfigDict({"pre_nms": 400, "num_proposals": 300})
    rpn.test = ConfigDict({"pre_nms": 300, "num_proposals": 200})
    roi = config.model.roi = ConfigDict()
    roi.sample = ConfigDict({"num_samples": 64})
    # Small images: cells spread over the levels.
    roi.pool = ConfigDict({"finest_scale": 28.0, "max_sampling": 2})
    roi.head = ConfigDict({"hidden": 256})
    roi.suppress = ConfigDict({"max_candidates": 600})

    config.optimizer.learning_rate = 0.02
    return config
