import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import rpn
from jaxdet.detectors.rpn import RPNLoss, RPNStage
from jaxdet.detectors.settings import AnchorGrid, BoxLoss, Coder, Inside, Sample
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder
from jaxdet.types import Images, Objects

VARIANTS = {
    "border-1": {},
    "border0": dict(inside=Inside(allowed_border=0.0)),
    "ignore.5": dict(assign=dataclasses.replace(RPNStage().assign, ignore_iof_threshold=0.5)),
    "smoothl1_b1_9": dict(loss=RPNLoss(box=BoxLoss(kind="smooth_l1", beta=1 / 9))),
    "zero_gt_img1": {},
}


def reference_objects(data, variant):
    """The reference's ground truth and ignored boxes in padded slots, garbage behind them."""
    images = len(data["img_hw"])
    given = []
    for i in range(images):
        objects = data[f"gts/{i}"]
        if variant == "zero_gt_img1" and i == 1:
            objects = objects[:0]
        given.append((objects, data[f"gts_ignore/{i}"]))
    slots = max(len(objects) + len(ignored) for objects, ignored in given) + 3
    boxes = np.full((images, slots, 4), np.nan, np.float32)
    valid, crowd = np.zeros((2, images, slots), bool)
    for i, (objects, ignored) in enumerate(given):
        count, total = len(objects), len(objects) + len(ignored)
        boxes[i, :count], boxes[i, count:total] = objects, ignored
        valid[i, :count], crowd[i, count:total] = True, True
    labels = np.zeros(valid.shape, np.int32)
    return jax.tree.map(jnp.asarray, Objects(boxes, labels, valid, crowd))


def reference_anchors(data):
    sizes = [tuple(size) for size in data["feat_sizes"].tolist()]
    num_base = len(data["scales"]) * len(data["ratios"])
    boxes = anchor_ops.pyramid_anchors(
        sizes,
        data["strides"].tolist(),
        scales=data["scales"].tolist(),
        ratios=data["ratios"].tolist(),
    )
    covered = anchor_ops.pyramid_valid(
        sizes, data["strides"].tolist(), jnp.asarray(data["pad_hw"]), num_base=num_base
    )
    valid = jnp.tile(covered, (len(data["img_hw"]), 1))
    return rpn.Anchors(jnp.asarray(boxes), valid, tuple(h * w * num_base for h, w in sizes))


def rpn_outputs(data, name, tail):
    images, levels = len(data["img_hw"]), len(data["strides"])
    maps = [
        data[f"{name}/{i}"].transpose(0, 2, 3, 1).reshape(images, -1, *tail) for i in range(levels)
    ]
    return jnp.asarray(np.concatenate(maps, axis=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_and_losses_equal_the_reference(golden, variant):
    data = golden("mmdet_rpn_head")
    reference = {
        key.removeprefix(f"loss/{variant}/"): value
        for key, value in data.items()
        if key.startswith(f"loss/{variant}/")
    }
    anchors, images = reference_anchors(data), len(data["img_hw"])
    # Nothing is subsampled there.
    every = Sample(num_samples=len(anchors.boxes), positive_fraction=0.5)
    stage = RPNStage(sample=every, **VARIANTS[variant])
    one = partial(rpn.anchor_targets, stage)
    targets = jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0, 0)))(
        jax.random.split(jax.random.key(0), images),
        anchors.boxes,
        anchors.valid,
        jnp.asarray(data["img_hw"]),
        reference_objects(data, variant),
    )
    # In the total the reference counts one positive, or negative, where an image has none.
    found = [np.maximum(np.sum(x, axis=1), 1).sum() for x in (targets.positive, negatives(targets))]
    assert found == [reference["num_total_pos"], reference["num_total_neg"]]
    for i in range(images):
        positive, index = np.asarray(targets.positive[i]), np.asarray(targets.index[i])
        weighted = np.flatnonzero(reference["tgt/label_weights"][i])
        np.testing.assert_array_equal(np.sort(index[np.asarray(targets.valid[i])]), weighted)
        learning = np.flatnonzero(reference["tgt/bbox_weights"][i].any(-1))
        np.testing.assert_array_equal(np.sort(index[positive]), learning)
        deltas = box_coder.encode(anchors.boxes[index[positive]], targets.boxes[i][positive])
        expected = reference["tgt/bbox_targets"][i][index[positive]]
        np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-6)

    def total(*outputs):
        terms = rpn.rpn_losses(stage, *outputs, anchors, targets)
        return sum(terms.values()), terms

    logits, deltas = rpn_outputs(data, "cls", ()), rpn_outputs(data, "reg", (4,))
    gradients, terms = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(logits, deltas)
    np.testing.assert_allclose(terms["rpn_class_loss"], reference["loss_rpn_cls"].sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["rpn_box_loss"], reference["loss_rpn_bbox"].sum(), rtol=1e-5)
    for gradient, name in zip(gradients, ("cls", "reg"), strict=True):
        expected = reference[f"grad_abs_sum_{name}"].sum()
        np.testing.assert_allclose(jnp.abs(gradient).sum(), expected, rtol=1e-4)


def negatives(targets):
    return targets.valid & ~targets.positive


def losses_of(**settings):
    """Both losses of one image: a positive of logit 0 and deltas 0, and a negative of logit 0."""
    stage = RPNStage(loss=RPNLoss(**settings))
    boxes = jnp.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    anchors = rpn.Anchors(boxes, jnp.ones((1, 2), bool), (2,))
    flags = jnp.array([[True, False]])
    matched = jnp.array([[[0.0, 0, 10, 20], [0, 0, 0, 0]]])
    targets = rpn.AnchorTargets(jnp.array([[0, 1]]), flags, jnp.ones((1, 2), bool), matched)
    terms = rpn.rpn_losses(stage, jnp.zeros((1, 2)), jnp.zeros((1, 2, 4)), anchors, targets)
    return float(terms["rpn_class_loss"]), float(terms["rpn_box_loss"])


def test_weights_and_kinds_of_the_losses_are_settings():
    log2 = np.log(2)
    # The object is twice as high: dy = .5, dh = log 2; two samples divide everything.
    assert losses_of() == pytest.approx((log2, (0.5 + log2) / 2))
    weighted = losses_of(class_weight=2.0, box_weight=3.0)
    assert weighted == pytest.approx((2 * log2, 3 * (0.5 + log2) / 2))
    assert losses_of(positive_weight=4.0)[0] == pytest.approx((4 + 1) * log2 / 2)
    # IoU 1 / 2, and the hull is the object itself.
    assert losses_of(box=BoxLoss(kind="giou"))[1] == pytest.approx(0.5 / 2)
    with pytest.raises(ValueError, match="giuo"):
        losses_of(box=BoxLoss(kind="giuo"))


def blank_images(sizes, canvas):
    count = len(sizes)
    pixels = jnp.zeros((count, *canvas, 3), jnp.uint8)
    return Images(pixels, jnp.array(sizes), jnp.ones(count))


def test_anchors_may_be_in_whole_cells_only():
    grid = AnchorGrid(divisor=16, whole_cells=True)
    maps = (jnp.zeros((2, 40, 64, 1)),)
    images = blank_images([[600, 1000], [592, 1008]], canvas=(640, 1024))
    anchors = rpn.make_anchors(RPNStage(anchors=grid), maps, (16,), images)
    counts = [37 * 62 * grid.num_base, 37 * 63 * grid.num_base]  # 600 / 16 = 37.5 rows.
    np.testing.assert_array_equal(anchors.valid.sum(axis=1), counts)


@pytest.mark.parametrize("whole_cells, count", [(False, 2), (True, 1)])
def test_anchors_beside_the_image_become_boxes_unless_its_map_ends_with_it(whole_cells, count):
    grid = AnchorGrid(scales=(1.0,), ratios=(1.0,), centre=0.5, whole_cells=whole_cells)
    stage = RPNStage(anchors=grid)
    images = blank_images([[32, 32]], canvas=(32, 64))
    anchors = rpn.make_anchors(stage, (jnp.zeros((1, 1, 2, 1)),), (32,), images)
    shifted = jnp.zeros((1, 2, 4)).at[:, 1, 0].set(-0.5)  # Half of it moves into the image.
    found = rpn.propose(stage, stage.test, jnp.zeros((1, 2)), shifted, anchors, images)
    np.testing.assert_array_equal(anchors.valid, [[True, False]])
    boxes = [[0, 0, 32, 32], [16, 0, 32, 32]]
    assert found.valid.sum() == count
    np.testing.assert_allclose(found.boxes[found.valid], boxes[:count])


def test_an_image_without_positives_may_count_one_or_none():
    boxes = jnp.array([[0.0, 0, 10, 10]] * 3)
    anchors = rpn.Anchors(boxes, jnp.ones((1, 3), bool), (3,))
    none = jnp.zeros((1, 3), bool)
    targets = rpn.AnchorTargets(jnp.arange(3)[None], none, ~none, jnp.zeros((1, 3, 4)))
    for least, count in ((1, 4), (0, 3)):
        stage = RPNStage(loss=RPNLoss(least_samples=least))
        terms = rpn.rpn_losses(stage, jnp.zeros((1, 3)), jnp.zeros((1, 3, 4)), anchors, targets)
        np.testing.assert_allclose(terms["rpn_class_loss"], 3 * np.log(2) / count, rtol=1e-6)


def test_decoded_losses_keep_to_the_limit_of_the_boxes():
    """A side may double at most: the delta that would make it four times as long is no use."""
    loss = RPNLoss(box=BoxLoss(kind="iou"))
    boxes = jnp.array([[0.0, 0, 10, 10]])
    anchors = rpn.Anchors(boxes, jnp.ones((1, 1), bool), (1,))
    positive = jnp.ones((1, 1), bool)
    truth = jnp.array([[[-15.0, 0, 25, 10]]])
    targets = rpn.AnchorTargets(jnp.zeros((1, 1), int), positive, positive, truth)
    deltas = jnp.array([[[0, 0, np.log(4), 0]]], jnp.float32)
    for ratio, value in ((2.0, 0.5), (math.inf, 0.0)):
        stage = RPNStage(coder=Coder(max_ratio=ratio), loss=loss)
        terms = rpn.rpn_losses(stage, jnp.zeros((1, 1)), deltas, anchors, targets)
        # One positive, and a negative that is counted: halves.
        np.testing.assert_allclose(terms["rpn_box_loss"], value / 2, atol=1e-6)
