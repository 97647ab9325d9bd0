"""A small YOLOX on photographs of blood cells (BCCD, VOC layout), from scratch.

    python train.py --config=configs/yolox_bccd.py --config.data.root=/path/to/BCCD

Trains on 292 images, most as mosaics, and is judged on the 72 test images, all
at 320 x 240. Two CPU cores: 52 minutes, AP .621, AP50 .933.
"""

import base_blood_cells
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_blood_cells.get_config()
    config.detector = "yolox"
    config.num_steps = 3000
    config.final_steps = 600
    config.eval_every = 600
    config.final_eval_every = 200
    config.ema_decay = 0.998
    config.ema_ramp = 500

    config.data.max_boxes = 80
    config.data.hsv = (0.015, 0.3, 0.2)
    config.data.mosaic = 0.7
    config.data.affine_zoom = (0.6, 1.4)
    config.data.affine_boxes = "ellipse"  # Cells are round.

    config.model.blocks = ConfigDict({"depth": 0.33, "width": 0.25})
    config.model.suppress = ConfigDict({"max_detections": 100, "max_candidates": 600})

    config.optimizer.name = "adamw"  # From scratch it gets further than SGD in so few steps.
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 150
    config.optimizer.final_ratio = 0.05
    config.optimizer.weight_decay = 0.02
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    return config
