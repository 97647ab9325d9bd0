"""A small Faster R-CNN on generated pictures of shapes, on two CPU cores.

    python train.py --config=configs/quickstart.py

The pictures are drawn on first use, into data/shapes.
"""

import base_shapes
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_shapes.get_config()
    config.detector = "faster_rcnn"
    config.num_steps = 880
    config.eval_every = 440

    config.model = ConfigDict()
    config.model.backbone = ConfigDict({"depth": 10, "width": 32, "norm": "batch"})
    config.model.neck = ConfigDict({"channels": 48})
    rpn = config.model.rpn = ConfigDict()
    rpn.anchors = ConfigDict({"scales": (5.0,)})
    rpn.sample = ConfigDict({"num_samples": 128})
    rpn.train = ConfigDict({"pre_nms": 200, "num_proposals": 128})
    rpn.test = ConfigDict({"pre_nms": 150, "num_proposals": 96})
    roi = config.model.roi = ConfigDict()
    roi.sample = ConfigDict({"num_samples": 64, "positive_fraction": 0.5})
    # Small images: shapes spread over the levels.
    roi.pool = ConfigDict({"finest_scale": 28.0, "max_sampling": 2})
    # Shapes of all classes have their borders where one sees them.
    roi.head = ConfigDict({"hidden": 256, "class_agnostic": True})
    roi.suppress = ConfigDict({"max_detections": 30, "max_candidates": 300})

    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    return config
