"""Faster R-CNN with the settings of simple-faster-rcnn, against that system's numbers.

Boxes are yxyx there and deltas (dy, dx, dh, dw); label 0 is background.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import fast_rcnn, rpn
from jaxdet.detectors.anchor_grid import Anchors
from jaxdet.detectors.fast_rcnn import RoILoss, RoIStage
from jaxdet.detectors.rpn import Propose, RPNLoss, RPNStage
from jaxdet.detectors.settings import AnchorGrid, Assign, BoxLoss, Coder, Inside, Sample
from jaxdet.models import VGG
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder
from jaxdet.types import Images, Objects, Proposals

RPN = RPNStage(
    anchors=AnchorGrid(scales=(8.0, 16.0, 32.0), centre=0.5),
    inside=Inside(allowed_border=0.0, count_touching=True),
    assign=Assign(positive_iou=0.7, negative_iou=0.3, reassign_low_quality=False),
    coder=Coder(max_ratio=math.inf),
    loss=RPNLoss(box=BoxLoss(kind="smooth_l1", beta=1 / 9)),
)


def swap(boxes):
    """yxyx <-> xyxy; also (dy, dx, dh, dw) <-> (dx, dy, dw, dh)."""
    return jnp.asarray(np.asarray(boxes)[..., [1, 0, 3, 2]], jnp.float32)


@pytest.fixture(scope="module")
def data(golden):
    return golden("sfrcnn_targets")


def grid(data):
    """The anchors of the reference's map."""
    size = tuple(data["anchor/anchors_hw"].tolist())
    anchors = RPN.anchors
    boxes = anchor_ops.pyramid_anchors(
        [size], VGG.strides, scales=anchors.scales, ratios=anchors.ratios, centre=anchors.centre
    )
    return Anchors(jnp.asarray(boxes), jnp.ones((1, len(boxes)), bool), (len(boxes),))


def objects_of(boxes, labels=None, slots=9):
    """One image's ground truth in padded slots, garbage behind it."""
    count = len(boxes)
    labels = np.zeros(count, np.int32) if labels is None else labels
    return Objects(
        jnp.full((slots, 4), jnp.nan).at[:count].set(swap(boxes)),
        jnp.full(slots, 99, jnp.int32).at[:count].set(labels.astype(np.int32)),
        jnp.arange(slots) < count,
        jnp.zeros(slots, bool),
    )


def draw_anchors(stage, data):
    """The targets of the reference's image."""
    anchors = grid(data)
    return jax.jit(partial(rpn.anchor_targets, stage, jax.random.key(0)))(
        anchors.boxes,
        anchors.valid[0],
        jnp.asarray(data["anchor/img_size"]),
        objects_of(data["anchor/gts"]),
    )


def test_anchor_targets_equal_the_reference(data):
    anchors, wanted = grid(data), data["anchor/label_full"]
    # All that can train do.
    sample = Sample(num_samples=len(wanted), positive_fraction=1.0)
    targets = draw_anchors(dataclasses.replace(RPN, sample=sample), data)
    index, valid, positive = map(np.asarray, (targets.index, targets.valid, targets.positive))
    assert valid.sum() == data["anchor/n_label_ge0"]
    np.testing.assert_array_equal(np.sort(index[positive]), np.flatnonzero(wanted == 1))
    np.testing.assert_array_equal(np.sort(index[valid & ~positive]), np.flatnonzero(wanted == 0))
    deltas = box_coder.encode(anchors.boxes[index[positive]], targets.boxes[positive])
    expected = swap(data["anchor/loc_full"])[index[positive]]
    np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_proposals_equal_the_reference(data, train):
    counts = data["proposal_creator/cfg_train_pre_post_test_pre_post"].tolist()
    before, after = counts[:2] if train else counts[2:]
    settings = Propose(
        pre_nms=before,
        num_proposals=after,
        iou_threshold=float(data["proposal_creator/nms_thresh"]),
        min_size=float(data["proposal_creator/min_size"]),
        min_size_of_original=True,
        filter_first=True,
    )
    scores = data["proposal_creator/score"].astype(np.float64)
    # Any logits in the order of the scores.
    logits = jnp.asarray((scores - scores.mean()) / scores.std(), jnp.float32)
    images = Images(
        jnp.zeros((1, 1, 1, 3), jnp.uint8),
        jnp.asarray(data["proposal_creator/img_size"])[None],
        jnp.asarray(data["proposal_creator/scale"], jnp.float32)[None],
    )
    deltas = swap(data["proposal_creator/loc"])
    anchors = grid(data)
    found = jax.jit(lambda *args: rpn.propose(RPN, settings, *args, anchors, images))(
        logits[None], deltas[None]
    )
    wanted = swap(data[f"proposal_creator/roi_train{int(train)}"])
    assert int(found.valid.sum()) == len(wanted)
    np.testing.assert_allclose(found.boxes[0][found.valid[0]], wanted, rtol=1e-5, atol=1e-3)


def draw_regions(stage, num_classes, data):
    """The targets of the reference's image."""
    rois = swap(data["prop/rois"])
    proposals = Proposals(rois, jnp.zeros(len(rois)), jnp.ones(len(rois), bool))
    draw = partial(fast_rcnn.region_targets, stage, num_classes, jax.random.key(0))
    return jax.jit(draw)(proposals, objects_of(data["prop/gts"], data["prop/gt_labels"]))


def test_region_targets_equal_the_reference(data):
    stds = tuple(data["prop/loc_std"].tolist())
    means = tuple(data["prop/loc_mean"].tolist())
    labels = data["prop/gt_labels"]
    count = len(data["prop/sample_roi_sorted"])
    # The reference's candidates: as many samples as there are, all of either kind.
    stage = RoIStage(
        sample=Sample(num_samples=count, positive_fraction=1.0),
        coder=Coder(means=means, stds=stds),
    )
    targets = draw_regions(stage, int(labels.max()) + 1, data)
    valid, positive = np.asarray(targets.valid), np.asarray(targets.positive)
    assert valid.sum() == count
    found = np.asarray(swap(targets.rois))[valid]
    order, wanted = sort_rows(found), sort_rows(data["prop/sample_roi_sorted"])
    np.testing.assert_allclose(
        found[order], data["prop/sample_roi_sorted"][wanted], rtol=1e-6, atol=1e-5
    )
    theirs = data["prop/gt_roi_label_sorted"][wanted]
    ours = np.where(positive, np.asarray(targets.labels) + 1, 0)[valid][order]
    np.testing.assert_array_equal(ours, theirs)
    deltas = box_coder.encode(targets.rois, targets.boxes, means=means, stds=stds)
    deltas = np.asarray(swap(deltas))[valid][order]
    expected = data["prop/gt_roi_loc_sorted"][wanted]
    real = theirs > 0  # The locs of background are never read.
    np.testing.assert_allclose(deltas[real], expected[real], rtol=1e-5, atol=1e-5)


def sort_rows(boxes):
    return np.lexsort(np.round(boxes, 3).T)


def loc_losses(data, sigma, labels):
    """The box losses of both stages on the reference's locs, as one image's."""
    count = len(labels)
    # The objects that make these locs of a box of 100 pixels.
    base = jnp.tile(jnp.array([100.0, 100, 200, 200]), (count, 1))
    boxes = box_coder.decode(base, swap(data["gt_loc"]), max_ratio=math.inf)
    valid, positive = jnp.asarray(labels >= 0)[None], jnp.asarray(labels > 0)[None]
    boxes = jnp.where(positive[..., None], boxes[None], 0)
    deltas = swap(data["pred_loc"])[None]
    box_loss = BoxLoss(kind="smooth_l1", beta=1 / sigma**2)
    first = rpn.rpn_losses(
        dataclasses.replace(RPN, loss=RPNLoss(box=box_loss)),
        jnp.zeros((1, count)),
        deltas,
        Anchors(base, jnp.ones((1, count), bool), (count,)),
        rpn.AnchorTargets(jnp.arange(count)[None], positive, valid, boxes),
    )
    second = fast_rcnn.region_losses(
        RoIStage(coder=Coder(), loss=RoILoss(box=box_loss)),
        jnp.zeros((1, count, 2)),
        deltas[:, :, None],
        fast_rcnn.RegionTargets(base[None], jnp.where(positive, 0, 1), positive, valid, boxes),
    )
    return first["rpn_box_loss"], second["box_loss"]


@pytest.mark.parametrize("sigma", [1, 3])
def test_box_losses_of_both_stages_equal_the_reference(golden, sigma):
    data = golden("sfrcnn_loc_loss")
    for loss in loc_losses(data, sigma, data["gt_label"]):
        np.testing.assert_allclose(loss, data[f"loss_sigma{sigma}"], rtol=2e-5)


def test_box_losses_without_positives_equal_the_reference(golden):
    data = golden("sfrcnn_loc_loss")
    labels = np.minimum(data["gt_label"], 0)
    for loss in loc_losses(data, 3, labels):
        np.testing.assert_allclose(loss, data["loss_no_pos_sigma3"], atol=1e-7)


def test_the_box_loss_over_positives_is_that_of_the_standalone_rpn():
    """10 x smooth L1 summed over the positives of the batch, divided by their number."""
    stage = RPNStage(loss=RPNLoss(box_normalizer="positives", box_weight=10.0))
    base = jnp.array([[0.0, 0, 10, 10]] * 4)
    anchors = Anchors(base, jnp.ones((2, 4), bool), (4,))
    matched = jnp.tile(jnp.array([[0.0, 0, 10, 20]]), (2, 4, 1))
    positive = jnp.array([[True, True, False, False], [True, False, False, False]])
    index = jnp.tile(jnp.arange(4), (2, 1))
    targets = rpn.AnchorTargets(
        index, positive, jnp.ones((2, 4), bool), jnp.where(positive[..., None], matched, 0)
    )
    found = rpn.rpn_losses(stage, jnp.zeros((2, 4)), jnp.zeros((2, 4, 4)), anchors, targets)
    assert float(found["rpn_box_loss"]) == pytest.approx(10 * (0.5 + np.log(2)), rel=1e-5)
    assert float(found["rpn_class_loss"]) == pytest.approx(np.log(2), rel=1e-5)
    none = targets._replace(positive=positive & False, boxes=0 * targets.boxes)
    found = rpn.rpn_losses(stage, jnp.zeros((2, 4)), jnp.zeros((2, 4, 4)), anchors, none)
    assert float(found["rpn_box_loss"]) == 0
    with pytest.raises(ValueError, match="'samples' or 'positives', found 'anchors'"):
        wrong = RPNStage(loss=RPNLoss(box_normalizer="anchors"))
        rpn.rpn_losses(wrong, jnp.zeros((2, 4)), jnp.zeros((2, 4, 4)), anchors, none)
