"""A region proposal network on VGG-16 alone, on data of VOC's layout.

    python train.py --config=configs/rpn_vgg16.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/vgg16.pth

`root` holds VOC2007/; `init_from` is torchvision's ImageNet VGG-16, whose
features stay as they are. Images keep their shape within 800 x 800 pixels, which
have 22,500 anchors; every class is an object, scored by its objectness, so it also
serves to find one kind of thing, such as faces or lines of text. From scratch:
--config.model.norm=group --config.model.frozen_stages=0 --config.init_from=
Not yet run here at this size.
"""

from ml_collections import ConfigDict

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
EPOCH = 5_011 // 15  # Steps, at 15 images a step.


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "rpn"
    config.init_from = "data/vgg16.pth"

    config.batch_size = 15
    config.num_steps = 12 * EPOCH
    config.eval_every = EPOCH
    config.checkpoint_every = 300
    config.log_every = 40
    config.eval_images = 0
    config.eval_batch_size = 15
    config.num_pictures = 8
    config.picture_score = 0.5

    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/VOCdevkit"
    config.data.train_split = "VOC2007/trainval"
    config.data.eval_split = "VOC2007/test"
    config.data.classes = VOC_CLASSES
    config.data.options = ConfigDict()
    config.data.keep_empty = False
    config.data.use_difficult = False
    config.data.canvas = (800, 800)
    config.data.resize = (800, 800)
    config.data.max_boxes = 64
    config.data.horizontal_flip = 0.5
    config.data.num_threads = 8

    config.evaluation = ConfigDict()
    config.evaluation.name = "proposals"
    config.evaluation.limits = (100, 300)

    config.model = ConfigDict()
    config.model.backbone = "vgg"
    config.model.depth = 16
    config.model.norm = "none"
    config.model.frozen_stages = 5
    config.model.size_divisor = 16
    config.model.anchor_scales = (8.0, 16.0, 32.0)
    config.model.anchor_centre = 0.5
    config.model.allowed_border = 0.0  # Anchors that leave the image train nothing.
    config.model.count_touching = True
    config.model.rpn_min_positive_iou = 0.0
    config.model.rpn_reassign_low_quality = False
    config.model.rpn_softmax = True
    config.model.rpn_least_samples = 0
    config.model.rpn_box_loss = "smooth_l1"
    config.model.rpn_box_normalizer = "positives"
    config.model.rpn_box_weight = 10.0
    config.model.rpn_pre_nms_test = 6000
    config.model.num_proposals_test = 300

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.base_batch_size = 15
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (8 * EPOCH, 11 * EPOCH)
    return config
