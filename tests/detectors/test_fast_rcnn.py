from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, build, draw_batch, drawn_variables

from jaxdet.detectors import fast_rcnn
from jaxdet.detectors.fast_rcnn import Pool, RoILoss, RoIStage
from jaxdet.detectors.settings import Assign, BoxLoss, Coder, Sample, Suppress
from jaxdet.ops import box_coder
from jaxdet.types import Objects, Proposals, UserError

KINDS = ("specific", "agnostic")
LOSSES = {
    "l1": "l1",
    "smoothl1": "smooth_l1",
    "no_pos": "smooth_l1",
    "weights0_every4": "smooth_l1",
}
STRIDES = (4, 8, 16, 32)


def count_images(data):
    return len(data["img_hw"])


def region_inputs(data):
    """The reference's images: proposals and ground truth in padded slots."""
    images = count_images(data)
    count = max(len(data[f"proposals/{i}"]) for i in range(images)) + 3
    slots = max(len(data[f"gts/{i}"]) for i in range(images)) + 5
    proposals = Proposals(
        np.full((images, count, 4), 7.0, np.float32),
        np.zeros((images, count)),
        np.zeros((images, count), bool),
    )
    boxes = np.full((images, slots, 4), np.nan, np.float32)
    labels, valid = np.zeros((images, slots), np.int32), np.zeros((images, slots), bool)
    for i in range(images):
        given, objects = data[f"proposals/{i}"][:, :4], data[f"gts/{i}"]
        proposals.boxes[i, : len(given)], proposals.valid[i, : len(given)] = given, True
        boxes[i, : len(objects)], valid[i, : len(objects)] = objects, True
        labels[i, : len(objects)] = data[f"gt_labels/{i}"]
    objects = Objects(boxes, labels, valid, np.zeros_like(valid))
    return jax.tree.map(jnp.asarray, (proposals, objects))


def stage_of(data, **more):
    means, stds = (tuple(data[f"target_{name}"].tolist()) for name in ("means", "stds"))
    return RoIStage(coder=Coder(means=means, stds=stds), **more)


def test_region_targets_equal_the_reference(golden):
    data = golden("mmdet_bbox_head")
    # Few enough candidates: all are taken.
    number, fraction = int(data["sampler_num"]), float(data["sampler_pos_fraction"])
    stage = stage_of(data, sample=Sample(num_samples=number, positive_fraction=fraction))
    proposals, objects = region_inputs(data)
    keys = jax.random.split(jax.random.key(0), count_images(data))
    targets = jax.jit(partial(fast_rcnn.batch_targets, stage, int(data["num_classes"])))(
        keys, proposals, objects
    )
    first = 0
    for i in range(count_images(data)):
        number = len(data[f"sampling/{i}/pos_inds"]) + len(data[f"sampling/{i}/neg_inds"])
        rows = slice(first, first + number)
        first += number
        valid = np.asarray(targets.valid[i])
        assert valid.sum() == number
        # Both are positives, then negatives; within them the order is drawn.
        rois, labels = (
            np.asarray(targets.rois[i])[valid],
            np.asarray(targets.labels[i])[valid],
        )
        mine = np.lexsort((*rois.T, labels))
        theirs = np.lexsort((*data["rois"][rows, 1:].T, data["targets/labels"][rows]))
        np.testing.assert_allclose(rois[mine], data["rois"][rows, 1:][theirs], rtol=1e-6)
        np.testing.assert_array_equal(labels[mine], data["targets/labels"][rows][theirs])
        deltas = box_coder.encode(
            jnp.asarray(rois),
            targets.boxes[i][valid],
            means=stage.coder.means,
            stds=stage.coder.stds,
        )
        positive = np.asarray(targets.positive[i])[valid][mine]
        np.testing.assert_array_equal(
            positive, data["targets/bbox_weights"][rows][theirs].any(axis=1)
        )
        expected = data["targets/bbox_targets"][rows][theirs]
        np.testing.assert_allclose(deltas[mine][positive], expected[positive], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", LOSSES)
def test_box_losses_equal_the_reference(golden, kind, variant):
    data = golden("mmdet_bbox_head")
    num_classes, labels = int(data["num_classes"]), data["targets/labels"]
    stage = stage_of(data, loss=RoILoss(box=BoxLoss(kind=LOSSES[variant])))
    positive = labels < num_classes
    if variant == "no_pos":
        labels, positive = np.full_like(labels, num_classes), np.zeros_like(positive)

    def pad(values):  # Padded regions carry no weight.
        return jnp.asarray(np.pad(values[None], ((0, 0), (0, 3)) + ((0, 0),) * (values.ndim - 1)))

    rois = data["rois"][:, 1:]
    boxes = box_coder.decode(
        jnp.asarray(rois),
        jnp.asarray(data["targets/bbox_targets"]),
        **vars(stage.coder),
    )

    def losses_where(valid):
        targets = fast_rcnn.RegionTargets(
            rois=pad(rois),
            labels=pad(labels.astype(np.int32)),
            positive=pad(positive & valid),
            valid=pad(valid),
            boxes=pad(np.where(positive[:, None], boxes, 0)),
        )
        deltas = pad(data[f"{kind}/bbox_pred"].reshape(len(labels), -1, 4))
        return fast_rcnn.region_losses(stage, pad(data["cls_score"]), deltas, targets)

    every = np.ones(len(labels), bool)
    some = every & (np.arange(len(labels)) % 4 > 0) if variant == "weights0_every4" else every
    expected = {name: data[f"{kind}/{variant}/{name}"] for name in ("loss_cls", "loss_bbox")}
    np.testing.assert_allclose(losses_where(some)["class_loss"], expected["loss_cls"], rtol=1e-5)
    # Label weights do not weigh the reference's box loss.
    found = losses_where(every)["box_loss"]
    np.testing.assert_allclose(found, expected["loss_bbox"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["/img{}/rescale0", "/img{}/rescale1", "_max15/img{}"])
def test_detections_equal_the_reference(golden, kind, suffix):
    data = golden("mmdet_bbox_head")
    maximum = 15 if "max15" in suffix else 100
    stage = stage_of(data, suppress=Suppress(max_detections=maximum))
    for i in range(count_images(data)):
        rows = data["rois"][:, 0] == i
        boxes = jnp.asarray(data["rois"][rows, 1:])
        proposals = Proposals(boxes, jnp.zeros(len(boxes)), jnp.ones(len(boxes), bool))
        found = jax.jit(partial(fast_rcnn.detections, stage))(
            jnp.asarray(data["cls_score"][rows]),
            jnp.asarray(data[f"{kind}/bbox_pred"][rows].reshape(len(boxes), -1, 4)),
            proposals,
            jnp.asarray(data["img_hw"][i]),
        )
        expected = data[f"{kind}/dets{suffix.format(i)}"]
        labels = data[f"{kind}/det_labels{suffix.format(i)}"]
        valid = np.asarray(found.valid)
        # Rescaling, done by the evaluation here, comes before suppression there.
        ratio = data["scale_factor"] if "rescale1" in suffix else 1
        assert valid.sum() == len(expected)
        np.testing.assert_array_equal(found.labels[valid], labels)
        np.testing.assert_allclose(
            found.boxes[valid] / ratio, expected[:, :4], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(found.scores[valid], expected[:, 4], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_boxes_of_all_classes_equal_the_reference(golden, kind):
    """With no suppression to speak of, what comes out is what was decoded."""
    data = golden("mmdet_bbox_head")
    stage = stage_of(data)
    for i in range(count_images(data)):
        rows = data["rois"][:, 0] == i
        deltas = data[f"{kind}/bbox_pred"][rows].reshape(rows.sum(), -1, 4)
        decoded = box_coder.decode(
            jnp.asarray(data["rois"][rows, None, 1:]),
            jnp.asarray(deltas),
            size=jnp.asarray(data["img_hw"][i]),
            **vars(stage.coder),
        )
        expected = data[f"{kind}/decoded/img{i}"].reshape(deltas.shape)
        np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-4)
        scores = jax.nn.softmax(data["cls_score"][rows], axis=-1)
        np.testing.assert_allclose(scores, data[f"{kind}/scores/img{i}"], rtol=1e-5, atol=1e-6)


def losses_of(**settings):
    """Both losses of one image: a region of class 1 and a background one, all outputs 0."""
    stage = RoIStage(coder=Coder(), loss=RoILoss(**settings))
    rois = jnp.array([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    matched = jnp.array([[[0.0, 0, 10, 20], [0, 0, 0, 0]]])
    flags = jnp.array([[True, False]])
    targets = fast_rcnn.RegionTargets(
        rois, jnp.array([[1, 2]]), flags, jnp.ones((1, 2), bool), matched
    )
    outputs = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 2, 4))
    terms = fast_rcnn.region_losses(stage, *outputs, targets)
    return float(terms["class_loss"]), float(terms["box_loss"])


def test_weights_and_kinds_of_the_losses_are_settings():
    log2, log3 = np.log(2), np.log(3)
    assert losses_of() == pytest.approx((log3, (0.5 + log2) / 2))
    weighted = losses_of(class_weight=2.0, box_weight=3.0)
    assert weighted == pytest.approx((2 * log3, 3 * (0.5 + log2) / 2))
    assert losses_of(positive_weight=4.0)[0] == pytest.approx((4 + 1) * log3 / 2)
    assert losses_of(box=BoxLoss(kind="giou"))[1] == pytest.approx(0.5 / 2)


def proposals_of(boxes):
    boxes = jnp.asarray(boxes, jnp.float32)
    return Proposals(boxes, jnp.ones(len(boxes)), jnp.ones(len(boxes), bool))


def draw_targets(**settings):
    """Targets of three proposals (IoU 1, .2 and 0) and one object."""
    stage = RoIStage(**(dict(sample=Sample(num_samples=8, positive_fraction=0.25)) | settings))
    objects = Objects(
        jnp.array([[0.0, 0, 10, 10], [np.nan] * 4]),
        jnp.array([1, 7]),
        jnp.array([True, False]),
        jnp.array([False, False]),
    )
    proposals = proposals_of([[0, 0, 10, 10], [0, 0, 10, 2], [50, 50, 60, 60]])
    draw = partial(fast_rcnn.region_targets, stage, CLASSES, jax.random.key(0))
    return jax.jit(draw)(proposals, objects)


def test_ground_truth_is_a_region_of_its_own_unless_that_is_off():
    half = Sample(num_samples=8, positive_fraction=0.5)
    taken = draw_targets(sample=half)
    np.testing.assert_array_equal(taken.positive.sum(), 2)  # The proposal, and the object.
    np.testing.assert_array_equal(taken.valid.sum(), 4)
    assert draw_targets(sample=half, add_ground_truth=False).positive.sum() == 1


def test_background_may_be_a_range_of_overlaps_and_be_capped():
    assign = Assign(positive_iou=0.5, negative_iou=(0.1, 0.5), match_low_quality=False)
    some = draw_targets(assign=assign)
    assert int(some.valid.sum() - some.positive.sum()) == 1  # The one of IoU .2.
    capped = Sample(num_samples=8, positive_fraction=0.5, max_negatives_per_positive=0.5)
    few = draw_targets(sample=capped)
    assert (int(few.positive.sum()), int(few.valid.sum())) == (2, 3)


def test_rescaled_regions_are_pooled_larger():
    settings = Pool(output_size=2, sampling_ratio=1, scale=2.0)
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    pyramid = tuple(ramp[:, :: 2**level, :: 2**level] for level in range(4))
    rois = jnp.array([[[40.0, 40, 48, 48]]])  # 10 to 12 on the finest map, 9 to 13 rescaled.
    pooled = fast_rcnn.pool(settings, pyramid, STRIDES, rois)[0, 0, 0, :, 0]
    np.testing.assert_allclose(pooled, [9.5, 11.5])  # Centres of the halves, less half a cell.


def test_regions_are_pooled_by_their_maximum_where_asked():
    settings, rois = Pool(output_size=2, kind="pool"), jnp.array([[[40.0, 40, 52, 52]]])
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    pyramid = tuple(ramp[:, :: 2**level, :: 2**level] for level in range(4))
    pooled = fast_rcnn.pool(settings, pyramid, STRIDES, rois)[0, 0, 0, :, 0]
    np.testing.assert_allclose(pooled, [11, 13])  # Cells 10 to 13, the last inclusive.
    with pytest.raises(ValueError, match="pooling must be 'align' or 'pool', found 'mean'"):
        fast_rcnn.pool(Pool(kind="mean"), pyramid, STRIDES, rois)


def test_images_without_proposals_are_refused_with_what_to_set():
    detector, batch = build("fast_rcnn"), draw_batch("fast_rcnn", 1)
    variables = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
    images = batch.images._replace(proposals=None)
    for call in (
        lambda: jax.eval_shape(detector.predict, variables, images),
        lambda: jax.eval_shape(
            detector.loss, variables, batch._replace(images=images), jax.random.key(0)
        ),
    ):
        with pytest.raises(UserError, match="data.proposals and set data.max_proposals"):
            call()


def test_only_valid_proposals_become_detections():
    detector = build("fast_rcnn", roi=dict(suppress=dict(score_threshold=0.0)))
    batch = draw_batch("fast_rcnn", 2)
    variables = drawn_variables(detector, batch)
    images = batch.images
    none = images.proposals._replace(valid=images.proposals.valid & False)
    predict = jax.jit(detector.predict)
    assert predict(variables, images).valid.any()
    assert not predict(variables, images._replace(proposals=none)).valid.any()
