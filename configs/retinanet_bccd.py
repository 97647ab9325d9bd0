"""RetinaNet R18-FPN on photographs of blood cells (BCCD, VOC layout), from scratch.

    python train.py --config=configs/retinanet_bccd.py --config.data.root=/path/to/BCCD

Trains on 292 images and is judged on the 72 test images, all at 320 x 240.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "retinanet"
    config.init_from = ""

    config.batch_size = 8
    config.num_steps = 1200
    config.eval_every = 300
    config.checkpoint_every = 100
    config.log_every = 20
    config.eval_images = 0
    config.eval_batch_size = 8
    config.num_pictures = 8
    config.picture_score = 0.5

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
    config.data.max_boxes = 64
    config.data.horizontal_flip = 0.5
    config.data.vertical_flip = 0.5  # Cells have no upright.
    config.data.brightness = 0.1
    config.data.contrast = 0.1
    config.data.saturation = 0.1
    config.data.num_threads = 2

    config.evaluation = ConfigDict()
    config.evaluation.name = "coco"

    config.model = ConfigDict()
    config.model.depth = 18
    config.model.norm = "batch"
    config.model.frozen_stages = 0
    config.model.fpn_channels = 96
    config.model.octave_base_scale = 3.0  # Sides of 24, 30, 38, 48, ...: platelets to white cells.
    config.model.tower_convs = 2
    config.model.pre_nms = 300
    config.model.max_candidates = 600

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 10.0
    return config
