import jax
import numpy as np
from tiny import CLASSES, SETTINGS, build, draw_batch, drawn_variables

from jaxdet.detectors import fast_rcnn, faster_rcnn, features, nested, rpn
from jaxdet.detectors.settings import Pixels
from jaxdet.ops import box_coder

KEY = jax.random.key(1)


def softmax_loss(logits, labels):
    shifted = logits - logits.max(-1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(-1))
    return log_total - np.take_along_axis(shifted, labels[..., None], -1)[..., 0]


def count_matrix(truth, prediction, valid, size):
    matrix = np.zeros((size, size), int)
    for t, p in zip(truth[valid], prediction[valid], strict=True):
        matrix[t, p] += 1
    return matrix


def stages(variables, batch):
    """What both stages compute and learn on the way to their losses."""
    settings = nested.fill(faster_rcnn.faster_rcnn, SETTINGS["faster_rcnn"])
    first, second = settings["rpn"], settings["roi"]
    heads = rpn.make_head(first), fast_rcnn.make_head(second, CLASSES)
    parts = settings["backbone"], settings["neck"], *heads
    network = faster_rcnn.FasterRCNN(*parts, second.pool.output_size)
    strides = features.strides_of(network)
    keys = jax.vmap(jax.random.split)(jax.vmap(lambda i: jax.random.fold_in(KEY, i))(batch.index))
    pyramid, _ = features.extract(network, Pixels(), variables, batch.images, train=True)
    logits, deltas = network.apply(variables, pyramid, method="rpn_head")
    anchors = rpn.make_anchors(first, pyramid, strides, batch.images)
    targets = rpn.batch_targets(first, keys[:, 0], anchors, batch)
    proposals = rpn.propose(first, first.train, logits, deltas, anchors, batch.images)
    regions = fast_rcnn.batch_targets(second, CLASSES, keys[:, 1], proposals, batch.objects)
    pooled = fast_rcnn.pool(second.pool, pyramid, strides, regions.rois)
    outputs = network.apply(variables, pooled, method="box_head")
    wanted = box_coder.encode(anchors.boxes[targets.index], targets.boxes)
    wanted_regions = box_coder.encode(regions.rois, regions.boxes, stds=second.coder.stds)
    return (logits, deltas, targets, wanted), (*outputs, regions, wanted_regions)


def test_the_loss_meters_and_confusion_matrices_equal_a_numpy_count():
    detector, batch = build("faster_rcnn"), draw_batch("faster_rcnn", 5)
    # Large logits: predictions of every kind.
    variables = jax.tree.map(lambda x: 3 * x, drawn_variables(detector, batch))
    total, (metrics, _) = jax.jit(detector.loss)(variables, batch, KEY)
    first, second = jax.tree.map(np.asarray, jax.jit(stages)(variables, batch))

    logits, deltas, targets, wanted = first
    logits = np.take_along_axis(logits, targets.index, 1)
    deltas = np.take_along_axis(deltas, targets.index[..., None], 1)
    negative = targets.valid & ~targets.positive
    count = sum(max(row.sum(), 1) for kind in (targets.positive, negative) for row in kind)
    two = softmax_loss(np.stack([0 * logits, logits], -1), targets.positive.astype(int))
    meters = {
        "rpn_class_loss": two[targets.valid].sum() / count,
        "rpn_box_loss": np.abs(deltas - wanted)[targets.positive].sum() / count,
    }
    class_logits, box_deltas, regions, wanted = second
    number = regions.valid.sum()
    own = np.where(regions.positive, regions.labels, 0)
    mine = np.take_along_axis(box_deltas, own[..., None, None], 2)[:, :, 0]
    losses = softmax_loss(class_logits, regions.labels)
    meters |= {
        "class_loss": losses[regions.valid].sum() / number,
        "box_loss": np.abs(mine - wanted)[regions.positive].sum() / number,
    }
    for name, value in meters.items():
        np.testing.assert_allclose(metrics.means[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(meters.values()), rtol=1e-4)  # The fifth meter.

    expected = count_matrix(
        1 - targets.positive.astype(int), (logits <= 0).astype(int), targets.valid, 2
    )
    np.testing.assert_array_equal(metrics.counts["rpn_confusion"], expected)
    assert (expected > 0).all()
    expected = count_matrix(regions.labels, class_logits.argmax(-1), regions.valid, CLASSES + 1)
    np.testing.assert_array_equal(metrics.counts["roi_confusion"], expected)
    accuracy = np.diag(expected).sum() / number
    np.testing.assert_allclose(metrics.means["accuracy"], accuracy, rtol=1e-6)
    assert expected.sum() == number and (expected > 0).sum() > CLASSES
