from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import box_coder
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import inside_image, pyramid_anchors
from jaxdet.ops.assignment import (
    IGNORE,
    NEGATIVE,
    POSITIVE,
    Assignment,
    append_ground_truth,
    assign_by_iou,
)

NUM_CANDIDATES, NUM_SLOTS = 40, 6
RPN = dict(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3)
# The labels of simple-faster-rcnn: any overlap is good enough for an object's best anchor.
SFRCNN = dict(positive_iou=0.7, negative_iou=0.3, reassign_low_quality=False)
SWAP = [1, 0, 3, 2]  # Between the yxyx of simple-faster-rcnn and xyxy.
GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -5)
with np.load(Path(__file__).parents[1] / "goldens" / "mmdet_max_iou_assigner.npz") as arrays:
    CASES = sorted({name.split("/")[0] for name in arrays})


@cache
def jitted(**settings):
    return jax.jit(partial(assign_by_iou, **settings))


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


def slots(objects, ignored=(), padding=3):
    """Ground truth and crowd regions in padded slots, garbage behind them."""
    num_objects, num_all = len(objects), len(objects) + len(ignored)
    boxes = np.full((num_all + padding, 4), np.nan, np.float32)
    boxes[:num_objects], boxes[num_objects:num_all] = objects, np.reshape(ignored, (-1, 4))
    place = np.arange(len(boxes))
    return boxes, place < num_objects, (place >= num_objects) & (place < num_all)


@pytest.mark.parametrize("case", CASES)
def test_assignment_equals_the_reference(golden, case):
    data = golden("mmdet_max_iou_assigner")
    candidates = data[f"{case}/boxes"].reshape(-1, 4)
    boxes, valid, crowd = slots(
        data[f"{case}/gts"].reshape(-1, 4), data.get(f"{case}/gts_ignore", ())
    )
    # Candidates are padded as well: with garbage, and with one slot at least.
    padded = np.concatenate([candidates, np.full((3, 4), np.nan, np.float32)])
    real = np.arange(len(padded)) < len(candidates)
    result = jitted(**settings_of(data, case))(padded, real, boxes, valid, crowd)
    positive, index = np.asarray(result.labels) == POSITIVE, np.asarray(result.index)
    found = np.where(positive, index + 1, result.labels)
    np.testing.assert_array_equal(found[real], data[f"{case}/gt_inds"])
    np.testing.assert_array_equal(found[~real], IGNORE)
    classes = np.append(data[f"{case}/gt_labels"], -1)[np.where(positive, index, -1)]
    np.testing.assert_array_equal(classes[real], data[f"{case}/labels"])
    np.testing.assert_allclose(
        np.asarray(result.overlaps)[real], data[f"{case}/max_overlaps"], rtol=1e-5
    )


def sfrcnn_anchors(golden, size):
    """Anchors and the numbers that they were made with are in two files."""
    data = golden("sfrcnn_bbox")
    share = float(data["base_size"] / data["feat_stride"])
    return pyramid_anchors(
        [tuple(size.tolist())],
        [int(data["feat_stride"])],
        scales=(data["anchor_scales"] * share).tolist(),
        ratios=data["ratios"].tolist(),
        centre=0.5 * share,
    )


def pairwise_iou(objects, candidates):
    return np.asarray(jax.jit(box_ops.pairwise_iou)(objects, candidates))


def test_anchor_labels_and_deltas_equal_simple_faster_rcnn(golden):
    data = golden("sfrcnn_targets")
    anchors = sfrcnn_anchors(golden, data["anchor/anchors_hw"])
    objects = data["anchor/gts"][:, SWAP]
    size = data["anchor/img_size"]
    inside = np.asarray(jax.jit(partial(inside_image, count_touching=True))(anchors, size))
    result = jitted(**SFRCNN)(anchors, inside, *slots(objects))
    np.testing.assert_array_equal(result.labels, data["anchor/label_full"])
    assert (np.asarray(result.labels) >= 0).sum() == data["anchor/n_label_ge0"]
    # The reference has deltas for every inside anchor; only those of positives train.
    positive = np.asarray(result.labels) == POSITIVE
    best = pairwise_iou(objects, anchors).argmax(axis=0)
    np.testing.assert_array_equal(np.asarray(result.index)[positive], best[positive])
    deltas = jax.jit(box_coder.encode)(anchors, objects[best])
    deltas = np.where(inside[:, None], deltas, 0)
    np.testing.assert_allclose(deltas, data["anchor/loc_full"][:, SWAP], rtol=1e-5, atol=1e-6)


def test_an_object_without_an_anchor_takes_all_in_simple_faster_rcnn_and_none_here(golden):
    data = golden("sfrcnn_targets")
    anchors = data["anchor_gt_without_overlap/anchors"][:, SWAP]
    objects = data["anchor_gt_without_overlap/gts"][:, SWAP]
    # Anchors outside the image are those without deltas.
    inside = data["anchor_gt_without_overlap/loc_full"].any(axis=1)
    overlaps = pairwise_iou(objects, anchors[inside])
    lonely = overlaps.max(axis=1) == 0
    assert lonely.any() and not lonely.all()
    reference = data["anchor_gt_without_overlap/label_full"]
    assert (reference[inside] == POSITIVE).all()
    result = jitted(**SFRCNN)(anchors, inside, *slots(objects))
    alone = jitted(**SFRCNN)(anchors, inside, *slots(objects[~lonely]))
    result, alone = jax.device_get((result, alone))
    # As if the lonely object were not there: it neither takes nor ignores an anchor.
    np.testing.assert_array_equal(result.labels, alone.labels)
    np.testing.assert_array_equal(result.labels[~inside], IGNORE)
    assert 0 < (result.labels == POSITIVE).sum() < inside.sum()
    assert not lonely[result.index[result.labels == POSITIVE]].any()


def slow_assign(candidates, usable, boxes, valid, crowd, settings):
    """The reference's steps in plain loops."""
    option = dict(
        min_positive_iou=0, match_low_quality=True, match_all_ties=True,
        reassign_low_quality=True, ignore_iof_threshold=-1, ignore_by_candidate=True,
    ) | settings  # fmt: skip
    negative = option["negative_iou"]
    low, high = negative if isinstance(negative, tuple) else (0, negative)
    labels, index = np.full(len(candidates), IGNORE), np.zeros(len(candidates), int)
    bests, real = np.full(len(candidates), -1, np.float32), np.flatnonzero(valid)
    if len(real) == 0:
        labels[usable], bests[usable] = NEGATIVE, 0
        return labels, index, bests
    wide, tall = (
        np.minimum(boxes[:, None, i + 2], candidates[:, i + 2])
        - np.maximum(boxes[:, None, i], candidates[:, i])
        for i in (0, 1)
    )
    shared = np.maximum(wide, 0) * np.maximum(tall, 0)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, candidates)]
    overlaps = shared / np.maximum(areas[0][:, None] + areas[1] - shared, np.float32(1e-6))
    if option["ignore_iof_threshold"] > 0:
        whole = areas[1] if option["ignore_by_candidate"] else areas[0][:, None]
        covered = (shared / whole)[crowd] > option["ignore_iof_threshold"]
        usable = usable & ~covered.any(axis=0)
    for n in np.flatnonzero(usable):
        bests[n] = best = overlaps[real, n].max()
        if low <= best < high:
            labels[n] = NEGATIVE
        if best >= option["positive_iou"]:
            labels[n], index[n] = POSITIVE, real[overlaps[real, n].argmax()]
    for g in real if option["match_low_quality"] and usable.any() else ():
        best = overlaps[g, usable].max()
        takers = np.flatnonzero(usable & (overlaps[g] == best))
        if best > 0 and best >= option["min_positive_iou"]:
            for n in takers if option["match_all_ties"] else takers[:1]:
                own = real[overlaps[real, n].argmax()]
                labels[n], index[n] = POSITIVE, g if option["reassign_low_quality"] else own
    return labels, index, bests


def random_problem(seed, num_objects, num_crowd=0):
    rng = np.random.default_rng(seed)
    # Whole pixels give many ties.
    low = rng.integers(0, 12, (NUM_CANDIDATES + NUM_SLOTS, 2))
    corners = np.concatenate([low, low + rng.integers(1, 9, low.shape)], axis=1)
    candidates, boxes = np.split(corners.astype(np.float32), [NUM_CANDIDATES])
    place = rng.permutation(NUM_SLOTS)  # Objects, crowd regions and padding in any order.
    valid, crowd = place < num_objects, (place >= num_objects) & (place < num_objects + num_crowd)
    return candidates, rng.random(NUM_CANDIDATES) < 0.8, boxes, valid, crowd


def with_garbage(seed, candidates, usable, boxes, valid, crowd):
    rng = np.random.default_rng(seed)
    trash = [rng.choice(GARBAGE, array.shape) for array in (candidates, boxes)]
    candidates = np.where(usable[:, None], candidates, trash[0]).astype(np.float32)
    boxes = np.where((valid | crowd)[:, None], boxes, trash[1]).astype(np.float32)
    return candidates, usable, boxes, valid, crowd


@pytest.mark.parametrize(
    "settings",
    [
        RPN,
        SFRCNN,
        dict(positive_iou=0.5, negative_iou=0.4, ignore_iof_threshold=0.5),
        dict(
            positive_iou=0.5,
            negative_iou=(0.1, 0.5),
            match_low_quality=False,
            ignore_iof_threshold=0.2,
            ignore_by_candidate=False,
        ),
        dict(positive_iou=0.6, negative_iou=0.6, min_positive_iou=0.5, match_all_ties=False),
    ],
    ids=["rpn", "simple-faster-rcnn", "crowd", "range", "first-tie"],
)
@given(st.integers(0, 2**32 - 1), st.integers(0, NUM_SLOTS), st.integers(0, 2))
def test_assignment_equals_plain_loops_whatever_the_padding_holds(
    settings, seed, num_objects, num_crowd
):
    problem = random_problem(seed, num_objects, num_crowd)
    result = jitted(**settings)(*with_garbage(seed, *problem))
    labels, index, bests = slow_assign(*problem, settings)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.index, np.where(labels == POSITIVE, index, 0))
    np.testing.assert_allclose(result.overlaps, bests, rtol=1e-6)


def problem_of(candidates, objects):
    candidates, objects = (np.array(boxes, np.float32) for boxes in (candidates, objects))
    return candidates, np.ones(len(candidates), bool), *slots(objects)


def test_verdicts_worked_by_hand():
    candidates = [
        [0, 0, 10, 8],  # IoU 0.8 with the first object: positive.
        [0, 5, 10, 10],  # 0.5: neither.
        [0, 0, 2, 10],  # 0.2: negative.
        [20, 0, 30, 4],  # 0.4 with the second: its best, hence positive.
        [20, 6, 30, 10],  # The same from the other side.
    ]
    problem = problem_of(candidates, [[0, 0, 10, 10], [20, 0, 30, 10]])
    result = jitted(**RPN)(*problem)
    np.testing.assert_array_equal(result.labels, [1, -1, 0, 1, 1])
    np.testing.assert_array_equal(result.index, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(result.overlaps, [0.8, 0.5, 0.2, 0.4, 0.4], rtol=1e-6)
    one = jitted(**RPN, match_all_ties=False)(*problem)
    np.testing.assert_array_equal(one.labels, [1, -1, 0, 1, -1])
    strict = jitted(**(RPN | dict(min_positive_iou=0.5)))(*problem)
    np.testing.assert_array_equal(strict.labels, [1, -1, 0, -1, -1])
    never = jitted(**RPN, match_low_quality=False)(*problem)
    np.testing.assert_array_equal(never.labels, [1, -1, 0, -1, -1])
    some = jitted(**(RPN | dict(negative_iou=(0.3, 0.6))))(*problem)
    np.testing.assert_array_equal(some.labels, [1, 0, -1, 1, 1])


def test_a_low_quality_match_learns_the_taker_or_its_own_best():
    # The candidate overlaps the first object most, and is the second's only one.
    problem = problem_of([[0, 0, 10, 10]], [[0, 0, 10, 9], [0, 8, 10, 18]])
    assert jitted(**RPN, match_low_quality=False)(*problem).index.tolist() == [0]
    settings = RPN | dict(min_positive_iou=0.0)
    assert jitted(**settings)(*problem).index.tolist() == [1]
    assert jitted(**settings, reassign_low_quality=False)(*problem).index.tolist() == [0]


def test_the_crowd_ignores_by_the_candidate_or_by_itself():
    candidates = [[0, 0, 4, 4], [0, 0, 20, 20]]
    boxes, valid, crowd = slots([[50, 50, 60, 60]], [[0, 0, 5, 5]])
    usable = np.ones(2, bool)
    settings = RPN | dict(ignore_iof_threshold=0.7)
    by_candidate = jitted(**settings)(np.float32(candidates), usable, boxes, valid, crowd)
    np.testing.assert_array_equal(by_candidate.labels, [IGNORE, NEGATIVE])
    np.testing.assert_array_equal(by_candidate.overlaps, [-1, 0])
    by_crowd = jitted(**settings, ignore_by_candidate=False)(
        np.float32(candidates), usable, boxes, valid, crowd
    )
    np.testing.assert_array_equal(by_crowd.labels, [NEGATIVE, IGNORE])


def test_an_object_that_overlaps_nothing_matches_nothing():
    problem = problem_of([[0, 0, 4, 4], [8, 8, 12, 12]], [[50, 50, 60, 60]])
    # The reference gives it every candidate.
    result = jitted(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0)(*problem)
    np.testing.assert_array_equal(result.labels, [NEGATIVE, NEGATIVE])


def test_the_reference_gives_a_far_object_everything_and_jaxdet_nothing(golden):
    data = golden("quirks")
    boxes, objects = data["retina_far_gt/boxes"], data["retina_far_gt/gts"]
    problem = problem_of(boxes, objects)
    assign = jitted(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0)
    result = jax.device_get(assign(*problem))
    reference = data["retina_far_gt/gt_inds_min_pos_iou0.0"]
    overlaps = pairwise_iou(objects, boxes)
    far = int(np.flatnonzero(overlaps.max(axis=1) == 0)[0])
    assert (reference == far + 1).sum() > 1
    assert not ((result.labels == POSITIVE) & (result.index == far)).any()
    assert ((result.labels == POSITIVE) & (result.index == 1 - far)).any()
    assign = jitted(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.3)
    strict = jax.device_get(assign(*problem))
    found = np.where(strict.labels == POSITIVE, strict.index + 1, strict.labels)
    np.testing.assert_array_equal(found, data["retina_far_gt/gt_inds_min_pos_iou0.3"])


def test_assignment_under_vmap_equals_one_image_at_a_time():
    problems = [random_problem(seed, num_objects, 1) for seed, num_objects in ((0, 3), (1, 0))]
    batch = [np.stack(arrays) for arrays in zip(*problems, strict=True)]
    together = jax.device_get(jax.vmap(jitted(**RPN))(*batch))
    for i, problem in enumerate(problems):
        alone = jitted(**RPN)(*problem)
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(batched[i], single)


def test_no_gradient_flows_through_an_assignment_even_of_garbage():
    candidates, *rest = with_garbage(0, *random_problem(0, 0))
    total = jax.grad(lambda boxes, rest: jnp.sum(assign_by_iou(boxes, *rest, **RPN).overlaps))
    assert not np.any(jax.jit(total)(candidates, rest))


def test_boxes_in_bfloat16_are_assigned_in_float32():
    candidates, usable, boxes, valid, crowd = random_problem(3, 4)
    coarse = jitted(**RPN)(
        candidates.astype(jnp.bfloat16), usable, boxes.astype(jnp.bfloat16), valid, crowd
    )
    # Whole pixels below 256 are exact in bfloat16.
    jax.tree.map(
        np.testing.assert_array_equal,
        coarse,
        jitted(**RPN)(candidates, usable, boxes, valid, crowd),
    )


def test_ground_truth_becomes_the_last_candidates():
    assignment = Assignment(jnp.array([0, 1]), jnp.array([0, 2]), jnp.array([0.1, 0.6]))
    boxes = jnp.array([[1, 1, 2, 2], [np.nan] * 4, [3, 3, 5, 5], [7, 7, 8, 8]])
    valid = jnp.array([True, False, True, False])  # The last one may be a crowd region.
    append = jax.jit(append_ground_truth)
    candidates, joined = append(jnp.ones((2, 4)), assignment, boxes, valid)
    np.testing.assert_array_equal(
        candidates, [[1] * 4, [1] * 4, [1, 1, 2, 2], [0] * 4, [3, 3, 5, 5], [0] * 4]
    )
    np.testing.assert_array_equal(joined.labels, [0, 1, 1, -1, 1, -1])
    np.testing.assert_array_equal(joined.index, [0, 2, 0, 0, 2, 0])
    np.testing.assert_allclose(joined.overlaps, [0.1, 0.6, 1, -1, 1, -1])
    batch = [jax.tree.map(lambda x: np.stack([x, x]), part) for part in (assignment, boxes, valid)]
    together, _ = jax.vmap(append)(jnp.ones((2, 2, 4), jnp.bfloat16), *batch)
    assert together.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(together)[1], candidates)


def test_the_gradient_of_appended_boxes_is_that_of_the_real_ones():
    assignment = Assignment(jnp.zeros(2, int), jnp.zeros(2, int), jnp.zeros(2))
    boxes, valid = np.float32([[1] * 4, [np.nan] * 4]), jnp.array([True, False])
    total = jax.jit(jax.grad(lambda b: jnp.sum(append_ground_truth(b, assignment, b, valid)[0])))
    np.testing.assert_array_equal(total(boxes), [[2] * 4, [1] * 4])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(positive_iou=1.5), r"positive_iou must lie in \[0, 1\], got 1.5"),
        (dict(min_positive_iou=-0.1), r"min_positive_iou must lie in \[0, 1\], got -0.1"),
        (dict(positive_iou=float("nan")), "positive_iou must lie in"),
        (dict(negative_iou=1.5), r"negative_iou must lie in \[0, 1\], .* got 1.5"),
        (dict(negative_iou=(0.5, 0.1)), r"negative_iou must .* got \(0.5, 0.1\)"),
        (dict(negative_iou=(-0.1, 0.5)), r"negative_iou must .* got \(-0.1, 0.5\)"),
        (dict(positive_iou=0.2), "positive_iou must not be below negative_iou, got 0.2 and 0.3"),
        (
            dict(positive_iou=0.5, negative_iou=(0.1, 0.6)),
            r"positive_iou must not be below negative_iou, got 0.5 and \(0.1, 0.6\)",
        ),
        (dict(ignore_iof_threshold=1.5), "ignore_iof_threshold must be at most 1, got 1.5"),
    ],
)
def test_impossible_settings_raise_while_tracing(settings, message):
    assign = partial(assign_by_iou, **(RPN | settings))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(assign, *random_problem(0, 2))


def test_wrong_shapes_raise_while_tracing():
    candidates, usable, boxes, valid, crowd = random_problem(0, 2)
    assign = partial(assign_by_iou, **RPN)
    with pytest.raises(ValueError, match=r"candidates_valid wants the shape \(N\), found \(39,\)"):
        jax.eval_shape(assign, candidates, usable[1:], boxes, valid, crowd)
    with pytest.raises(ValueError, match=r"crowd wants the shape \(G\), found \(5,\)"):
        jax.eval_shape(assign, candidates, usable, boxes, valid, crowd[1:])
    assignment = jax.eval_shape(assign, candidates, usable, boxes, valid, crowd)
    with pytest.raises(ValueError, match=r"39 candidates, but labels of the shape \(40,\)"):
        jax.eval_shape(append_ground_truth, candidates[1:], assignment, boxes, valid)


def test_no_slots_and_no_crowd_are_as_empty_ones():
    candidates, usable = jnp.array([[0.0, 0, 4, 4], [8, 8, 12, 12]]), jnp.array([True, False])
    assign = jitted(**RPN)
    found = assign(candidates, usable, jnp.zeros((0, 4)), jnp.zeros(0, bool))
    np.testing.assert_array_equal(found.labels, [NEGATIVE, IGNORE])
    np.testing.assert_array_equal(found.overlaps, [0, -1])
    slots = jnp.zeros((3, 4)), jnp.zeros(3, bool)
    padded = assign(candidates, usable, *slots, slots[1])
    jax.tree.map(np.testing.assert_array_equal, found, padded)
    jax.tree.map(np.testing.assert_array_equal, padded, assign(candidates, usable, *slots))


@pytest.mark.parametrize("kind", ["match_low_quality", "match_all_ties", "reassign_low_quality"])
def test_ground_truth_in_blocks_is_assigned_as_all_at_once(monkeypatch, kind):
    rng = np.random.default_rng(0)
    # Of few places and sizes: equal overlaps, within a block and between blocks.
    corners = rng.integers(0, 5, (21 + 90, 2)) * 8.0
    boxes = np.concatenate([corners, corners + rng.integers(1, 4, (len(corners), 2)) * 8.0], axis=1)
    truth, candidates = np.split(boxes.astype(np.float32), [21])
    truth[5] = np.nan  # Of a slot that is not valid.
    arrays = map(jnp.asarray, (candidates, np.arange(90) != 7, truth, np.arange(21) % 5 != 0))
    settings = dict(positive_iou=0.6, negative_iou=0.3, min_positive_iou=0.2)
    run = partial(assign_by_iou, *arrays, **settings, **{kind: False})
    expected = run()
    monkeypatch.setattr("jaxdet.ops.assignment._MAX_OVERLAPS", 8 * 90)
    found = run()
    assert "scan" in str(jax.make_jaxpr(run)())
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert len(set(np.unique(found.labels))) == 3
