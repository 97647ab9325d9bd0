"""What the quickstarts share: generated pictures, drawn on first use into data/shapes."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All but the detector."""
    config = ConfigDict()
    config.batch_size = 8
    config.checkpoint_every = 100
    config.log_every = 20

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.root = "data"
    config.data.eval_split = "test"
    config.data.classes = ("circle", "square", "triangle", "star")
    config.data.options = ConfigDict()
    config.data.options.max_objects = 10
    config.data.options.size_range = (16, 72)
    config.data.options.max_turn = 20.0  # Degrees; upright shapes are learnt in minutes.
    config.data.canvas = (160, 192)
    config.data.max_boxes = 16
    config.data.num_threads = 2

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # From scratch it gets further than SGD in so few steps.
    config.optimizer.base_batch_size = 8
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_biases = False
    config.optimizer.decay_norms = False
    config.optimizer.clip_norm = 10.0
    return config
