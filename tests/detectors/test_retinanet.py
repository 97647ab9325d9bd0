from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import retinanet
from jaxdet.detectors.anchor_grid import Anchors
from jaxdet.detectors.retinanet import RetinaLoss
from jaxdet.detectors.settings import AnchorGrid, Assign, BoxLoss, Coder, Inside, Suppress
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder
from jaxdet.types import Objects

LOSSES = {"l1": BoxLoss(), "smoothl1_.11": BoxLoss(kind="smooth_l1", beta=0.11)}
RULE = dict(inside=Inside(), assign=Assign(positive_iou=0.5, negative_iou=0.4))
GRID = AnchorGrid(scales=anchor_ops.octave_scales(4.0, 3))


@pytest.fixture(scope="module")
def data(golden):
    return golden("mmdet_retina_head")


def reference_objects(data):
    """The reference's ground truth in padded slots, garbage behind it."""
    images = len(data["img_hw"])
    slots = max(len(data[f"gts/{i}"]) for i in range(images)) + 3
    boxes = np.full((images, slots, 4), np.nan, np.float32)
    labels, valid = np.zeros((images, slots), np.int32), np.zeros((images, slots), bool)
    for i in range(images):
        count = len(data[f"gts/{i}"])
        boxes[i, :count], labels[i, :count] = data[f"gts/{i}"], data[f"gt_labels/{i}"]
        valid[i, :count] = True
    return jax.tree.map(jnp.asarray, Objects(boxes, labels, valid, np.zeros_like(valid)))


def reference_anchors(data):
    sizes = [tuple(size) for size in data["feat_sizes"].tolist()]
    strides = data["strides"].tolist()
    num_base = GRID.num_base
    boxes = anchor_ops.pyramid_anchors(sizes, strides, scales=GRID.scales, ratios=GRID.ratios)
    covered = anchor_ops.pyramid_valid(
        sizes, strides, jnp.asarray(data["pad_hw"]), num_base=num_base
    )
    valid = jnp.tile(covered, (len(data["img_hw"]), 1))
    return Anchors(jnp.asarray(boxes), valid, tuple(h * w * num_base for h, w in sizes))


def outputs(data, name, size):
    """NCHW maps, whose channels run anchors, then values, as (B, N, size)."""
    images, levels = len(data["img_hw"]), len(data["strides"])
    maps = [
        data[f"{name}/{i}"].transpose(0, 2, 3, 1).reshape(images, -1, size) for i in range(levels)
    ]
    return jnp.asarray(np.concatenate(maps, axis=1))


def targets_of(data, anchors):
    one = partial(retinanet.anchor_targets, num_classes=int(data["num_classes"]), **RULE)
    return jax.jit(jax.vmap(partial(one, anchors.boxes)))(
        anchors.valid, jnp.asarray(data["img_hw"]), reference_objects(data)
    )


def test_targets_equal_the_reference(data):
    anchors = reference_anchors(data)
    targets = targets_of(data, anchors)
    valid, positive = np.asarray(targets.valid), np.asarray(targets.positive)
    np.testing.assert_array_equal(valid, data["tgt/label_weights"] > 0)
    np.testing.assert_array_equal(positive, data["tgt/bbox_weights"].any(-1))
    np.testing.assert_array_equal(np.asarray(targets.labels)[valid], data["tgt/labels"][valid])
    assert np.maximum(positive.sum(axis=1), 1).sum() == data["num_total_pos"]
    every = jnp.broadcast_to(anchors.boxes, targets.boxes.shape)
    deltas = np.asarray(box_coder.encode(every, targets.boxes))
    expected = data["tgt/bbox_targets"]
    np.testing.assert_allclose(deltas[positive], expected[positive], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", LOSSES)
def test_losses_equal_the_reference(data, variant):
    anchors, loss = reference_anchors(data), RetinaLoss(box=LOSSES[variant])

    @jax.jit
    def losses(logits, deltas, targets):
        return retinanet.anchor_losses(loss, Coder(), logits, deltas, anchors, targets)

    found = losses(
        outputs(data, "cls", int(data["num_classes"])),
        outputs(data, "reg", 4),
        targets_of(data, anchors),
    )
    for ours, theirs in (("class_loss", "loss_cls"), ("box_loss", "loss_bbox")):
        expected = data[f"{variant}/{theirs}"].sum()
        np.testing.assert_allclose(found[ours], expected, rtol=1e-5)


def test_detections_equal_the_reference(data):
    logits, deltas = outputs(data, "cls", int(data["num_classes"])), outputs(data, "reg", 4)
    anchors = reference_anchors(data)
    one = partial(retinanet.detections, anchors.boxes, level_sizes=anchors.level_sizes)
    for i in range(len(data["img_hw"])):
        expected, labels = data[f"dets/img{i}"], data[f"det_labels/img{i}"]
        # The reference was asked for as many as it found.
        suppress = Suppress(max_detections=len(expected), max_candidates=logits[0].size)
        found = jax.jit(partial(one, pre_nms=1000, coder=Coder(), suppress=suppress))(
            logits[i],
            deltas[i],
            jnp.ones(len(anchors.boxes), bool),  # At test time all anchors take part.
            jnp.asarray(data["img_hw"][i]),
        )
        assert found.valid.all()
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-5)


def test_pairs_of_anchor_and_class_may_be_counted_instead_of_anchors():
    scores = jnp.array([[0.9, 0.8], [0.7, 0.1], [0.2, 0.6], [0.5, 0.3]])
    valid = jnp.array([True, True, True, True])
    best = jax.jit(partial(retinanet.best_pairs, level_sizes=(3, 1), count=3))
    kept = [[0.9, 0.8], [0.7, 0], [0, 0], [0.5, 0.3]]  # The best of each level; one has only two.
    np.testing.assert_allclose(best(scores, valid), kept)
    kept = [[0, 0], [0.7, 0], [0.2, 0.6], [0.5, 0.3]]
    np.testing.assert_allclose(best(scores, valid.at[0].set(False)), kept)

    anchors = jnp.array([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]])
    suppress = Suppress(max_detections=8, max_candidates=8)
    one = partial(retinanet.detections, anchors, level_sizes=(3, 1), pre_nms=3, coder=Coder())
    logits = jnp.log(scores / (1 - scores))
    for pairs, count in ((False, 8), (True, 5)):
        found = one(
            logits,
            jnp.zeros((4, 4)),
            valid,
            jnp.array([64, 96]),
            suppress=suppress,
            pre_nms_pairs=pairs,
        )
        assert found.valid.sum() == count


def test_an_object_that_overlaps_no_anchor_trains_nothing():
    """The reference, with min_pos_iou 0, gives it every anchor of overlap 0."""
    anchors = jnp.array([[0.0, 0, 8, 8], [8, 0, 16, 8]])
    objects = Objects(
        jnp.array([[50.0, 50, 60, 60]]), jnp.array([1]), jnp.array([True]), jnp.array([False])
    )
    found = retinanet.anchor_targets(
        anchors,
        jnp.array([True, True]),
        jnp.array([64, 64]),
        objects,
        num_classes=2,
        **RULE,
    )
    np.testing.assert_array_equal(found.labels, [2, 2])
    assert found.valid.all() and not found.positive.any()
