"""The quickstart's detector, trained on generated shapes, learns blood cells (BCCD, VOC layout).

    python train.py --config=configs/fine_tune_bccd.py --config.data.root=/path/to/BCCD

Starts from the model that the quickstart leaves in runs/quickstart; --config.init_from=
starts from scratch. 300 steps of 8 images; docs/fine_tuning.md has both curves.
"""

import base_blood_cells
import quickstart
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = quickstart.get_config()
    config.data = base_blood_cells.get_config().data
    config.model.roi.suppress.max_detections = 100  # More cells than shapes lie on an image.
    config.num_steps = 300
    config.eval_every = 30
    config.init_from = "runs/quickstart"
    return config
