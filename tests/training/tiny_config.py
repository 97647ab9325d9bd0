"""The smallest run that has every part; the tests name the data's folder."""

from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.detector = "faster_rcnn"
    config.init_from = ""
    config.batch_size = 8
    config.num_steps = int(argument or 24)
    config.eval_every = 8
    config.checkpoint_every = 3
    config.log_every = 2
    config.eval_images = 0
    config.eval_batch_size = 8
    config.num_pictures = 2
    config.picture_score = 0.5
    config.reload_best_at_milestones = True

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.root = ""
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.classes = ("circle", "square")
    config.data.options = ConfigDict()
    config.data.options.num_train = 16
    config.data.options.num_test = 8
    config.data.options.height_range = (48, 64)
    config.data.options.width_range = (48, 64)
    config.data.options.size_range = (12, 32)
    config.data.canvas = (64, 64)
    config.data.resize = (64, 64)
    config.data.max_boxes = 8

    config.model = ConfigDict()
    config.model.depth = 10
    config.model.width = 4
    config.model.norm = "batch"
    config.model.fpn_channels = 8
    config.model.hidden = 16
    config.model.rpn_num_samples = 32
    config.model.roi_num_samples = 16
    config.model.num_proposals = 32
    config.model.num_proposals_test = 32
    config.model.rpn_pre_nms = 32
    config.model.rpn_pre_nms_test = 32
    config.model.max_detections = 10

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (12,)
    config.optimizer.warmup_steps = 4
    return config
