"""Faster R-CNN R50-FPN on COCO, mmdetection 2.11's 1x schedule.

    python train.py --config=configs/faster_rcnn_r50_fpn_1x_coco.py \
        --config.data.root=/path/to/coco --config.init_from=/path/to/resnet50.pth

`root` holds annotations/ and train2017/, val2017/; `init_from` is torchvision's
ImageNet ResNet-50. The reference reaches box AP .374 on 8 V100 (12 epochs);
not yet run here. The rate scales with `batch_size`: it is .02 for 16 images.
"""

import base_coco_1x
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_coco_1x.get_config()
    config.detector = "faster_rcnn"
    return config
