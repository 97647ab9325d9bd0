"""Faster R-CNN R50-FPN on Pascal VOC 2007 + 2012, or any data of that layout.

    python train.py --config=configs/faster_rcnn_r50_fpn_voc.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/resnet50.pth

`root` holds VOC2007/ and VOC2012/; `init_from` is torchvision's ImageNet
ResNet-50. Trains on both trainval lists (12 epochs), judged on the 2007 test
list; not yet run here.
"""

from ml_collections import ConfigDict

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
EPOCH = 16_551 // 16  # Steps, at 16 images a step.


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "faster_rcnn"
    config.init_from = "data/resnet50.pth"

    config.batch_size = 16
    config.num_steps = 12 * EPOCH
    config.eval_every = 2 * EPOCH
    config.checkpoint_every = 1000
    config.log_every = 50
    config.eval_images = 0
    config.eval_batch_size = 16
    config.num_pictures = 16
    config.picture_score = 0.5

    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/VOCdevkit"
    config.data.train_split = "VOC2007/trainval+VOC2012/trainval"
    config.data.eval_split = "VOC2007/test"
    config.data.classes = VOC_CLASSES
    config.data.options = ConfigDict()
    config.data.keep_empty = False
    config.data.use_difficult = False
    config.data.canvas = (1024, 1024)
    config.data.resize = (600, 1000)
    config.data.max_boxes = 64
    config.data.horizontal_flip = 0.5
    config.data.num_threads = 16

    config.evaluation = ConfigDict()
    config.evaluation.name = "voc"
    config.evaluation.iou_threshold = 0.5
    config.evaluation.eleven_point = False  # The area, as from VOC 2010 on.

    config.model = ConfigDict()
    config.model.depth = 50
    config.model.norm = "frozen"
    config.model.frozen_stages = 1
    config.model.dtype = "bfloat16"

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.base_batch_size = 16
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (8 * EPOCH, 11 * EPOCH)
    config.optimizer.warmup_steps = 200
    config.optimizer.warmup_ratio = 0.001
    return config
