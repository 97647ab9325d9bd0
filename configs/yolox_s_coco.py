"""YOLOX-S on COCO, 300 epochs: SimOTA of YOLOX 0.1, sizes and mixup of its later code.

    python train.py --config=configs/yolox_s_coco.py --config.data.root=/path/to/coco

`root` holds annotations/ and train2017/, val2017/. From scratch; the reference
reaches box AP .405 on 8 V100, at 8 images each; not yet run here. The rate
scales with `batch_size`: it is .01 for 64 images. The other sizes are built on
this file.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.detector = "yolox"
    config.batch_size = 64
    config.num_steps = "300 epochs"
    config.final_steps = "15 epochs"
    config.eval_every = "10 epochs"
    config.final_eval_every = "1 epoch"
    config.checkpoint_every = 2000
    config.num_pictures = 16
    config.picture_score = 0.3
    config.ema_decay = 0.9998
    config.multiscale_heights = tuple(range(480, 801, 32))

    config.data = ConfigDict()
    config.data.source = "coco"
    config.data.root = "data/coco"
    config.data.train_split = "train2017"
    config.data.eval_split = "val2017"
    config.data.canvas = (640, 640)
    config.data.max_boxes = 120
    config.data.min_side = 8.0
    config.data.hsv = (0.015, 0.7, 0.4)
    config.data.mosaic = 1.0
    config.data.mixup = 1.0
    config.data.num_threads = 16

    config.model = ConfigDict()
    config.model.blocks = ConfigDict({"depth": 0.33, "width": 0.5})

    config.optimizer = ConfigDict()
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.01
    config.optimizer.base_batch_size = 64
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = "5 epochs"
    config.optimizer.final_ratio = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    return config
