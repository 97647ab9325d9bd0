"""A region proposal network on VGG-16 alone, on data of VOC's layout.

    python train.py --config=configs/rpn_vgg16.py \
        --config.data.root=/path/to/VOCdevkit --config.init_from=/path/to/vgg16.pth

`root` holds VOC2007/; `init_from` is torchvision's ImageNet VGG-16, whose
features stay as they are. Images keep their shape within 800 x 800 pixels, which
have 22,500 anchors; every class is an object, scored by its objectness, so it also
serves to find one kind of thing, such as faces or lines of text. From scratch:
--config.model.backbone.norm=group --config.model.backbone.frozen_stages=0 --config.init_from=
Not yet run here at this size.
"""

import base_vgg16
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of the run."""
    config = base_vgg16.get_config()
    config.detector = "rpn"
    config.batch_size = 15
    config.num_steps = "12 epochs"
    config.checkpoint_every = 300
    config.data.canvas = (800, 800)
    config.evaluation = ConfigDict({"name": "proposals", "limits": (100, 300)})
    config.model.backbone.frozen_stages = 5
    config.model.rpn.loss.update({"box_normalizer": "positives", "box_weight": 10.0})
    config.optimizer.base_batch_size = 15
    config.optimizer.milestones = ("8 epochs", "11 epochs")
    return config
