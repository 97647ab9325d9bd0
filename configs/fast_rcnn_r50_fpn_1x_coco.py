"""Fast R-CNN R50-FPN on COCO and given proposals, mmdetection 2.11's 1x schedule.

    python train.py --config=configs/rpn_r50_fpn_1x_coco.py ...
    for split in train2017 val2017; do
      python eval.py --workdir=runs/rpn_r50_fpn_1x_coco \
          --split=$split --write_proposals=proposals/$split.npz
    done
    python train.py --config=configs/fast_rcnn_r50_fpn_1x_coco.py \
        --config.data.root=/path/to/coco --config.init_from=/path/to/resnet50.pth

`data.proposals` names the files, `init_from` is torchvision's ImageNet ResNet-50.
Not yet run here.
"""

import base_coco_1x
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_coco_1x.get_config()
    config.detector = "fast_rcnn"
    config.data.proposals = "proposals/{split}.npz"
    config.data.max_proposals = 1000
    return config
