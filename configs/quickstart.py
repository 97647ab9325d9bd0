"""Shapes drawn on first use, a small Faster R-CNN, two CPU cores.

python train.py --config=configs/quickstart.py
"""

from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The settings of the run."""
    del argument
    config = ConfigDict()
    config.seed = 0
    config.detector = "faster_rcnn"
    config.init_from = ""

    config.batch_size = 8
    config.num_steps = 400
    config.eval_every = 200
    config.checkpoint_every = 100
    config.log_every = 20
    config.eval_images = 0
    config.eval_batch_size = 8
    config.num_pictures = 8
    config.picture_score = 0.5

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.root = "data"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.classes = ("circle", "square", "triangle", "star")
    config.data.options = ConfigDict({"num_train": 1200, "num_test": 200})
    config.data.canvas = (160, 192)
    config.data.resize = (160, 192)
    config.data.max_boxes = 12
    config.data.horizontal_flip = 0.5
    config.data.vertical_flip = 0.0
    config.data.keep_empty = True

    config.model = ConfigDict()
    config.model.depth = 18
    config.model.width = 32
    config.model.norm = "batch"
    config.model.frozen_stages = 0
    config.model.fpn_channels = 64
    config.model.hidden = 128
    config.model.roi_num_samples = 64
    config.model.num_proposals = 200
    config.model.num_proposals_test = 200
    config.model.rpn_pre_nms = 400
    config.model.rpn_pre_nms_test = 400

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 10.0
    return config
