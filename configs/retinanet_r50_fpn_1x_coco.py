"""RetinaNet R50-FPN on COCO, mmdetection 2.11's 1x schedule.

    python train.py --config=configs/retinanet_r50_fpn_1x_coco.py \
        --config.data.root=/path/to/coco --config.init_from=/path/to/resnet50.pth

`root` holds annotations/ and train2017/, val2017/; `init_from` is torchvision's
ImageNet ResNet-50. The reference reaches box AP .365 on 8 V100 (12 epochs);
not yet run here. The rate scales with `batch_size`: it is .01 for 16 images.
"""

from ml_collections import ConfigDict

EPOCH = 117_266 // 16  # Steps; images with objects, at 16 a step.


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "retinanet"
    config.init_from = "data/resnet50.pth"

    config.batch_size = 16
    config.num_steps = 12 * EPOCH
    config.eval_every = EPOCH
    config.checkpoint_every = 2000
    config.log_every = 50
    config.eval_images = 0
    config.eval_batch_size = 16
    config.num_pictures = 16
    config.picture_score = 0.5

    config.data = ConfigDict()
    config.data.source = "coco"
    config.data.root = "data/coco"
    config.data.train_split = "train2017"
    config.data.eval_split = "val2017"
    config.data.classes = ()  # The 80 of the annotations.
    config.data.options = ConfigDict()
    config.data.options.annotations = "annotations/instances_{split}.json"
    config.data.options.images = "{split}"
    config.data.keep_empty = False
    config.data.canvas = (1344, 1344)
    config.data.resize = (800, 1333)
    config.data.max_boxes = 100
    config.data.horizontal_flip = 0.5
    config.data.num_threads = 16

    config.evaluation = ConfigDict()
    config.evaluation.name = "coco"

    config.model = ConfigDict()
    config.model.depth = 50
    config.model.norm = "frozen"
    config.model.frozen_stages = 1
    config.model.dtype = "bfloat16"  # The reference computes in float32.

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.base_batch_size = 16
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (8 * EPOCH, 11 * EPOCH)
    config.optimizer.warmup_steps = 500
    config.optimizer.warmup_ratio = 0.001
    return config
