"""The smallest run of YOLOX that has every part of its training."""

import tiny_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny_config.get_config("8")
    config.detector = "yolox"
    config.reload_best_at_milestones = False
    config.batch_size = 4
    config.final_steps = 4
    config.eval_every = 6
    config.final_eval_every = 2
    config.checkpoint_every = 3
    config.ema_decay = 0.9
    config.ema_ramp = 4
    config.multiscale_heights = (32, 64)
    config.multiscale_every = 2

    config.data.mosaic = 0.8
    config.data.mixup = 0.5
    config.data.affine_zoom = (0.5, 1.5)
    config.data.hsv = (0.015, 0.7, 0.4)
    config.data.max_boxes = 24

    config.model = ConfigDict()
    config.model.blocks = ConfigDict({"depth": 0.33, "width": 0.0625, "activation": "relu"})
    config.model.suppress = ConfigDict({"max_detections": 10, "max_candidates": 40})

    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.milestones = ()
    config.optimizer.warmup_steps = 2
    config.optimizer.nesterov = True
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    return config
