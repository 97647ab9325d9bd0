"""A one-stage detector of one's own on jaxdet's ops: one file of plain JAX and optax.

An op handles one image; `jax.vmap` makes a batch of it and `jax.jit` compiles the whole
training step. `python examples/use_ops.py` trains for about 10 seconds on two CPU cores,
compiling included, to find dark and light rectangles in noise. The loss falls:

    step   1  loss 16.05
    step 100  loss 0.68
    step 300  loss 0.44

Then each object of new pictures stands beside the best detection of its class:

    light [ 0  0 30 28]   found at [ 0  1 30 29]    IoU 0.93
    dark  [ 6 33 29 63]   found at [ 5 34 29 64]    IoU 0.90

and the last line counts them: 9 of 10 objects found (IoU above 0.5).
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import Detections, ops

CLASSES = ("dark", "light")
SIDE, MAX_OBJECTS, BATCH = 64, 3, 16
SCALES, RATIOS, STRIDE = (1.5, 3.0), (0.5, 1.0, 2.0), 8
GRID = [(SIDE // STRIDE, SIDE // STRIDE)]
ANCHORS = jnp.asarray(ops.pyramid_anchors(GRID, [STRIDE], scales=SCALES, ratios=RATIOS, centre=0.5))
STDS = (0.2, 0.2, 0.2, 0.2)


def draw_picture(rng):
    """Pixels (SIDE, SIDE, 3), and objects in G slots: boxes (G, 4), labels (G,), valid (G,)."""
    pixels = rng.normal(0, 0.3, (SIDE, SIDE, 3)).astype(np.float32)
    boxes, labels = np.zeros((MAX_OBJECTS, 4), np.float32), rng.integers(0, 2, MAX_OBJECTS)
    valid = np.arange(MAX_OBJECTS) < rng.integers(0, MAX_OBJECTS + 1)
    # Each in a quarter of its own, so that none hides another.
    for slot, quarter in enumerate(rng.permutation(4)[: valid.sum()]):
        corner = SIDE // 2 * np.array([quarter % 2, quarter // 2])
        sides = rng.integers(10, SIDE // 2, 2)
        x1, y1 = rng.integers(corner, corner + SIDE // 2 - sides)
        x2, y2 = sides + (x1, y1)
        boxes[slot] = x1, y1, x2, y2
        pixels[y1:y2, x1:x2] += rng.uniform(0.7, 1.4, 3) * (1 if labels[slot] else -1)
    return pixels, boxes, labels, valid


def draw_batch(rng, count):
    """The arrays of `count` pictures, stacked."""
    pictures = [draw_picture(rng) for _ in range(count)]
    return tuple(np.stack(arrays) for arrays in zip(*pictures, strict=True))


def init_params(rng):
    """Kernels and biases of five convolutions."""
    channels = (3, 16, 32, 64, 64, len(SCALES) * len(RATIOS) * (len(CLASSES) + 4))
    params = []
    for pair in itertools.pairwise(channels):
        kernel = rng.normal(0, (2 / (9 * pair[0])) ** 0.5, (3, 3, *pair))
        params.append((jnp.asarray(kernel, jnp.float32), jnp.zeros(pair[1])))
    return params


def network(params, x):
    """Logits (B, N, K) and deltas (B, N, 4), in the order of the anchors: y, x, base anchor."""
    for i, (kernel, bias) in enumerate(params):
        stride, layout = (2 if i < 3 else 1), ("NHWC", "HWIO", "NHWC")
        x = bias + jax.lax.conv_general_dilated(
            jax.nn.relu(x) if i else x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )
    outputs = x.reshape(len(x), len(ANCHORS), -1)
    return outputs[..., : len(CLASSES)], outputs[..., len(CLASSES) :]


def image_loss(key, logits, deltas, boxes, labels, valid):
    """Summed losses of ONE image, and its number of positives."""
    usable, thresholds = jnp.ones(len(ANCHORS), bool), dict(positive_iou=0.5, negative_iou=0.4)
    assignment = ops.assign_by_iou(ANCHORS, usable, boxes, valid, **thresholds)
    samples = ops.sample_labels(key, assignment.labels, num_samples=48, positive_fraction=0.5)
    logits, deltas, anchors = (x[samples.index] for x in (logits, deltas, ANCHORS))
    truth = assignment.index[samples.index]
    targets = jax.nn.one_hot(labels[truth], len(CLASSES)) * samples.positive[:, None]
    class_loss = ops.losses.sigmoid_cross_entropy(logits, targets)
    box_loss = ops.box_losses.box_regression(
        anchors, deltas, boxes[truth], kind="smooth_l1", stds=STDS
    )
    class_sum = ops.losses.masked_sum(class_loss, samples.valid)
    box_sum = ops.losses.masked_sum(box_loss, samples.positive)
    return class_sum + box_sum, jnp.sum(samples.positive)


def batch_loss(params, key, pixels, *objects):
    """The losses of all images, divided by the positives of the batch."""
    keys = jax.random.split(key, len(pixels))
    totals, positives = jax.vmap(image_loss)(keys, *network(params, pixels), *objects)
    return jnp.sum(totals) / ops.losses.global_count(jnp.sum(positives))


@jax.jit
def detect(params, pixels):
    """Detections of a batch: boxes (B, D, 4); scores, labels and valid (B, D)."""

    def one(logits, deltas):
        boxes = ops.box_coder.decode(ANCHORS, deltas, stds=STDS, size=jnp.array([SIDE, SIDE]))
        settings = dict(score_threshold=0.5, iou_threshold=0.4, max_detections=8)
        scores, usable = jax.nn.sigmoid(logits), jnp.ones(len(ANCHORS), bool)
        return ops.nms_per_class(boxes[:, None], scores, usable, max_candidates=64, **settings)

    return jax.vmap(one)(*network(params, pixels))


def train(num_steps):
    """Trains from nothing and returns the parameters."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, num_steps))
    params = init_params(rng)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key, batch):
        loss, gradients = jax.value_and_grad(batch_loss)(params, key, *batch)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    for i in range(num_steps):
        batch = draw_batch(rng, BATCH)
        params, state, loss = step(params, state, jax.random.fold_in(key, i), batch)
        if i == 0 or (i + 1) % 50 == 0:
            print(f"step {i + 1:3}  loss {loss:.2f}")
    return params


def show(boxes, labels, valid, found):
    """Prints the objects of one picture beside their best detections; gives their IoUs."""
    usable = found.valid & (found.labels == labels[:, None])
    every_pair = ops.boxes.pairwise_iou(jnp.asarray(boxes), jnp.asarray(found.boxes))
    overlaps = np.asarray(every_pair) * usable
    for slot in np.flatnonzero(valid):
        best = np.argmax(overlaps[slot])
        iou, where = overlaps[slot, best], found.boxes[best].round().astype(int)
        result = f"found at {where!s:16} IoU {iou:.2f}" if iou > 0 else "not found"
        print(f"{CLASSES[labels[slot]]:6}{boxes[slot].astype(int)!s:16}{result}")
    return overlaps.max(axis=1)[valid]


def main():
    """Trains, then looks for the objects of new pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    params = train(parser.parse_args().steps)
    pixels, *objects = draw_batch(np.random.default_rng(1), 8)
    pictures = zip(*objects, zip(*jax.device_get(detect(params, pixels)), strict=True), strict=True)
    ious = [show(*truth, Detections(*found)) for *truth, found in pictures]
    ious = np.concatenate(ious)
    print(f"{np.sum(ious > 0.5)} of {len(ious)} objects found (IoU above 0.5)")


if __name__ == "__main__":
    main()
