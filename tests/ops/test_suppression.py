import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.suppression import nms, nms_best_class, nms_per_class, nms_sorted, soft_nms

COUNT = 30
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 1.0)


def nms_elsewhere(*arrays, **settings):
    """What platforms other than a CPU compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
        return nms(*arrays, **settings)


BOTH_FORMS = [nms, nms_elsewhere]


@pytest.fixture(scope="module", params=BOTH_FORMS)
def jitted(request):
    return jax.jit(request.param, static_argnames="iou_threshold")


def slow_nms(boxes, scores, valid, groups, threshold):
    """Box after box, best first, in float32 as the fast one."""
    keep = np.zeros(len(boxes), bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in sorted(np.flatnonzero(valid), key=lambda i: -scores[i]):
        kept = np.flatnonzero(keep & (groups == groups[i]))
        low = np.maximum(boxes[i, :2], boxes[kept, :2])
        high = np.minimum(boxes[i, 2:], boxes[kept, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        overlaps = shared / np.maximum(areas[i] + areas[kept] - shared, np.float32(1e-6))
        keep[i] = not (overlaps > threshold).any()
    return keep


def crowded(rng, count=COUNT):
    low = rng.integers(0, 10, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 10, low.shape)], axis=1)
    # Few different scores: many ties.
    return boxes.astype(np.float32), rng.integers(0, 8, count).astype(np.float32) / 8


def test_nms_equals_the_reference(golden, jitted):
    data = golden("mmcv_nms")
    boxes, scores = data["boxes"], data["scores"]
    cases = [key.split("/") for key in data if key.count("/") == 2 and key.endswith("/keep")]
    assert len(cases) >= 2
    for kind, threshold, _ in cases:
        groups = data["idxs"].astype(np.int32) if kind == "batched" else None
        valid = np.ones(len(boxes), bool)
        kept = np.flatnonzero(jitted(boxes, scores, valid, groups, iou_threshold=float(threshold)))
        kept = kept[np.argsort(-scores[kept])]
        np.testing.assert_array_equal(kept, data[f"{kind}/{threshold}/keep"])
        if kind == "batched":
            found = np.concatenate([boxes, scores[:, None]], axis=1)[kept]
            np.testing.assert_array_equal(found, data[f"{kind}/{threshold}/dets"])


def test_grouping_by_one_class_and_by_split_equal_the_reference(golden, jitted):
    data = golden("mmcv_nms")
    boxes, scores, valid = data["boxes"], data["scores"], np.ones(len(data["boxes"]), bool)
    for name, groups in (("class_agnostic", None), ("split_thr10", data["idxs"].astype(np.int32))):
        kept = np.flatnonzero(jitted(boxes, scores, valid, groups, iou_threshold=0.5))
        expected = data[f"batched/0.5/{name}/keep"]
        np.testing.assert_array_equal(kept[np.argsort(-scores[kept])], expected)


def test_tied_scores_are_visited_by_index(golden, jitted):
    """The reference's order of ties is its sort's; here it is the index, as in a plain loop."""
    data = golden("mmcv_nms")
    valid = np.ones(len(data["boxes"]), bool)
    keep = jitted(data["boxes"], data["scores_tied"], valid, iou_threshold=0.5)
    zeros = np.zeros(len(valid), np.int32)
    expected = slow_nms(data["boxes"], data["scores_tied"], valid, zeros, 0.5)
    np.testing.assert_array_equal(keep, expected)
    theirs = len(data["nms/0.5/keep_tied_scores_order_unspecified"])
    assert abs(int(keep.sum()) - theirs) <= 0.1 * theirs


def test_overlap_equal_to_the_threshold_is_kept(golden, jitted):
    data = golden("mmcv_nms")
    boxes = data["iou_eq_thr/boxes"]
    keep = jitted(boxes, data["iou_eq_thr/scores"], np.ones(4, bool), iou_threshold=0.5)
    # mmcv's CPU op suppresses at equality; its CUDA op, torchvision and jaxdet do not.
    assert int(keep.sum()) > len(data["iou_eq_thr/keep_cpu_ge"])
    halves = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1]])
    assert jitted(halves, jnp.array([0.9, 0.8]), jnp.ones(2, bool), iou_threshold=0.5).all()


def random_sets(rng, number):
    sets = []
    for _ in range(number):
        boxes, scores = crowded(rng)
        sets.append((boxes, scores, rng.random(COUNT) < 0.9, rng.integers(0, 3, COUNT)))
    return sets


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nms_equals_brute_force_on_ten_thousand_random_sets(threshold):
    """Two thousand for each threshold, with groups and without; many scores are equal."""
    rng = np.random.default_rng(int(10 * threshold))
    forms = [
        jax.jit(jax.vmap(lambda *arrays, form=form: form(*arrays, iou_threshold=threshold)))
        for form in BOTH_FORMS
    ]
    for grouped in (False, True):
        sets = random_sets(rng, 1000)
        boxes, scores, valid, groups = (np.stack(a) for a in zip(*sets, strict=True))
        groups = (groups if grouped else np.zeros_like(groups)).astype(np.int32)
        expected = [
            slow_nms(*one[:3], own, np.float32(threshold))
            for one, own in zip(sets, groups, strict=True)
        ]
        for batched in forms:
            np.testing.assert_array_equal(batched(boxes, scores, valid, groups), expected)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.45]))
def test_large_bfloat16_coordinates_with_many_groups_are_exact(jitted, seed, threshold):
    """Groups added to coordinates as offsets would need more than bfloat16's eight bits."""
    rng = np.random.default_rng(seed)
    boxes, scores = crowded(rng)
    boxes = jnp.asarray(4096 + 128 * boxes, jnp.bfloat16)
    scores, valid = jnp.asarray(scores, jnp.bfloat16), rng.random(COUNT) < 0.9
    groups = rng.integers(0, 4, COUNT).astype(np.int32) * 300
    keep = jitted(boxes, scores, valid, groups, iou_threshold=threshold)
    exact = boxes.astype(jnp.float32), scores.astype(jnp.float32), valid, groups
    np.testing.assert_array_equal(keep, jitted(*exact, iou_threshold=threshold))
    expected = slow_nms(*map(np.asarray, exact), np.float32(threshold))
    np.testing.assert_array_equal(keep, expected)


def test_sorted_boxes_need_no_scores_and_may_have_gaps():
    boxes = jnp.array([[0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 9, 7], [20, 0, 29, 9]])
    jitted_sorted = jax.jit(nms_sorted, static_argnames="iou_threshold")
    keep = jitted_sorted(boxes, jnp.array([False, True, True, True]), iou_threshold=0.5)
    np.testing.assert_array_equal(keep, [False, True, False, True])


def test_arrays_of_numpy_need_no_jit():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]])
    valid, groups = np.ones(3, bool), np.zeros(3, np.int32)
    # As they stand, without the suite's checks of types.
    sorted_alone, soft_alone = map(inspect.unwrap, (nms_sorted, soft_nms))
    keep = sorted_alone(boxes, valid, groups, iou_threshold=0.5)
    np.testing.assert_array_equal(keep, [True, False, True])
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    keep = soft_alone(boxes, scores, valid, groups, min_score=0.3).keep
    np.testing.assert_array_equal(keep, [True, False, True])


def test_a_cpu_holds_no_pairs_and_others_make_no_visits():
    shapes = jax.ShapeDtypeStruct((77, 4), np.float32), jax.ShapeDtypeStruct((77,), bool)
    traced = jax.jit(partial(nms_sorted, iou_threshold=0.5)).trace(*shapes)
    for platform, sweeps in (("cpu", False), ("tpu", True), ("cuda", True)):
        assert ("77x77" in traced.lower(lowering_platforms=(platform,)).as_text()) == sweeps


def test_of_no_boxes_none_are_kept(jitted):
    nothing = np.zeros(0, np.float32)
    assert jitted(np.zeros((0, 4)), nothing, nothing.astype(bool), iou_threshold=0.5).shape == (0,)


def test_a_chain_keeps_both_ends(jitted):
    """A and C overlap B by .43 each and one another by .11: B goes, C stays."""
    boxes = jnp.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    keep = jitted(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), iou_threshold=0.3)
    np.testing.assert_array_equal(keep, [True, False, True])


def test_nms_keeps_one_of_two_equal_boxes_the_first(jitted):
    boxes = jnp.array([[0.0, 0, 10, 10]] * 2)
    keep = jitted(boxes, jnp.array([0.5, 0.5]), jnp.ones(2, bool), iou_threshold=0.5)
    np.testing.assert_array_equal(keep, [True, False])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3.0])
def test_garbage_in_invalid_slots_changes_nothing(jitted, garbage):
    boxes, scores = crowded(np.random.default_rng(1))
    valid = np.arange(COUNT) % 3 > 0
    clean = jitted(boxes, scores, valid, iou_threshold=0.5)
    boxes[~valid], scores[~valid] = garbage, garbage
    np.testing.assert_array_equal(jitted(boxes, scores, valid, iou_threshold=0.5), clean)
    assert not np.asarray(clean)[~valid].any()


# Compiled as one: op by op, each shape would compile dozens of small programs.
fast_per_class = jax.jit(
    nms_per_class,
    static_argnames=(
        "score_threshold",
        "iou_threshold",
        "max_detections",
        "max_candidates",
        "class_agnostic",
        "min_size",
    ),
)


def per_class(boxes, scores, valid, **settings):
    defaults = dict(score_threshold=0.1, iou_threshold=0.5, max_detections=4, max_candidates=8)
    return jax.device_get(fast_per_class(boxes, scores, valid, **(defaults | settings)))


def test_classes_do_not_suppress_each_other_and_results_are_sorted():
    boxes = jnp.array([[[0.0, 0, 10, 10]], [[0, 0, 10, 10]]])
    scores = jnp.array([[0.3, 0.9], [0.6, 0.8]])
    found = per_class(boxes, scores, jnp.array([True, True]))
    np.testing.assert_array_equal(found.valid, [True, True, False, False])
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0, 0])
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 0])


def test_each_class_uses_its_own_box():
    boxes = jnp.array([[[0.0, 0, 1, 1], [5, 5, 9, 9]]])
    found = per_class(boxes, jnp.array([[0.5, 0.4]]), jnp.array([True]))
    np.testing.assert_array_equal(found.boxes[:2], [[0, 0, 1, 1], [5, 5, 9, 9]])


def test_nothing_valid_gives_nothing():
    found = per_class(jnp.full((3, 1, 4), jnp.nan), jnp.full((3, 2), 0.9), jnp.zeros(3, bool))
    assert not found.valid.any() and not found.boxes.any()


def test_the_score_threshold_is_exclusive():
    boxes = jnp.array([[[0.0, 0, 1, 1]], [[5, 5, 9, 9]]])
    found = per_class(boxes, jnp.array([[0.5], [0.25]]), jnp.ones(2, bool), score_threshold=0.25)
    assert int(found.valid.sum()) == 1


def test_classes_suppress_each_other_on_demand():
    boxes = jnp.array([[[0.0, 0, 10, 10]], [[0, 0, 10, 10]], [[20, 0, 30, 10]]])
    scores = jnp.array([[0.3, 0.9], [0.6, 0.8], [0.2, 0.7]])
    found = per_class(boxes, scores, jnp.ones(3, bool), class_agnostic=True)
    np.testing.assert_array_equal(found.valid, [True, True, False, False])
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0, 0])
    np.testing.assert_array_equal(found.labels, [1, 1, 0, 0])


@pytest.mark.parametrize(
    "min_size, kept", [(0.0, [0.9, 0.8, 0.7]), (2.0, [0.8, 0.7]), (2.5, [0.8])]
)
def test_boxes_with_a_short_side_are_dropped(min_size, kept):
    boxes = jnp.array([[0.0, 0, 2, 100], [40, 0, 41, 100], [50, 0, 99, 9]])
    scores, valid = jnp.array([[0.7], [0.9], [0.8]]), jnp.ones(3, bool)
    found = (
        per_class(boxes[:, None], scores, valid, min_size=min_size),
        best_class(boxes, scores, valid, min_size=min_size),
    )
    for each in found:
        np.testing.assert_allclose(each.scores[each.valid], kept)


def test_short_boxes_are_dropped_for_their_own_class():
    boxes = jnp.array([[[0.0, 0, 10, 10], [0, 0, 1, 10]], [[0, 0, 10, 1.9], [0, 0, 10, 10]]])
    scores = jnp.array([[0.5, 0.6], [0.7, 0.8]])
    found = per_class(boxes, scores, jnp.ones(2, bool), min_size=2.0)
    np.testing.assert_allclose(found.scores[found.valid], [0.8, 0.5])


def test_equal_scores_come_by_row_and_then_by_class():
    boxes = jnp.array(
        [[[40.0 * row + 20 * c, 0, 40 * row + 20 * c + 9, 9] for c in range(2)] for row in range(3)]
    )
    found = per_class(boxes, jnp.full((3, 2), 0.5), jnp.ones(3, bool), max_detections=5)
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(found.boxes[:, 0], [0, 20, 40, 60, 80])


def slow_per_class(boxes, scores, valid, *, class_agnostic):
    """Every pair of row and class, best first, with plain sorting."""
    pairs = [(r, c) for r, c in np.ndindex(scores.shape) if valid[r] and scores[r, c] > 0.1]
    pairs.sort(key=lambda pair: -scores[pair])
    chosen = np.array([boxes[r, c % boxes.shape[1]] for r, c in pairs]).reshape(-1, 4)
    labels = np.array([c for _, c in pairs], int)
    ranks = -np.arange(len(pairs))
    groups = np.zeros_like(labels) if class_agnostic else labels
    keep = slow_nms(chosen, ranks, np.ones(len(pairs), bool), groups, np.float32(0.5))
    return chosen[keep], np.array([scores[pair] for pair in pairs])[keep], labels[keep]


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_detections_equal_plain_loops(seed, agnostic, shared):
    rng = np.random.default_rng(seed)
    rows, classes = 10, 3
    boxes = crowded(rng, rows * classes)[0].reshape(rows, classes, 4)[:, : 1 if shared else None]
    scores = rng.integers(0, 9, (rows, classes)).astype(np.float32) / 8
    valid = rng.random(rows) < rng.choice([0, 0.5, 1])
    boxes, scores = np.array(boxes), np.array(scores)
    expected = slow_per_class(boxes, scores, valid, class_agnostic=agnostic)
    boxes[~valid], scores[~valid] = rng.choice([np.nan, np.inf], 2)
    found = per_class(
        boxes, scores, valid, class_agnostic=agnostic, max_detections=32, max_candidates=32
    )
    count = len(expected[1])
    np.testing.assert_array_equal(found.valid, np.arange(32) < count)
    for mine, theirs in zip(found[:3], expected, strict=True):
        np.testing.assert_array_equal(mine[:count], theirs)
        assert not mine[count:].any()


fast_best_class = jax.jit(
    nms_best_class,
    static_argnames=(
        "score_threshold",
        "iou_threshold",
        "max_detections",
        "max_candidates",
        "class_agnostic",
        "min_size",
    ),
)


def best_class(boxes, scores, valid, **settings):
    defaults = dict(score_threshold=0.1, iou_threshold=0.5, max_detections=12, max_candidates=12)
    return jax.device_get(fast_best_class(boxes, scores, valid, **(defaults | settings)))


def test_detections_of_one_class_a_box_equal_yolox(golden):
    data = golden("yolox_postprocess")
    images = data["prediction_cxcywh"]
    names = [str(name) for name in data["columns"]]
    assert names == ["x1", "y1", "x2", "y2", "obj_conf", "class_conf", "class"]
    cases = sorted({key.split("/")[0] for key in data if "/" in key})
    jitted_corners = jax.jit(box_ops.cxcywh_to_xyxy)
    for case in cases:
        confidence, iou, agnostic = map(float, re.findall(r"[\d.]+", case))
        for i, image in enumerate(images):
            boxes = jitted_corners(image[:, :4])
            found = best_class(
                boxes,
                image[:, 4:5] * image[:, 5:],
                np.ones(len(image), bool),
                score_threshold=confidence,
                iou_threshold=iou,
                class_agnostic=bool(agnostic),
                max_detections=len(image),
                max_candidates=len(image),
            )
            expected = data[f"{case}/img{i}"]
            expected = expected[np.argsort(-expected[:, 4] * expected[:, 5], kind="stable")]
            count = len(expected)
            np.testing.assert_array_equal(found.valid, np.arange(len(image)) < count)
            np.testing.assert_allclose(found.boxes[:count], expected[:, :4], rtol=1e-5, atol=1e-5)
            scores = expected[:, 4] * expected[:, 5]
            np.testing.assert_allclose(found.scores[:count], scores, rtol=1e-5)
            np.testing.assert_array_equal(found.labels[:count], expected[:, 6])


def test_a_box_has_its_best_class_only_and_the_score_threshold_is_inclusive():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [20, 0, 30, 10]])
    scores = jnp.array([[0.5, 0.75], [0.625, 0.5], [0.25, 0.25], [0.125, 0.0]])
    found = best_class(boxes, scores, jnp.ones(4, bool), score_threshold=0.25, max_detections=4)
    np.testing.assert_array_equal(found.scores, [0.75, 0.625, 0.25, 0])
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 0])
    np.testing.assert_array_equal(found.valid, [True, True, True, False])


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_detections_of_one_class_a_box_equal_plain_loops(seed, agnostic):
    rng = np.random.default_rng(seed)
    boxes, _ = crowded(rng, 10)
    scores = rng.integers(0, 9, (10, 3)).astype(np.float32) / 8
    valid = rng.random(10) < rng.choice([0, 0.5, 1])
    best = np.where(np.arange(3) == scores.argmax(axis=1)[:, None], scores, 0)
    expected = slow_per_class(boxes[:, None], best, valid, class_agnostic=agnostic)
    boxes[~valid], scores[~valid] = rng.choice([np.nan, np.inf], 2)
    found = best_class(boxes, scores, valid, class_agnostic=agnostic)
    count = len(expected[1])
    np.testing.assert_array_equal(found.valid, np.arange(12) < count)
    for mine, theirs in zip(found[:3], expected, strict=True):
        np.testing.assert_array_equal(mine[:count], theirs)
        assert not mine[count:].any()


def slow_soft_nms(boxes, scores, valid, groups, *, method, threshold, sigma, min_score):
    scores, left = scores.astype(np.float64), valid & (scores >= min_score)
    keep = np.zeros(len(boxes), bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while left.any():
        best = max(np.flatnonzero(left), key=lambda i: (scores[i], -i))
        left[best], keep[best] = False, True
        for i in np.flatnonzero(left & (groups == groups[best])):
            low = np.maximum(boxes[i, :2], boxes[best, :2])
            high = np.minimum(boxes[i, 2:], boxes[best, 2:])
            shared = np.prod(np.maximum(high - low, 0))
            overlap = np.float32(shared) / np.float32(areas[i] + areas[best] - shared)
            if method == "linear":
                scores[i] *= 1 - overlap if overlap > np.float32(threshold) else 1
            else:
                scores[i] *= np.exp(-(overlap**2) / sigma)
            left[i] = scores[i] >= min_score
    return np.where(keep, scores, 0), keep


@pytest.fixture(scope="module")
def jitted_soft():
    settings = ("method", "iou_threshold", "sigma", "min_score")
    return jax.jit(soft_nms, static_argnames=settings)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["linear", "gaussian"]), st.booleans())
def test_soft_nms_equals_plain_loops(jitted_soft, seed, method, grouped):
    rng = np.random.default_rng(seed)
    boxes, _ = crowded(rng)
    # All different: decayed scores that tie in one precision need not in the other.
    scores = rng.permutation(np.linspace(0, 1, COUNT) ** 1.01).astype(np.float32)
    valid = rng.random(COUNT) < rng.choice([0, 0.5, 1])
    groups = rng.integers(0, 3 if grouped else 1, COUNT).astype(np.int32)
    expected, keep = slow_soft_nms(
        boxes, scores, valid, groups, method=method, threshold=0.4, sigma=0.6, min_score=0.05
    )
    boxes[~valid], scores[~valid] = rng.choice([np.nan, np.inf, -np.inf], 2)
    found = jitted_soft(
        boxes, scores, valid, groups, method=method, iou_threshold=0.4, sigma=0.6, min_score=0.05
    )
    np.testing.assert_array_equal(found.keep, keep)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)


def test_soft_nms_by_hand(jitted_soft):
    # IoU 1/2, 1/4 and none with the best; the second and third overlap by 1/2.
    boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 5], [20, 0, 30, 10.0]])
    scores = jnp.array([0.8, 0.6, 0.5, 0.1])
    linear = jitted_soft(boxes, scores, jnp.ones(4, bool))
    # The third is next (.5); it halves the second, which the first had halved to .3.
    np.testing.assert_allclose(linear.scores, [0.8, 0.15, 0.5, 0.1], rtol=1e-6)
    assert linear.keep.all()
    decay = np.exp(-np.array([0.25, 0.0625]) / 0.5)
    gaussian = jitted_soft(boxes, scores, jnp.ones(4, bool), method="gaussian", min_score=0.25)
    second = 0.6 * decay[0] * decay[0]
    third = 0.5 * decay[1]
    assert third > 0.6 * decay[0] and second < 0.25
    np.testing.assert_allclose(gaussian.scores, [0.8, 0, third, 0], rtol=1e-6)
    np.testing.assert_array_equal(gaussian.keep, [True, False, True, False])


def test_soft_nms_visits_equal_scores_by_index_and_groups_leave_each_other_alone(jitted_soft):
    boxes, scores = jnp.array([[0.0, 0, 10, 10]] * 3), jnp.full(3, 0.5, jnp.bfloat16)
    groups = jnp.array([0, 1, 0])
    found = jitted_soft(boxes, scores, jnp.ones(3, bool), groups, min_score=0.0)
    np.testing.assert_array_equal(found.scores, [0.5, 0.5, 0])
    assert found.scores.dtype == jnp.float32 and found.keep.all()
    dropped = jitted_soft(boxes, scores, jnp.ones(3, bool), groups, min_score=0.6)
    assert not dropped.keep.any() and not dropped.scores.any()


def test_soft_nms_under_vmap_equals_one_set_at_a_time(jitted_soft):
    sets = random_sets(np.random.default_rng(3), 4)
    boxes, scores, valid, groups = (np.stack(a) for a in zip(*sets, strict=True))
    batched = jax.device_get(jax.vmap(jitted_soft)(boxes, scores, valid, groups.astype(np.int32)))
    for row, one in enumerate(sets):
        alone = jitted_soft(*one[:3], one[3].astype(np.int32))
        np.testing.assert_array_equal(batched.scores[row], alone.scores)


NAN = float("nan")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b, s, v: nms(b, s, v, iou_threshold=1.5), r"iou_threshold must lie in \[0, 1\]"),
        (lambda b, s, v: nms(b, s, v, iou_threshold=NAN), "got nan"),
        (lambda b, s, v: nms(b, s[:2], v, iou_threshold=0.5), "scores wants the shape"),
        (lambda b, s, v: nms(b[:, :3], s, v, iou_threshold=0.5), "boxes wants the shape"),
        (lambda b, s, v: nms(b, s, v, s[:1], iou_threshold=0.5), "groups wants the shape"),
        (lambda b, s, v: nms_sorted(b, v, iou_threshold=-0.1), r"\[0, 1\], got -0.1"),
        (lambda b, s, v: nms_sorted(b[0], v, iou_threshold=0.1), "boxes wants the shape"),
        (lambda b, s, v: soft_nms(b, s, v, method="hard"), "method must be one of linear, gauss"),
        (lambda b, s, v: soft_nms(b, s, v, sigma=0.0), "sigma must be positive, got 0.0"),
        (lambda b, s, v: soft_nms(b, s, v, iou_threshold=2.0), "iou_threshold must lie"),
        (lambda b, s, v: soft_nms(b, s, v, min_score=NAN), "min_score must lie"),
        (lambda b, s, v: soft_nms(b, s, v[:1]), "valid wants the shape"),
        (lambda b, s, v: per_class(b[:, None], b, v, max_candidates=2), "candidates 2 < max_det"),
        (lambda b, s, v: per_class(b[:, None], b, v, max_detections=0), "max_detections must be"),
        (lambda b, s, v: per_class(b[:, None], b, v, score_threshold=-1), "score_threshold must"),
        (lambda b, s, v: per_class(b[:, None], b, v, iou_threshold=7), "iou_threshold must lie"),
        (lambda b, s, v: per_class(b, b, v), "boxes wants the shape"),
        (lambda b, s, v: best_class(b, b, v, max_candidates=2), "candidates 2 < max_detections 12"),
        (lambda b, s, v: best_class(b, b, v, score_threshold=-1), "score_threshold must"),
        (lambda b, s, v: best_class(b[:, None], b, v), "boxes wants the shape"),
        (lambda b, s, v: best_class(b, b, v, min_size=-1.0), "min_size must be at least 0"),
    ],
)
def test_impossible_inputs_raise_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jnp.zeros((3, 4)), jnp.zeros(3), jnp.ones(3, bool))
