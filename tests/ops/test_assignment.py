import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.assignment import IGNORE, NEGATIVE, POSITIVE, assign_by_iou

NUM_CANDIDATES, NUM_SLOTS = 40, 6
RPN = dict(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3)
CASES = """a_rpn b_rcnn b2_retina c_rpn_ignore c_rcnn_ignore c_rcnn_ignore_wrt_gt c_rpn_ignore_off
d_zero_gt d_zero_gt_ignore d_zero_boxes e_rpn_not_all f_ties_rpn f_ties_rcnn g_neg_tuple""".split()


def settings_of(data, case):
    setting = {key: data[f"{case}/cfg/{key}"].tolist() for key in (
        "pos_iou_thr", "neg_iou_thr", "min_pos_iou", "match_low_quality",
        "gt_max_assign_all", "ignore_iof_thr", "ignore_wrt_candidates",
    )}  # fmt: skip
    negative = setting["neg_iou_thr"]
    return dict(
        positive_iou=setting["pos_iou_thr"],
        negative_iou=tuple(negative) if isinstance(negative, list) else negative,
        min_positive_iou=setting["min_pos_iou"],
        match_low_quality=setting["match_low_quality"],
        match_all_ties=setting["gt_max_assign_all"],
        ignore_iof_threshold=setting["ignore_iof_thr"],
        ignore_by_candidate=setting["ignore_wrt_candidates"],
    )


def slots(objects, ignored, count):
    """Ground truth and crowd regions in padded slots, garbage behind them."""
    boxes = np.full((count, 4), np.nan, np.float32)
    num_objects, num_all = len(objects), len(objects) + len(ignored)
    boxes[:num_objects], boxes[num_objects:num_all] = objects, ignored
    place = np.arange(count)
    return boxes, place < num_objects, (place >= num_objects) & (place < num_all)


@pytest.mark.parametrize("case", CASES)
def test_assignment_equals_the_reference(golden, case):
    data = golden("mmdet_max_iou_assigner")
    settings = settings_of(data, case)
    candidates = data[f"{case}/boxes"].reshape(-1, 4)
    ignored = data.get(f"{case}/gts_ignore", np.zeros((0, 4), np.float32))
    boxes, valid, crowd = slots(data[f"{case}/gts"].reshape(-1, 4), ignored, count=16)
    # Candidates are padded as well: with garbage, and with one slot at least.
    padded = np.concatenate([candidates, np.full((3, 4), np.nan, np.float32)])
    real = np.arange(len(padded)) < len(candidates)
    result = jax.jit(lambda *arrays: assign_by_iou(*arrays, **settings))(
        padded, real, boxes, valid, crowd
    )
    found = np.where(result.labels == POSITIVE, result.index + 1, result.labels)
    np.testing.assert_array_equal(found[real], data[f"{case}/gt_inds"])
    np.testing.assert_array_equal(found[~real], IGNORE)
    np.testing.assert_allclose(
        np.asarray(result.overlaps)[real], data[f"{case}/max_overlaps"], rtol=1e-5
    )


def slow_assign(candidates, candidates_valid, boxes, valid, *, positive, negative, minimum):
    """The reference's steps in plain loops."""
    labels = np.full(len(candidates), IGNORE)
    index = np.zeros(len(candidates), int)
    real, usable = np.flatnonzero(valid), np.flatnonzero(candidates_valid)
    if len(real) == 0:
        labels[usable] = NEGATIVE
        return labels, index
    overlaps = np.full((len(boxes), len(candidates)), -1.0, np.float32)
    for g in real:
        for n in usable:
            wide = min(boxes[g, 2], candidates[n, 2]) - max(boxes[g, 0], candidates[n, 0])
            high = min(boxes[g, 3], candidates[n, 3]) - max(boxes[g, 1], candidates[n, 1])
            shared = max(wide, np.float32(0)) * max(high, np.float32(0))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[g], candidates[n])]
            overlaps[g, n] = shared / max(areas[0] + areas[1] - shared, np.float32(1e-6))
    for n in usable:
        best = overlaps[:, n].max()
        if best < negative:
            labels[n] = NEGATIVE
        if best >= positive:
            labels[n], index[n] = POSITIVE, overlaps[:, n].argmax()
    for g in real:
        best = overlaps[g].max()
        if best > 0 and best >= minimum:
            for n in np.flatnonzero(overlaps[g] == best):
                labels[n], index[n] = POSITIVE, g
    return labels, index


@pytest.fixture(scope="module")
def jitted_rpn():
    return jax.jit(lambda *arrays: assign_by_iou(*arrays, **RPN))


def random_problem(seed, num_objects):
    rng = np.random.default_rng(seed)
    # Whole pixels give many ties.
    low = rng.integers(0, 12, (NUM_CANDIDATES + NUM_SLOTS, 2))
    corners = np.concatenate([low, low + rng.integers(1, 9, low.shape)], axis=1)
    candidates, boxes = np.split(corners.astype(np.float32), [NUM_CANDIDATES])
    boxes[num_objects:] = rng.choice([np.nan, np.inf, 1e30, -5])
    return candidates, rng.random(NUM_CANDIDATES) < 0.8, boxes, np.arange(NUM_SLOTS) < num_objects


@given(st.integers(0, 2**32 - 1), st.integers(0, NUM_SLOTS))
def test_assignment_equals_plain_loops(jitted_rpn, seed, num_objects):
    candidates, usable, boxes, valid = random_problem(seed, num_objects)
    result = jitted_rpn(candidates, usable, boxes, valid, np.zeros(NUM_SLOTS, bool))
    labels, index = slow_assign(
        candidates, usable, boxes, valid, positive=0.7, negative=0.3, minimum=0.3
    )
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.index, np.where(labels == POSITIVE, index, 0))


def test_an_object_that_overlaps_nothing_matches_nothing():
    candidates = jnp.array([[0.0, 0, 4, 4], [8, 8, 12, 12]])
    far = jnp.array([[50.0, 50, 60, 60]])
    result = assign_by_iou(
        candidates,
        jnp.array([True, True]),
        far,
        jnp.array([True]),
        jnp.array([False]),
        positive_iou=0.5,
        negative_iou=0.4,
        min_positive_iou=0.0,  # The reference gives it every candidate.
    )
    np.testing.assert_array_equal(result.labels, [NEGATIVE, NEGATIVE])


def test_the_reference_gives_a_far_object_everything_and_jaxdet_nothing(golden):
    data = golden("quirks")
    boxes, objects = map(jnp.asarray, (data["retina_far_gt/boxes"], data["retina_far_gt/gts"]))
    result = assign_by_iou(
        boxes,
        jnp.ones(len(boxes), bool),
        objects,
        jnp.ones(len(objects), bool),
        jnp.zeros(len(objects), bool),
        positive_iou=0.5,
        negative_iou=0.4,
        min_positive_iou=0.0,
    )
    reference = data["retina_far_gt/gt_inds_min_pos_iou0.0"]
    far = int(np.flatnonzero(box_ops.pairwise_iou(objects, boxes).max(axis=1) == 0)[0])
    assert (reference == far + 1).sum() > 1
    assert not ((result.labels == POSITIVE) & (result.index == far)).any()
    assert ((result.labels == POSITIVE) & (result.index == 1 - far)).any()


def test_assignment_under_vmap_equals_one_image_at_a_time(jitted_rpn):
    problems = [random_problem(seed, num_objects) for seed, num_objects in ((0, 3), (1, 0))]
    batch = [np.stack(arrays) for arrays in zip(*problems, strict=True)]
    crowd = np.zeros((2, NUM_SLOTS), bool)
    together = jax.vmap(lambda *arrays: assign_by_iou(*arrays, **RPN))(*batch, crowd)
    for i, problem in enumerate(problems):
        alone = jitted_rpn(*problem, crowd[i])
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(batched[i], single)


@pytest.mark.parametrize("name", ["positive_iou", "negative_iou", "min_positive_iou"])
def test_thresholds_outside_0_to_1_raise(name):
    arrays = map(jnp.asarray, (*random_problem(0, 2), np.zeros(NUM_SLOTS, bool)))
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got 1.5"):
        assign_by_iou(*arrays, **(RPN | {name: 1.5}))
