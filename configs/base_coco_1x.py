"""What mmdetection 2.11's 1x schedule on COCO is, whatever the detector; see the recipes on it.

`root` holds annotations/ and train2017/, val2017/; `init_from` is torchvision's
ImageNet ResNet-50.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All but the detector."""
    config = ConfigDict()
    config.init_from = "data/resnet50.pth"
    config.batch_size = 16
    config.num_steps = "12 epochs"
    config.checkpoint_every = 2000
    config.num_pictures = 16

    config.data = ConfigDict()
    config.data.source = "coco"
    config.data.root = "data/coco"
    config.data.train_split = "train2017"
    config.data.eval_split = "val2017"
    config.data.keep_empty = False
    # Lying and upright images, none of which comes out smaller than on (1344, 1344).
    config.data.canvas = (800, 1344)
    config.data.more_canvases = ((1344, 800),)
    config.data.resize = (800, 1333)
    config.data.max_boxes = 100
    config.data.num_threads = 16

    config.evaluation = ConfigDict()

    config.model = ConfigDict()
    config.model.dtype = "bfloat16"  # The reference computes in float32.
    config.model.backbone = ConfigDict({"depth": 50, "norm": "frozen", "frozen_stages": 1})

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.02
    config.optimizer.base_batch_size = 16
    config.optimizer.milestones = ("8 epochs", "11 epochs")
    config.optimizer.warmup_steps = 500
    return config
