"""Faster R-CNN on VGG-16 and Pascal VOC 2007, as simple-faster-rcnn trains it.

    python train.py --config=configs/faster_rcnn_vgg16_voc07.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/vgg16.pth

`root` holds VOC2007/; `init_from` is torchvision's ImageNet VGG-16. One image a
step, 14 epochs; the best checkpoint is reloaded when the rate drops after the
tenth. The reference reaches 11-point mAP .685 to .701; not yet run here. It differs
in keeping 300 detections an image (there all), and in what regions at the border of
an image read: the canvas beside it (there nothing). From scratch:
--config.model.norm=group --config.model.frozen_stages=0 --config.init_from=
"""

from ml_collections import ConfigDict

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
EPOCH = 5_011  # Steps, at one image a step.


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = ConfigDict()
    config.seed = 0
    config.detector = "faster_rcnn"
    config.init_from = "data/vgg16.pth"

    config.batch_size = 1
    config.num_steps = 14 * EPOCH
    config.eval_every = EPOCH
    config.checkpoint_every = 2500
    config.log_every = 40
    config.eval_images = 0
    config.eval_batch_size = 1
    config.num_pictures = 8
    config.pictures_every = 500
    config.picture_score = 0.5
    config.reload_best_at_milestones = True

    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/VOCdevkit"
    config.data.train_split = "VOC2007/trainval"
    config.data.eval_split = "VOC2007/test"
    config.data.classes = VOC_CLASSES
    config.data.options = ConfigDict()
    config.data.keep_empty = False
    config.data.use_difficult = False
    config.data.canvas = (1008, 1008)
    config.data.resize = (600, 1000)
    config.data.max_boxes = 64
    config.data.horizontal_flip = 0.5
    config.data.num_threads = 8

    config.evaluation = ConfigDict()
    config.evaluation.name = "voc"
    config.evaluation.eleven_point = True

    config.model = ConfigDict()
    config.model.backbone = "vgg"
    config.model.depth = 16
    config.model.norm = "none"
    config.model.frozen_stages = 2
    config.model.size_divisor = 16
    config.model.anchor_scales = (8.0, 16.0, 32.0)
    config.model.anchor_centre = 0.5
    config.model.allowed_border = 0.0  # Anchors that leave the image train nothing.
    config.model.count_touching = True
    config.model.rpn_min_positive_iou = 0.0
    config.model.rpn_reassign_low_quality = False
    config.model.rpn_softmax = True
    config.model.rpn_box_loss = "smooth_l1"
    config.model.rpn_beta = 1 / 9  # Sigma 3.
    config.model.rpn_least_samples = 0
    config.model.rpn_pre_nms = 12000
    config.model.rpn_pre_nms_test = 6000
    config.model.num_proposals = 2000
    config.model.num_proposals_test = 300
    config.model.min_proposal_size = 16.0
    config.model.min_size_of_original = True
    config.model.filter_first = True
    config.model.max_ratio = 0.0  # No limit.
    config.model.roi_negative_iou = (0.0, 0.5)
    config.model.roi_num_samples = 128
    config.model.roi_pooling = "pool"
    config.model.hidden = 4096
    config.model.box_loss = "smooth_l1"
    config.model.nms_iou = 0.3
    config.model.max_detections = 300
    config.model.confusion = True

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.base_batch_size = 1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_biases = False
    config.optimizer.bias_rate = 2.0
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (10 * EPOCH,)
    return config
