"""A toy detector: one convolution that guesses the mean box of an image; and its batches."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.types import Batch, Detections, Detector, Images, Metrics

CANVAS = 8


class ToyModel(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, pixels, *, train):
        x = nn.Conv(4, (3, 3), name="conv")(pixels / 255.0)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="bn")(x)
        return nn.Dense(4, name="head")(nn.relu(x).mean((1, 2)))


@cache  # So that what is compiled for it is compiled once.
def detector(*, norm=False):
    model = ToyModel(norm)

    def init(key, images):
        return model.init(key, images.pixels, train=False)

    def loss(variables, batch, key, *, final=False, axis_name=None):
        guess, updated = model.apply(
            variables, batch.images.pixels, train=True, mutable=["batch_stats"]
        )
        # Keyed by the place in the run, so that placement on devices changes nothing.
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(batch.index)
        target = batch.boxes.mean(1) + 0.1 * noise
        box_loss = jnp.mean((guess - target) ** 2)
        occupied = jnp.sum(batch.valid, axis=1)  # How many images have their slots filled how.
        confusion = jnp.zeros((2, 3), jnp.int32).at[0, occupied].add(1)
        counts = {"objects": jnp.sum(batch.valid), "confusion": confusion}
        metrics = Metrics(means={"box_loss": box_loss}, counts=counts)
        return box_loss, (metrics, updated.get("batch_stats", {}))

    def predict(variables, images):
        boxes = model.apply(variables, images.pixels, train=False)[:, None]
        ones = jnp.ones(boxes.shape[:2])
        return Detections(boxes, ones, ones.astype(jnp.int32), ones > 0)

    return Detector(init, loss, predict)


def batch(step, *, size=8):
    """The global batch of a step."""
    rng = np.random.default_rng(step)
    images = Images(
        pixels=rng.integers(0, 256, (size, CANVAS, CANVAS, 3), np.uint8),
        sizes=np.full((size, 2), CANVAS, np.int32),
        scales=np.ones(size, np.float32),
    )
    return Batch(
        images=images,
        boxes=rng.random((size, 2, 4), np.float32),
        labels=np.zeros((size, 2), np.int32),
        valid=rng.random((size, 2)) < 0.5,
        crowd=np.zeros((size, 2), bool),
        index=np.arange(step * size, (step + 1) * size, dtype=np.uint32),
    )


def variables(detector):
    """Its first variables."""
    return jax.jit(detector.init)(jax.random.key(0), batch(0).images)
