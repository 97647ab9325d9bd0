import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.nms import nms, nms_per_class

COUNT = 30


@pytest.fixture(scope="module")
def jitted():
    return jax.jit(nms, static_argnames="iou_threshold")


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


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_nms_equals_the_reference(golden, jitted, threshold, grouped):
    data = golden("mmcv_nms")
    boxes, scores = data["boxes"], data["scores"]
    groups = data["idxs"].astype(np.int32) if grouped else None
    keep = jitted(boxes, scores, np.ones(len(boxes), bool), groups, iou_threshold=threshold)
    kept = np.flatnonzero(keep)
    expected = data[f"{'batched' if grouped else 'nms'}/{threshold}/keep"]
    np.testing.assert_array_equal(kept[np.argsort(-scores[kept])], expected)


def test_grouping_by_one_class_and_by_split_equal_the_reference(golden, jitted):
    data = golden("mmcv_nms")
    boxes, scores, valid = data["boxes"], data["scores"], np.ones(len(data["boxes"]), bool)
    for name, groups in (("class_agnostic", None), ("split_thr10", data["idxs"].astype(np.int32))):
        kept = np.flatnonzero(jitted(boxes, scores, valid, groups, iou_threshold=0.5))
        expected = data[f"batched/0.5/{name}/keep"]
        np.testing.assert_array_equal(kept[np.argsort(-scores[kept])], expected)


def test_tied_scores_keep_as_many_as_the_reference(golden, jitted):
    data = golden("mmcv_nms")
    valid = np.ones(len(data["boxes"]), bool)
    keep = jitted(data["boxes"], data["scores_tied"], valid, iou_threshold=0.5)
    zeros = np.zeros(len(valid), np.int32)
    expected = slow_nms(data["boxes"], data["scores_tied"], valid, zeros, 0.5)
    np.testing.assert_array_equal(keep, expected)


def test_overlap_equal_to_the_threshold_is_kept(golden, jitted):
    data = golden("mmcv_nms")
    boxes = data["iou_eq_thr/boxes"]
    keep = jitted(boxes, data["iou_eq_thr/scores"], np.ones(4, bool), iou_threshold=0.5)
    # mmcv's CPU op suppresses at equality; its CUDA op, torchvision and jaxdet do not.
    assert int(keep.sum()) > len(data["iou_eq_thr/keep_cpu_ge"])
    halves = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1]])
    assert jitted(halves, jnp.array([0.9, 0.8]), jnp.ones(2, bool), iou_threshold=0.5).all()


def test_nms_equals_brute_force_on_ten_thousand_random_sets():
    rng = np.random.default_rng(0)
    batched = jax.jit(
        jax.vmap(lambda *arrays: nms(*arrays, iou_threshold=0.3)),
    )
    for _ in range(10):
        sets = []
        for _ in range(1000):
            boxes, scores = crowded(rng)
            sets.append((boxes, scores, rng.random(COUNT) < 0.9, rng.integers(0, 3, COUNT)))
        boxes, scores, valid, groups = (np.stack(a) for a in zip(*sets, strict=True))
        keep = np.asarray(batched(boxes, scores, valid, groups.astype(np.int32)))
        expected = [slow_nms(*one, np.float32(0.3)) for one in sets]
        np.testing.assert_array_equal(keep, np.stack(expected))


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


def per_class(boxes, scores, valid, **settings):
    defaults = dict(score_threshold=0.1, iou_threshold=0.5, max_detections=4, max_candidates=8)
    return nms_per_class(boxes, scores, valid, **(defaults | settings))


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


def test_impossible_settings_raise():
    boxes, scores, valid = jnp.zeros((3, 1, 4)), jnp.zeros((3, 2)), jnp.ones(3, bool)
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \[0, 1\], got 1.5"):
        nms(boxes[:, 0], scores[:, 0], valid, iou_threshold=1.5)
    with pytest.raises(ValueError, match="max_candidates 2 < max_detections 4"):
        per_class(boxes, scores, valid, max_candidates=2)
