"""What recipes on Pascal VOC share: its layout and classes.

`root` holds VOC2007/ and, where a recipe learns from it, VOC2012/.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The data and its evaluation."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/VOCdevkit"
    config.data.train_split = "VOC2007/trainval"
    config.data.eval_split = "VOC2007/test"
    config.data.classes = (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    )
    config.data.keep_empty = False
    config.data.max_boxes = 64

    config.evaluation = ConfigDict({"name": "voc"})
    return config
