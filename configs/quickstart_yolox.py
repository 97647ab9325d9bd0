"""A small YOLOX on generated pictures of shapes, on two CPU cores.

    python train.py --config=configs/quickstart_yolox.py

The pictures are drawn on first use, into data/shapes. 8 minutes, AP50 .875.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "yolox"
    config.init_from = ""

    config.batch_size = 8
    config.num_steps = 1500
    config.final_steps = 200
    config.eval_every = 500
    config.checkpoint_every = 100
    config.log_every = 20
    config.eval_images = 0
    config.eval_batch_size = 8
    config.num_pictures = 8
    config.picture_score = 0.5
    config.ema_decay = 0.998
    config.ema_ramp = 200

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.root = "data"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.classes = ("circle", "square", "triangle", "star")
    config.data.options = ConfigDict()
    config.data.options.num_train = 1200
    config.data.options.num_test = 200
    config.data.options.max_objects = 10
    config.data.options.size_range = (16, 72)
    config.data.options.max_turn = 20.0  # Degrees; upright shapes are learnt in minutes.
    config.data.options.empty_rate = 0.05
    config.data.keep_empty = True
    config.data.canvas = (160, 192)
    config.data.resize = (160, 192)
    config.data.max_boxes = 16
    config.data.horizontal_flip = 0.5
    config.data.vertical_flip = 0.0
    config.data.num_threads = 2

    config.evaluation = ConfigDict()
    config.evaluation.name = "coco"

    config.model = ConfigDict()
    config.model.depth = 0.33
    config.model.width = 0.25
    config.model.max_detections = 30
    config.model.max_candidates = 300

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # From scratch it gets further than SGD in so few steps.
    config.optimizer.learning_rate = 2e-3
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.final_ratio = 0.05
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    config.optimizer.clip_norm = 10.0
    return config
