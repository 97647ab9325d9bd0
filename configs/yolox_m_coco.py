"""YOLOX-M on COCO, 300 epochs: the recipe of YOLOX-S at depth 0.67 and width 0.75.

    python train.py --config=configs/yolox_m_coco.py --config.data.root=/path/to/coco

The reference reaches box AP .469; not yet run here.
"""

import yolox_s_coco
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = yolox_s_coco.get_config()
    config.model.blocks.depth = 0.67
    config.model.blocks.width = 0.75
    return config
