"""YOLOX-Tiny on COCO, 300 epochs: a narrower YOLOX-S at 416 x 416, without mixup.

    python train.py --config=configs/yolox_tiny_coco.py --config.data.root=/path/to/coco

The reference reaches box AP .328; not yet run here.
"""

import yolox_s_coco
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = yolox_s_coco.get_config()
    config.model.blocks.width = 0.375
    config.data.canvas = (416, 416)
    config.multiscale_heights = tuple(range(320, 641, 32))
    config.data.affine_zoom = (0.5, 1.5)
    config.data.mixup = 0.0
    return config
