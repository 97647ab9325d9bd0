"""Faster R-CNN R50-FPN on Pascal VOC 2007 + 2012, or any data of that layout.

    python train.py --config=configs/faster_rcnn_r50_fpn_voc.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/resnet50.pth

`root` holds VOC2007/ and VOC2012/; `init_from` is torchvision's ImageNet
ResNet-50. Trains on both trainval lists (12 epochs), judged on the 2007 test
list; not yet run here.
"""

import base_coco_1x
import base_voc
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_coco_1x.get_config()
    config.update(base_voc.get_config())
    config.detector = "faster_rcnn"
    config.eval_every = "2 epochs"
    config.checkpoint_every = 1000
    config.data.train_split = "VOC2007/trainval+VOC2012/trainval"
    config.data.canvas = (608, 1024)
    config.data.more_canvases = ((1024, 608),)
    config.data.resize = (600, 1000)
    config.optimizer.warmup_steps = 200
    return config
