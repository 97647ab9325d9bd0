"""What the recipes on photographs of blood cells share (BCCD, VOC layout), from scratch.

`root` holds JPEGImages/, Annotations/ and ImageSets/. 292 images are learnt from and
72 are judged, all at 320 x 240.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All but the detector."""
    config = ConfigDict()
    config.batch_size = 8
    config.num_steps = 1200
    config.eval_every = 300
    config.checkpoint_every = 100
    config.log_every = 20

    config.data = ConfigDict()
    config.data.source = "voc"
    config.data.root = "data/bccd"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    config.data.classes = ("RBC", "WBC", "Platelets")
    config.data.canvas = (240, 320)
    config.data.max_boxes = 64
    config.data.vertical_flip = 0.5  # Cells have no upright.
    config.data.num_threads = 2

    config.model = ConfigDict()

    config.optimizer = ConfigDict()
    config.optimizer.base_batch_size = 8
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 10.0
    return config


def use_resnet(config: ConfigDict) -> None:
    """The small ResNet-FPN of the detectors with anchors, and the colours that it sees."""
    config.data.update({"brightness": 0.1, "contrast": 0.1, "saturation": 0.1})
    config.model.backbone = ConfigDict({"depth": 18, "norm": "batch"})
    config.model.neck = ConfigDict({"channels": 96})
