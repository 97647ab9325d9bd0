"""A small YOLOX on photographs of blood cells (BCCD, VOC layout), from scratch.

    python train.py --config=configs/yolox_bccd.py --config.data.root=/path/to/BCCD

Trains on 292 images, most as mosaics, and is judged on the 72 test images, all
at 320 x 240. Two CPU cores: 52 minutes, AP .621, AP50 .933.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "yolox"
    config.init_from = ""

    config.batch_size = 8
    config.num_steps = 3000
    config.final_steps = 600
    config.eval_every = 600
    config.final_eval_every = 200
    config.checkpoint_every = 100
    config.log_every = 20
    config.eval_images = 0
    config.eval_batch_size = 8
    config.num_pictures = 8
    config.picture_score = 0.5
    config.ema_decay = 0.998
    config.ema_ramp = 500

    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/bccd"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.classes = ("RBC", "WBC", "Platelets")
    config.data.options = ConfigDict()
    config.data.keep_empty = True
    config.data.canvas = (240, 320)
    config.data.resize = (240, 320)
    config.data.max_boxes = 80
    config.data.horizontal_flip = 0.5
    config.data.vertical_flip = 0.5  # Cells have no upright.
    config.data.hsv = (0.015, 0.3, 0.2)
    config.data.mosaic = 0.7
    config.data.mixup = 0.0
    config.data.rotation = 10.0
    config.data.translation = 0.1
    config.data.affine_zoom = (0.6, 1.4)
    config.data.shear = 2.0
    config.data.affine_boxes = "ellipse"  # Cells are round.
    config.data.num_threads = 2

    config.evaluation = ConfigDict()
    config.evaluation.name = "coco"

    config.model = ConfigDict()
    config.model.depth = 0.33
    config.model.width = 0.25
    config.model.max_detections = 100
    config.model.max_candidates = 600

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # From scratch it gets further than SGD in so few steps.
    config.optimizer.learning_rate = 2e-3
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 150
    config.optimizer.final_ratio = 0.05
    config.optimizer.weight_decay = 0.02
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    config.optimizer.clip_norm = 10.0
    return config
