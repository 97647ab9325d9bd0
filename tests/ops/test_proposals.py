import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder
from jaxdet.ops.nms import nms
from jaxdet.ops.proposals import generate_proposals


def rpn_outputs(data, image):
    """Logits, deltas, anchors and level sizes of one image of the reference."""
    sizes = [tuple(size) for size in data["feat_sizes"].tolist()]
    anchors = anchor_ops.pyramid_anchors(
        sizes,
        data["strides"].tolist(),
        scales=data["scales"].tolist(),
        ratios=data["ratios"].tolist(),
    )
    logits, deltas = (
        np.concatenate(
            [data[f"{name}/{i}"][image].transpose(1, 2, 0).reshape(-1, *tail) for i in range(5)]
        )
        for name, tail in (("cls", ()), ("reg", (4,)))
    )
    return logits, deltas, anchors, [3 * height * width for height, width in sizes]


@pytest.mark.parametrize(
    "case, settings",
    [
        ("min0", dict(pre_nms=100, iou_threshold=0.7, num_proposals=50)),
        ("min8", dict(pre_nms=100, iou_threshold=0.7, num_proposals=50, min_size=8)),
        ("pre1000_iou.5_max300", dict(pre_nms=1000, iou_threshold=0.5, num_proposals=300)),
    ],
)
def test_proposals_equal_the_reference(golden, case, settings):
    data = golden("mmdet_rpn_head")
    for image in range(2):
        logits, deltas, anchors, level_sizes = rpn_outputs(data, image)
        found = jax.jit(
            lambda *arrays, levels=tuple(level_sizes): generate_proposals(
                *arrays, level_sizes=levels, **settings
            )
        )(logits, deltas, anchors, np.ones(len(logits), bool), data["img_hw"][image])
        expected = data[f"proposals/{case}/img{image}"]
        valid = np.asarray(found.valid)
        assert valid.sum() == len(expected)
        np.testing.assert_allclose(found.boxes[valid], expected[:, :4], rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(found.scores[valid], expected[:, 4], rtol=1e-5)


SMALL = dict(level_sizes=(12, 4), pre_nms=8, iou_threshold=0.6, num_proposals=20)


def small_problem(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (16, 2))
    anchors = np.concatenate([low, low + rng.uniform(4, 20, (16, 2))], axis=1)
    arrays = rng.normal(size=16), rng.normal(size=(16, 4)) * 0.2, anchors
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def slow_proposals(logits, deltas, anchors, valid, size, min_size):
    """Level after level, with plain sorting."""
    boxes = np.asarray(box_coder.decode(anchors, deltas, size=size))
    scores = np.asarray(jax.nn.sigmoid(logits))
    kept = []
    for level in (range(12), range(12, 16)):
        best = sorted((i for i in level if valid[i]), key=lambda i: -scores[i])[:8]
        best = [i for i in best if (boxes[i, 2:] - boxes[i, :2] >= min_size).all()]
        survives = np.zeros(0, bool)
        if best:
            survives = nms(
                jnp.asarray(boxes[best]),
                jnp.asarray(scores[best]),
                jnp.ones(len(best), bool),
                iou_threshold=0.6,
            )
        kept += [i for i, keep in zip(best, survives, strict=True) if keep]
    kept.sort(key=lambda i: -scores[i])
    return boxes[kept], scores[kept]


@pytest.mark.parametrize("seed", range(8))
def test_proposals_equal_plain_loops_and_fill_up_with_invalid_slots(seed):
    logits, deltas, anchors = small_problem(seed)
    valid = np.random.default_rng(seed).random(16) < 0.8
    valid[12:] &= seed % 2 == 0  # A level without any.
    valid = jnp.asarray(valid)
    garbage = jnp.where(valid[:, None], deltas, jnp.nan)
    size = jnp.array([40, 36])
    found = generate_proposals(
        jnp.where(valid, logits, jnp.nan), garbage, anchors, valid, size, min_size=5.0, **SMALL
    )
    boxes, scores = slow_proposals(logits, deltas, anchors, valid, size, 5.0)
    assert found.boxes.shape == (20, 4) and int(found.valid.sum()) == len(boxes)
    np.testing.assert_allclose(found.boxes[: len(boxes)], boxes, rtol=1e-5)
    np.testing.assert_allclose(found.scores[: len(boxes)], scores, rtol=1e-5)
    assert not found.boxes[len(boxes) :].any() and not found.scores[len(boxes) :].any()


def test_no_valid_anchor_gives_no_proposal():
    logits, deltas, anchors = small_problem(0)
    found = generate_proposals(
        logits, deltas, anchors, jnp.zeros(16, bool), jnp.array([40, 36]), **SMALL
    )
    assert not found.valid.any()


def test_levels_that_do_not_add_up_raise():
    logits, deltas, anchors = small_problem(0)
    settings = SMALL | dict(level_sizes=(12, 5))
    with pytest.raises(ValueError, match=r"levels of \(12, 5\) anchors for 16 logits"):
        generate_proposals(
            logits, deltas, anchors, jnp.ones(16, bool), jnp.array([40, 36]), **settings
        )
