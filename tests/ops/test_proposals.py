import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder
from jaxdet.ops.proposals import best_of_levels, generate_proposals


def rpn_outputs(data, image):
    """Scores, deltas, anchors and level sizes of one image of the reference."""
    sizes = [tuple(size) for size in data["feat_sizes"].tolist()]
    anchors = anchor_ops.pyramid_anchors(
        sizes,
        data["strides"].tolist(),
        scales=data["scales"].tolist(),
        ratios=data["ratios"].tolist(),
    )
    logits, deltas = (
        np.concatenate(
            [
                data[f"{name}/{i}"][image].transpose(1, 2, 0).reshape(-1, *tail)
                for i in range(len(sizes))
            ]
        )
        for name, tail in (("cls", ()), ("reg", (4,)))
    )
    num_base = len(data["scales"]) * len(data["ratios"])
    scores = 1 / (1 + np.exp(-logits))
    return scores, deltas, anchors, [num_base * height * width for height, width in sizes]


# Compiled as one: op by op, each shape would compile dozens of small programs.
fast = jax.jit(
    generate_proposals,
    static_argnames=(
        "level_sizes", "pre_nms", "iou_threshold", "num_proposals", "min_size", "filter_first"
    ),
)  # fmt: skip


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
    for image in range(len(data["img_hw"])):
        scores, deltas, anchors, level_sizes = rpn_outputs(data, image)
        arrays = scores, deltas, anchors, np.ones(len(scores), bool), data["img_hw"][image]
        found = jax.device_get(fast(*arrays, level_sizes=tuple(level_sizes), **settings))
        expected = data[f"proposals/{case}/img{image}"]
        valid = np.asarray(found.valid)
        assert valid.sum() == len(expected)
        np.testing.assert_allclose(found.boxes[valid], expected[:, :4], rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(found.scores[valid], expected[:, 4], rtol=1e-5)


@pytest.mark.parametrize("train", [1, 0])
def test_proposals_equal_simple_faster_rcnn(golden, train):
    """One level, sizes filtered first by a traced limit, deltas not clamped; files are yxyx."""
    data = golden("sfrcnn_targets")
    pre_nms, num_proposals = data["proposal_creator/cfg_train_pre_post_test_pre_post"].reshape(
        2, 2
    )[1 - train]
    base = anchor_ops.base_anchors(16, scales=(8, 16, 32), ratios=(0.5, 1, 2), centre=0.5)
    anchors = anchor_ops.grid_anchors(base, tuple(data["anchor/anchors_hw"].tolist()), 16)
    deltas = data["proposal_creator/loc"][:, [1, 0, 3, 2]]
    found = jax.jit(
        lambda *arrays: generate_proposals(
            *arrays[:-1],
            level_sizes=(len(anchors),),
            pre_nms=int(pre_nms),
            iou_threshold=float(data["proposal_creator/nms_thresh"]),
            num_proposals=int(num_proposals),
            min_size=int(data["proposal_creator/min_size"]) * arrays[-1],
            filter_first=True,
            max_ratio=math.inf,
        )
    )(
        data["proposal_creator/score"],
        deltas,
        anchors,
        np.ones(len(anchors), bool),
        data["proposal_creator/img_size"],
        np.float32(data["proposal_creator/scale"]),
    )
    expected = data[f"proposal_creator/roi_train{train}"][:, [1, 0, 3, 2]]
    valid = np.asarray(found.valid)
    assert valid.sum() == len(expected)
    np.testing.assert_allclose(np.asarray(found.boxes)[valid], expected, rtol=1e-5, atol=2e-5)


SMALL = dict(level_sizes=(12, 4), pre_nms=8, iou_threshold=0.6, num_proposals=20)


def small_problem(seed):
    """Scores with ties, deltas and anchors of two levels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (16, 2))
    anchors = np.concatenate([low, low + rng.uniform(4, 20, (16, 2))], axis=1)
    arrays = rng.integers(0, 9, 16) / 8, rng.normal(size=(16, 4)) * 0.2, anchors
    return [a.astype(np.float32) for a in arrays]


jitted_decode = jax.jit(box_coder.decode)


def overlap(a, b):
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return shared / max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared, 1e-6)


def slow_proposals(scores, deltas, anchors, valid, size, min_size, filter_first):
    """Level after level, with plain sorting."""
    boxes = np.asarray(jitted_decode(anchors, deltas, size=size))
    large = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(axis=1)
    usable = valid & large if filter_first else valid
    kept = []
    for level in (range(12), range(12, 16)):
        best = sorted((i for i in level if usable[i]), key=lambda i: -scores[i])[:8]
        survivors = []
        for i in (i for i in best if large[i]):
            if all(overlap(boxes[i], boxes[j]) <= 0.6 for j in survivors):
                survivors.append(i)
        kept += survivors
    kept.sort(key=lambda i: -scores[i])
    return boxes[kept], scores[kept]


@pytest.fixture(scope="module")
def jitted():
    return jax.jit(
        lambda *arrays, filter_first=False: generate_proposals(
            *arrays[:-1], min_size=arrays[-1], filter_first=filter_first, **SMALL
        ),
        static_argnames="filter_first",
    )


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_proposals_equal_plain_loops_and_fill_up_with_invalid_slots(jitted, seed, filter_first):
    scores, deltas, anchors = small_problem(seed)
    rng = np.random.default_rng(seed)
    valid = rng.random(16) < rng.choice([0, 0.8, 1])
    valid[12:] &= seed % 2 == 0  # A level without any.
    size, min_size = np.array([40, 36]), np.float32(rng.choice([0, 5, 9]))
    boxes, kept = slow_proposals(scores, deltas, anchors, valid, size, min_size, filter_first)
    garbage = np.float32(rng.choice([np.nan, np.inf]))
    scores = np.where(valid, scores, garbage)
    deltas, anchors = (np.where(valid[:, None], a, garbage) for a in (deltas, anchors))
    found = jax.device_get(
        jitted(scores, deltas, anchors, valid, size, min_size, filter_first=filter_first)
    )
    assert found.boxes.shape == (20, 4)
    np.testing.assert_array_equal(found.valid, np.arange(20) < len(boxes))
    np.testing.assert_allclose(found.boxes[: len(boxes)], boxes, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.scores[: len(boxes)], kept)
    assert not found.boxes[len(boxes) :].any() and not found.scores[len(boxes) :].any()


def test_equal_scores_come_in_the_order_of_the_anchors():
    anchors = np.float32(20 * np.arange(16)[:, None] + [0, 0, 9, 9])
    found = fast(
        np.full(16, 0.5, np.float32), np.zeros((16, 4), np.float32), anchors, np.ones(16, bool),
        np.array([999, 999]), **SMALL | dict(pre_nms=3, num_proposals=5)
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(found.boxes)[:, 0], [0, 20, 40, 240, 260])


def test_the_best_of_each_level_come_first_and_equal_ones_in_order():
    scores = jnp.array([0.2, 0.5, 0.2, 0.5, 0.9, 0.1])
    best, place = jax.device_get(jax.jit(lambda s: best_of_levels(s, (4, 1, 1), 3))(scores))
    np.testing.assert_allclose(best[:, 0], [0.5, 0.9, 0.1])
    np.testing.assert_array_equal(place[0], [1, 3, 0])
    np.testing.assert_array_equal(place[1:, 0], [4, 5])
    np.testing.assert_array_equal(best[1:, 1:], np.full((2, 2), -np.inf))


def test_small_boxes_take_no_place_where_they_are_filtered_first():
    anchors = jnp.array([[0, 0, 2, 2], [10, 0, 20, 10], [30, 0, 40, 10]])
    arrays = jnp.array([0.9, 0.8, 0.7]), jnp.zeros((3, 4)), anchors, jnp.ones(3, bool)
    settings = dict(level_sizes=(3,), pre_nms=2, iou_threshold=0.5, num_proposals=2, min_size=5)
    for first, expected in ((False, [0.8, 0]), (True, [0.8, 0.7])):
        found = fast(*arrays, jnp.array([50, 50]), filter_first=first, **settings)
        np.testing.assert_allclose(found.scores, expected)


def test_garbage_of_invalid_anchors_stays_out_of_the_gradient():
    scores, deltas, anchors = small_problem(0)
    valid = np.arange(16) % 2 == 0
    deltas, anchors = (np.where(valid[:, None], a, np.float32(np.nan)) for a in (deltas, anchors))

    @jax.jit
    @jax.grad
    def gradient(deltas, scores, anchors, mask):
        found = generate_proposals(scores, deltas, anchors, mask, jnp.array([40, 36]), **SMALL)
        return jnp.sum(found.boxes)

    for mask in (valid, np.zeros(16, bool)):
        assert np.isfinite(gradient(deltas, scores, anchors, mask)).all()


def test_bfloat16_heads_give_float32_proposals():
    scores, deltas, anchors = small_problem(1)
    arrays = scores.astype(jnp.bfloat16), deltas.astype(jnp.bfloat16)
    found, exact = (
        fast(*heads, anchors, np.ones(16, bool), np.array([40, 36]), **SMALL)
        for heads in (arrays, [a.astype(np.float32) for a in arrays])
    )
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
    np.testing.assert_array_equal(found.scores, exact.scores)
    np.testing.assert_allclose(found.boxes, exact.boxes, rtol=1e-5, atol=1e-5)


NAN = float("nan")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(level_sizes=(12, 5)), r"levels of \(12, 5\) anchors for 16 scores"),
        (dict(num_proposals=0), "num_proposals must be at least 1, got 0"),
        (dict(pre_nms=0), "pre_nms must be at least 1, got 0"),
        (dict(iou_threshold=1.1), r"iou_threshold must lie in \[0, 1\], got 1.1"),
        (dict(iou_threshold=NAN), r"iou_threshold must lie in \[0, 1\], got nan"),
        (dict(min_size=NAN), "min_size must be at least 0, got nan"),
        (dict(min_size=-1), "min_size must be at least 0, got -1"),
    ],
)
def test_impossible_settings_raise_while_tracing(settings, message):
    def propose(scores, deltas, anchors, size):
        return generate_proposals(
            scores, deltas, anchors, jnp.ones(16, bool), size, **SMALL | settings
        )

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(propose, *small_problem(0), jnp.array([40, 36]))


def test_arrays_that_do_not_fit_raise_while_tracing():
    scores, deltas, anchors = small_problem(0)
    for broken in ((scores[:, None], deltas), (scores, deltas[:, :3]), (scores, deltas[:5])):
        with pytest.raises(ValueError, match="wants the shape"):
            jax.eval_shape(
                lambda s, d: generate_proposals(
                    s, d, anchors, jnp.ones(16, bool), jnp.array([40, 36]), **SMALL
                ),
                *broken,
            )
