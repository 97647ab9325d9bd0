"""Region proposals from an R50-FPN on COCO, mmdetection 2.11's 1x schedule.

    python train.py --config=configs/rpn_r50_fpn_1x_coco.py \
        --config.data.root=/path/to/coco --config.init_from=/path/to/resnet50.pth

`root` holds annotations/ and train2017/, val2017/; `init_from` is torchvision's
ImageNet ResNet-50. The reference reaches AR@1000 .582 on 8 V100 (12 epochs);
not yet run here. `eval.py --write_proposals` gives its proposals to
fast_rcnn_r50_fpn_1x_coco.py.
"""

import base_coco_1x
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_coco_1x.get_config()
    config.detector = "rpn"
    config.eval_images = 5000  # All of val2017; of train2017 the proposals are what is wanted.
    config.evaluation.name = "proposals"
    config.model.update({"rpn": {"test": {"pre_nms": 2000}}})
    return config
