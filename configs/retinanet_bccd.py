"""RetinaNet R18-FPN on photographs of blood cells (BCCD, VOC layout), from scratch.

    python train.py --config=configs/retinanet_bccd.py --config.data.root=/path/to/BCCD

Trains on 292 images and is judged on the 72 test images, all at 320 x 240.
"""

import base_blood_cells
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_blood_cells.get_config()
    config.detector = "retinanet"
    base_blood_cells.use_resnet(config)

    config.model.head = ConfigDict({"num_convs": 2})
    # Sides of 24, 30, 38, 48, ...: platelets to white cells.
    config.model.anchors = ConfigDict({"scales": tuple(3.0 * 2 ** (i / 3) for i in range(3))})
    config.model.pre_nms = 300
    config.model.suppress = ConfigDict({"max_candidates": 600})

    config.optimizer.learning_rate = 0.01
    return config
