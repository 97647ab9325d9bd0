"""YOLOX-L on COCO, 300 epochs: the recipe of YOLOX-S at depth 1.0 and width 1.0.

    python train.py --config=configs/yolox_l_coco.py --config.data.root=/path/to/coco

The reference reaches box AP .497; not yet run here.
"""

import yolox_s_coco
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = yolox_s_coco.get_config()
    config.model.blocks.depth = 1.0
    config.model.blocks.width = 1.0
    return config
