"""YOLOX-Nano on COCO, 300 epochs: YOLOX-Tiny, narrower, with depthwise convolutions.

    python train.py --config=configs/yolox_nano_coco.py --config.data.root=/path/to/coco

The reference reaches box AP .258; not yet run here.
"""

import yolox_tiny_coco
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = yolox_tiny_coco.get_config()
    config.model.blocks.width = 0.25
    config.model.blocks.depthwise = True
    config.data.mosaic = 0.5
    return config
