"""The smallest run that has every part; the tests name the data's folder."""

from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    config = ConfigDict()
    config.detector = "faster_rcnn"
    config.batch_size = 8
    config.num_steps = int(argument or 24)
    config.eval_every = 8
    config.checkpoint_every = 3
    config.log_every = 2
    config.eval_batch_size = 8
    config.num_pictures = 2
    config.report = False
    config.reload_best_at_milestones = True

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.root = ""
    config.data.eval_split = "test"
    config.data.classes = ("circle", "square")
    config.data.options = ConfigDict()
    config.data.options.num_train = 16
    config.data.options.num_test = 8
    config.data.options.height_range = (48, 64)
    config.data.options.width_range = (48, 64)
    config.data.options.size_range = (12, 32)
    config.data.canvas = (64, 64)
    config.data.max_boxes = 8

    config.model = ConfigDict()
    config.model.backbone = ConfigDict({"depth": 10, "width": 4, "norm": "batch"})
    config.model.neck = ConfigDict({"channels": 8})
    config.model.rpn = ConfigDict()
    config.model.rpn.sample = ConfigDict({"num_samples": 32})
    config.model.rpn.train = ConfigDict({"pre_nms": 32, "num_proposals": 32})
    config.model.rpn.test = ConfigDict({"pre_nms": 32, "num_proposals": 32})
    config.model.roi = ConfigDict()
    config.model.roi.sample = ConfigDict({"num_samples": 16})
    config.model.roi.head = ConfigDict({"hidden": 16})
    config.model.roi.suppress = ConfigDict({"max_detections": 10})

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.02
    config.optimizer.base_batch_size = 8
    config.optimizer.milestones = (12,)
    config.optimizer.warmup_steps = 4
    return config
