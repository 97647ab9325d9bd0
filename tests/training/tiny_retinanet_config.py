"""The tiny run with one stage in the place of two: half of it to trace and to compile."""

import tiny_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = tiny_config.get_config()
    config.detector = "retinanet"
    del config.model.rpn, config.model.roi
    config.model.head = ConfigDict({"channels": 8, "num_convs": 1})
    config.model.suppress = ConfigDict({"max_detections": 10, "max_candidates": 40})
    return config
