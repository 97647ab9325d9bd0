"""Whole YOLOX with the weights of a reference, against what that computes of two images.

`whole.torch_weights` says what the weights are; they read images as these are stored.
"""

import jax
import numpy as np
import pytest
from interop import whole

import jaxdet
from jaxdet.interop import settings_for, to_torch
from jaxdet.ops.box_coder import decode_grid

CANVAS = (128, 160)
BOXES = 5e-2  # Pixels.
# As the goldens were made, by a version since 0.3.0: which points may learn an object.
NEAR_CENTRES = {"centre_radius": 1.5, "inside_boxes": False, "penalty": 1e6}
KEPT = 1 - 0.03  # The share of running statistics that a step keeps.


def build(size, **settings):
    settings = {**settings_for("yolox", "yolox", size=size), **settings}
    return jaxdet.build("yolox", num_classes=5, **settings)


def images_of(data):
    sizes = np.array([CANVAS] * 2, np.int32)
    return jaxdet.Images(data["images_uint8_nhwc"], sizes, np.ones(2, np.float32))


def batch_of(data):
    """The images with their objects; slots without one are zeros."""
    labels, centres, sides = np.split(data["labels_cls_cxcywh"], [1, 3], axis=-1)
    boxes, valid = np.concatenate([centres - sides / 2, centres + sides / 2], -1), sides[..., 0] > 0
    index = np.arange(2, dtype="u4")
    labels = labels[..., 0].astype(np.int32)
    return jaxdet.Batch(images_of(data), boxes, labels, valid, np.zeros_like(valid), index)


@pytest.mark.parametrize("size", ["nano"])
def test_every_point_and_what_is_found_are_yoloxs(golden, size):
    data = golden(f"whole_yolox_{size}")
    detector = build(size, suppress={"score_threshold": 0.05, "iou_threshold": 0.65})
    images = images_of(data)
    variables = whole.variables_of(detector, f"yolox_{size}", images, bgr=False)
    both = jax.jit(lambda *given: (detector.raw(*given), detector.predict(*given)))
    outputs, found = both(variables, images)
    corners = jax.vmap(lambda offsets: decode_grid(outputs.points, offsets))(outputs.offsets)
    outputs, found, corners = jax.tree.map(np.asarray, (outputs, found, corners))
    low, high = np.split(corners, 2, axis=-1)
    wanted = data["decoded"]
    apart = np.abs(np.concatenate([(low + high) / 2, high - low], axis=-1) - wanted[..., :4])
    # Boxes are far larger than the canvas, too.
    assert (
        apart / np.maximum(wanted[..., 2:4].max(axis=-1, keepdims=True), CANVAS[1])
    ).max() < 3e-4
    logits = np.concatenate([outputs.objectness[..., None], outputs.logits], axis=-1)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-logits)), wanted[..., 4:], rtol=0, atol=whole.SCORES
    )
    # Those above a threshold are found whatever is below it.
    for threshold in (0.05, 0.25):
        for i in range(2):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
            one = one._replace(valid=one.valid & (one.scores >= threshold))
            assert_found(one, data[f"post/conf{threshold}_nms0.65/{i}"])


def assert_found(found, rows):
    """Compares detections with (x1, y1, x2, y2, objectness, class score, class) of the reference.

    That does not clip boxes, and keeps those outside of the image.
    """
    height, width = CANVAS
    boxes = rows[:, :4].clip(0, [width, height, width, height])
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)
    rows, boxes = rows[inside], boxes[inside]
    scores, labels = rows[:, 4] * rows[:, 5], rows[:, 6]
    whole.assert_same_boxes(found, boxes, scores, labels, BOXES)


def test_what_yolox_learns_of_a_batch_is_yoloxs(golden):
    data = golden("whole_yolox_tiny_train")
    detector, batch = build("tiny", assign=NEAR_CENTRES), batch_of(data)
    variables = whole.variables_of(detector, "yolox_tiny_train", batch.images, bgr=False)
    metrics, gradient, statistics = whole.trained_once(detector, variables, batch, final=True)
    losses = {
        "total": "total_loss",
        "box_loss": "iou_loss",
        "l1_loss": "l1_loss",
        "objectness_loss": "conf_loss",
        "class_loss": "cls_loss",
    }
    for name, theirs in losses.items():
        wanted = data[f"l11/{theirs}"]
        np.testing.assert_allclose(metrics[name], wanted, rtol=whole.LOSSES, err_msg=name)
    assert metrics["positives"] == sum(data[f"img{i}/num_fg"] for i in range(2))
    np.testing.assert_allclose(metrics["positives_per_object"], data["l11/num_fg"], rtol=1e-6)
    whole.assert_gradients(gradient, data["grad_names"], data["l11/grad_l2"], "yolox")
    assert_statistics(data, to_torch(variables, names="yolox"), statistics)


def assert_statistics(data, before, after):
    """Compares running statistics; the variances of torch are n / (n - 1) times those of n."""
    after = to_torch({"batch_stats": after}, names="yolox")
    strides = {"stem": 2, "dark3": 8, "C3_p3": 8, "stems.1": 16, "reg_convs.0": 8}
    names = [name for name in data if name.startswith("after_train/")]
    assert len(names) == 2 * len(strides)
    for name in names:
        wanted, name = data[name], name.removeprefix("after_train/")
        (stride,) = [s for layer, s in strides.items() if f".{layer}." in name]
        count = 2 * CANVAS[0] * CANVAS[1] / stride**2
        correction = count / (count - 1) if name.endswith("var") else 1
        kept = KEPT * before[name]
        found = kept + (after[name] - kept) * correction
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
