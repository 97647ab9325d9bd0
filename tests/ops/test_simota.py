import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import GridPoints, grid_points
from jaxdet.ops.box_coder import encode_grid
from jaxdet.ops.box_losses import iou_loss
from jaxdet.ops.losses import global_count, l1, masked_sum, sigmoid_cross_entropy
from jaxdet.ops.simota import _largest, _largest_in_turn, assign_simota, simota_costs

# The first rule is the default; the later code of the reference looks near centres only.
MASTER = dict(centre_radius=1.5, inside_boxes=False, penalty=1e6)
RULES = {"yolox_simota_v01": {}, "yolox_simota": MASTER}
NUM_SLOTS, NUM_CLASSES = 120, 3
SIZES, STRIDES = [(6, 9), (3, 4)], [8, 16]
GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -5)


@functools.cache
def jitted(**settings):
    """Costs and assignment of one image, compiled as one: both see the same numbers."""
    return jax.jit(
        lambda *arrays: (
            simota_costs(*arrays, **settings),
            assign_simota(*arrays, **settings),
        )
    )


def golden_images(data):
    """(points, predictions, class logits, objectness, boxes, labels, valid), stacked."""
    strides = data["strides"].tolist()
    points = grid_points([tuple((data["image_hw"] // s).tolist()) for s in strides], strides)
    outputs, labels = jnp.asarray(data["outputs_decoded"]), data["labels"]
    valid = np.arange(labels.shape[1]) < data["num_gt"][:, None]
    return points, (
        box_ops.cxcywh_to_xyxy(outputs[..., :4]),
        outputs[..., 5:],
        outputs[..., 4],
        # Garbage stands where the reference has zeros.
        np.where(valid[..., None], box_ops.cxcywh_to_xyxy(jnp.asarray(labels[..., 1:])), np.nan),
        np.where(valid, labels[..., 0], -7).astype(np.int32),
        valid,
    )


@pytest.mark.parametrize("name", RULES)
def test_assignment_equals_the_reference(golden, name):
    data = golden(name)
    points, images = golden_images(data)
    for i, num_objects in enumerate(data["num_gt"]):
        image = [np.asarray(array)[i] for array in images]
        costs, found = jax.device_get(jitted(**RULES[name])(points, *image))
        positive, index = np.asarray(found.positive), np.asarray(found.index)
        np.testing.assert_array_equal(positive, data[f"img{i}/fg_mask"])
        assert positive.sum() == data[f"img{i}/num_fg"]
        np.testing.assert_array_equal(
            np.where(positive, index, -1), data[f"img{i}/matched_gt_full"]
        )
        np.testing.assert_array_equal(index[positive], data[f"img{i}/matched_gt_inds"])
        classes = image[4][index[positive]]
        np.testing.assert_array_equal(classes, data[f"img{i}/matched_classes"])
        np.testing.assert_allclose(
            found.overlaps[positive], data[f"img{i}/pred_ious"], rtol=1e-5, atol=1e-6
        )
        assert not index[~positive].any() and not np.asarray(found.overlaps)[~positive].any()
        if f"img{i}/cost" not in data:
            assert num_objects == 0 and np.isinf(costs.costs).all()
            continue
        candidates = data[f"img{i}/geo_anchor_filter"]
        real = np.asarray(costs.costs)[:num_objects]
        assert np.isinf(real[:, ~candidates]).all() and np.isinf(costs.costs[num_objects:]).all()
        np.testing.assert_allclose(real[:, candidates], data[f"img{i}/cost"], rtol=1e-5)
        penalty = RULES[name].get("penalty", 1e5)
        np.testing.assert_array_equal(real[:, candidates] < penalty, data[f"img{i}/geo_relation"])
        np.testing.assert_allclose(
            np.asarray(costs.overlaps)[:num_objects, candidates],
            data[f"img{i}/pairwise_iou"],
            rtol=1e-5,
            atol=1e-6,
        )
        np.testing.assert_array_equal(costs.counts[:num_objects], data[f"img{i}/dynamic_k"])
        assert not costs.counts[num_objects:].any()


def yolox_losses(outputs, raw, points, objects, settings):
    """The reference's loss terms of a batch, on the assignment of each of its images."""
    boxes, labels, valid = objects

    def image_sums(outputs, raw, boxes, labels, valid):
        predictions = box_ops.cxcywh_to_xyxy(outputs[:, :4])
        logits, objectness = outputs[:, 5:], outputs[:, 4]
        found = assign_simota(
            points, predictions, logits, objectness, boxes, labels, valid, **settings
        )
        matched = jnp.where(found.positive[:, None], boxes[found.index], 0.0)
        classes = jax.nn.one_hot(labels[found.index], logits.shape[1]) * found.overlaps[:, None]
        near = jnp.where(found.positive[:, None], predictions, 0.0)
        return {
            "iou_x5": 5 * masked_sum(iou_loss(near, matched, form="square"), found.positive),
            "obj": jnp.sum(sigmoid_cross_entropy(objectness, found.positive)),
            "cls": masked_sum(sigmoid_cross_entropy(logits, classes), found.positive),
            "l1": masked_sum(l1(raw, encode_grid(points, matched)), found.positive),
            "count": jnp.sum(found.positive),
        }

    sums = jax.vmap(image_sums)(outputs, raw, boxes, labels, valid)
    sums = jax.tree.map(jnp.sum, sums)
    count = sums.pop("count")
    terms = {key: value / global_count(count) for key, value in sums.items()}
    return terms, count / jnp.maximum(jnp.sum(valid), 1)


@pytest.mark.parametrize("name", RULES)
def test_losses_and_gradients_on_the_assignment_equal_the_reference(golden, name):
    data = golden(name)
    points, images = golden_images(data)
    objects = tuple(map(jnp.asarray, images[3:]))

    def total(outputs):
        terms, ratio = yolox_losses(
            outputs, jnp.asarray(data["origin_preds"]), points, objects, RULES[name]
        )
        return terms["iou_x5"] + terms["obj"] + terms["cls"], (terms, ratio)

    slope = jax.jit(jax.value_and_grad(total, has_aux=True))
    (without, (terms, ratio)), gradient = slope(jnp.asarray(data["outputs_decoded"]))
    for case in ("loss_l10", "loss_l11"):
        for term in ("iou_x5", "obj", "cls"):
            np.testing.assert_allclose(terms[term], data[f"{case}/{term}"], rtol=1e-5)
        np.testing.assert_allclose(ratio, data[f"{case}/num_fg_over_gts"], rtol=1e-6)
    assert data["loss_l10/l1"] == 0
    np.testing.assert_allclose(terms["l1"], data["loss_l11/l1"], rtol=1e-5)
    np.testing.assert_allclose(without, data["loss_l10/total"], rtol=1e-5)
    np.testing.assert_allclose(without + terms["l1"], data["loss_l11/total"], rtol=1e-5)
    np.testing.assert_allclose(gradient, data["loss_l10/grad_outputs"], rtol=1e-5, atol=1e-6)


def slow_costs(points, predictions, logits, objectness, boxes, labels, settings):
    """The reference's costs of real objects, in float64 and object by object."""
    rule = dict(centre_radius=2.5, inside_boxes=True, penalty=1e5) | settings
    (x, y), strides = points.centres.T, points.strides
    near, inside = (np.zeros((len(boxes), len(x)), bool) for _ in range(2))
    pays, overlaps = (np.zeros((len(boxes), len(x))) for _ in range(2))
    chance = np.sqrt(1 / (1 + np.exp(-logits)) / (1 + np.exp(-objectness))[:, None])
    areas = np.prod(predictions[:, 2:] - predictions[:, :2], axis=1)
    for g, (x1, y1, x2, y2) in enumerate(boxes):
        far = rule["centre_radius"] * strides
        near[g] = (abs(x - (x1 + x2) / 2) < far) & (abs(y - (y1 + y2) / 2) < far)
        inside[g] = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        wide = np.minimum(predictions[:, 2], x2) - np.maximum(predictions[:, 0], x1)
        tall = np.minimum(predictions[:, 3], y2) - np.maximum(predictions[:, 1], y1)
        shared = np.maximum(wide, 0) * np.maximum(tall, 0)
        overlaps[g] = shared / (areas + (x2 - x1) * (y2 - y1) - shared)
        right = np.arange(logits.shape[1]) == labels[g]
        entropy = -np.log(np.where(right, chance, 1 - chance)).sum(axis=1)
        pays[g] = entropy - 3 * np.log(overlaps[g] + 1e-8)
    inside = inside if rule["inside_boxes"] else near
    candidates = (near | inside).any(axis=0)
    pays = np.where(near & inside, pays, pays + rule["penalty"])
    return np.where(candidates, pays, np.inf), np.where(candidates, overlaps, 0)


def slow_match(costs, overlaps, num_candidates=10):
    """The reference's matching on given costs, in a loop over objects; ties go by index."""
    candidates = np.flatnonzero(np.isfinite(costs).all(axis=0))
    taken, counts = np.zeros(costs.shape, bool), []
    for cost, overlap in zip(costs[:, candidates], overlaps[:, candidates], strict=True):
        wanted = max(int(np.sort(overlap)[::-1][:num_candidates].sum()), 1)
        taken[len(counts), candidates[np.argsort(cost, kind="stable")[:wanted]]] = True
        counts.append(wanted if len(candidates) else 0)
    for n in np.flatnonzero(taken.sum(axis=0) > 1):
        taken[:, n] = np.arange(len(costs)) == costs[:, n].argmin()
    return taken, counts


def random_problem(seed, num_objects, twins=False, far=False):
    """One image; its real objects stand in any slots, and garbage in the others."""
    rng = np.random.default_rng(seed)
    points = grid_points(SIZES, STRIDES)
    centres, strides = np.array(points.centres), np.array(points.strides)
    count = len(strides)
    predictions = centres[:, None] + rng.normal(size=(count, 1, 2)) * 4
    sides = np.exp(rng.normal(size=(count, 2))) * strides[:, None]
    predictions = np.concatenate([predictions[:, 0] - sides / 2, predictions[:, 0] + sides / 2], 1)
    logits, objectness = rng.normal(size=(count, NUM_CLASSES)) * 3, rng.normal(size=count) * 3
    # Whole pixels: centres meet the borders exactly, in float32 as in float64.
    low = rng.integers(-8, 64, (NUM_SLOTS, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 40, low.shape)], axis=1)
    labels = rng.integers(0, NUM_CLASSES, NUM_SLOTS).astype(np.int32)
    if far:
        boxes[rng.random(NUM_SLOTS) < 0.7] += 1000
    if twins:  # The same anchor and the same object several times.
        copies = rng.integers(0, count // 3, count)
        centres, strides, predictions, logits, objectness = (
            array[copies] for array in (centres, strides, predictions, logits, objectness)
        )
        copies = rng.integers(0, max(num_objects // 3, 1), NUM_SLOTS)
        boxes, labels = boxes[copies], labels[copies]
    valid = np.zeros(NUM_SLOTS, bool)
    slots = np.sort(rng.permutation(NUM_SLOTS)[:num_objects])
    valid[slots] = True
    trash = rng.choice(GARBAGE, boxes.shape)
    trash[slots] = boxes[: len(slots)]
    all_labels = np.full(NUM_SLOTS, -(10**6), np.int32)
    all_labels[slots] = labels[: len(slots)]
    floats = (array.astype(np.float32) for array in (predictions, logits, objectness, trash))
    predictions, logits, objectness, boxes = floats
    return (
        GridPoints(centres, strides), predictions, logits, objectness, boxes, all_labels, valid
    )  # fmt: skip


@pytest.mark.parametrize("settings", RULES.values(), ids=["first", "master"])
@given(st.integers(0, 2**32 - 1), st.integers(0, NUM_SLOTS), st.booleans(), st.booleans())
def test_assignment_equals_plain_loops_whatever_the_padding_holds(
    settings, seed, num_objects, twins, far
):
    problem = random_problem(seed, num_objects, twins, far)
    found, assignment = jax.device_get(jitted(**settings)(*problem))
    slots = np.flatnonzero(problem[-1])
    real = [array.astype(np.float64) for array in problem[1:4]]
    objects = problem[4][slots].astype(np.float64), problem[5][slots]
    costs, overlaps = slow_costs(problem[0], *real, *objects, settings)
    found_costs, found_overlaps = (np.asarray(array)[slots] for array in found[:2])
    np.testing.assert_array_equal(np.isinf(found_costs), np.isinf(costs))
    finite = np.isfinite(costs)
    penalty = settings.get("penalty", 1e5)
    coarse = np.where(costs[finite] < penalty, 0, np.spacing(np.float32(penalty)))
    gap = np.abs(found_costs[finite] - costs[finite])
    assert (gap <= 1e-4 + coarse).all()
    np.testing.assert_allclose(found_overlaps, overlaps, rtol=1e-4, atol=1e-6)
    assert np.isinf(np.delete(found.costs, slots, axis=0)).all()

    taken, counts = slow_match(found_costs, found_overlaps)
    np.testing.assert_array_equal(np.asarray(found.counts)[slots], counts)
    positive = taken.any(axis=0)
    np.testing.assert_array_equal(assignment.positive, positive)
    if not positive.any():
        assert not assignment.index.any() and not assignment.overlaps.any()
        return
    owner = taken.argmax(axis=0)
    np.testing.assert_array_equal(assignment.index, np.where(positive, slots[owner], 0))
    own = np.where(positive, found_overlaps[owner, np.arange(len(owner))], 0)
    np.testing.assert_array_equal(assignment.overlaps, own)
    if twins:  # Of equal objects only the first ever learns: their costs are equal bit for bit.
        rows = np.concatenate([objects[0], objects[1][:, None]], axis=1)
        assert all((rows[g] != rows[:g]).any(axis=1).all() for g in owner[positive])


CELLS = GridPoints(np.float32([[4, 4], [12, 4], [20, 4]]), np.float32([8, 8, 8]))
FULL = np.float32([[0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])  # The box of each cell.


def match_cells(predictions, boxes, labels=(0, 0, 0), logits=((0, 0),) * 3, **settings):
    """The assignment of three cells to up to three objects; NaN in the slots left over."""
    valid, slots = np.arange(3) < len(boxes), np.full((3, 4), np.nan, np.float32)
    slots[: len(boxes)] = np.reshape(boxes, (-1, 4))
    arrays = (*map(np.float32, (predictions, logits, np.zeros(3))), slots, np.int32(labels), valid)
    return jax.device_get(jitted(**settings)(CELLS, *arrays)[1])


def test_costs_worked_by_hand():
    logits = np.float32([[0, 0], [0, np.log(3)], [0, 0]])
    objectness = np.float32([0, np.log(3), 0])
    objects = np.float32([[0, 0, 16, 8]]), np.int32([1]), np.ones(1, bool)
    arrays = (CELLS, FULL, logits, objectness, *objects)
    found, _ = jax.device_get(jitted(centre_radius=1.0)(*arrays))
    # Probabilities 1/2 of both classes, then sqrt(3/8) and 3/4.
    first = -np.log(0.5) - np.log(0.5) - 3 * np.log(0.5)
    second = -np.log(0.75) - np.log(1 - np.sqrt(0.375)) - 3 * np.log(0.5)
    np.testing.assert_allclose(found.costs, [[first, second, np.inf]], rtol=1e-6)
    np.testing.assert_array_equal(found.overlaps, [[0.5, 0.5, 0]])
    np.testing.assert_array_equal(found.counts, [1])
    # Half a stride away is not within half a stride: in the box, but not near its centre.
    narrow, _ = jax.device_get(jitted(centre_radius=0.5, penalty=64.0, iou_weight=0.0)(*arrays))
    first = -np.log(0.5) - np.log(0.5)
    np.testing.assert_allclose(narrow.costs[0, 0], 64 + first, rtol=1e-6)
    nothing, _ = jax.device_get(jitted(**(MASTER | dict(centre_radius=0.5)))(*arrays))
    assert np.isinf(nothing.costs).all() and nothing.counts == 0


def test_an_object_takes_as_many_anchors_as_its_overlaps_sum_to():
    # IoU 1, 1 and 1 with the object: all three; with 1, .5 and .4 only the best.
    whole = [[0, 0, 24, 8]]
    assert match_cells(np.tile(whole, (3, 1)), whole).positive.all()
    found = match_cells([[0, 0, 24, 4], [0, 0, 24, 8], [0, 0, 24, 3.2]], whole)
    np.testing.assert_array_equal(found.positive, [False, True, False])
    np.testing.assert_array_equal(found.overlaps, [0, 1, 0])
    found = match_cells(np.tile(whole, (3, 1)), whole, num_candidates=2)
    np.testing.assert_array_equal(found.positive, [True, True, False])  # Ties go by index.


def test_an_anchor_that_several_take_goes_to_the_cheapest_of_all_objects_taker_or_not():
    predictions = [[0, 0, 14.4, 8], [3.2, 0, 16, 8], [100, 0, 108, 8]]
    # IoU .9 and .8 with the first two predictions: takes the first alone.
    wide = [0, 0, 16, 8]
    # IoU .45 and .6875: takes the second, which overlaps the wide object more.
    narrow = [7.2, 0, 16, 8]
    found = match_cells(predictions, [narrow, wide])
    np.testing.assert_array_equal(found.positive, [True, True, False])
    np.testing.assert_array_equal(found.index, [1, 0, 0])
    np.testing.assert_allclose(found.overlaps, [0.9, 0.6875, 0], rtol=1e-6)
    # Two takers have to share it: then all objects are asked.
    found = match_cells(predictions, [narrow, narrow, wide])
    np.testing.assert_array_equal(found.index, [2, 2, 0])
    np.testing.assert_allclose(found.overlaps, [0.9, 0.8, 0], rtol=1e-6)


def test_an_object_that_covers_no_anchor_matches_nothing_or_what_others_leave():
    lonely = [[100, 100, 120, 120]]
    assert not match_cells(FULL, lonely).positive.any()
    # Beside an object that has candidates it takes the cheapest of those, as in the reference.
    found = match_cells(FULL, [FULL[0], *lonely], centre_radius=1.5)
    np.testing.assert_array_equal(found.positive, [True, False, False])
    logits = [[0, 0], [5, -5], [0, 0]]
    found = match_cells(FULL, [FULL[0], *lonely], logits=logits, centre_radius=1.5)
    np.testing.assert_array_equal(found.index, [0, 1, 0])
    np.testing.assert_array_equal(found.positive, [True, True, False])


def test_wild_logits_give_finite_costs():
    objects = FULL[:1], np.int32([0]), np.ones(1, bool)
    for sign in (-1, 1):
        logits = sign * np.full((3, 2), 1e4, np.float32)
        arrays = CELLS, FULL, logits, logits[:, 0], *objects
        costs, _ = jax.device_get(jitted(centre_radius=1.0)(*arrays))
        # One of the two classes is as wrong as can be: 100, as the reference clamps its logs.
        np.testing.assert_allclose(costs.costs[0, 0], 100, rtol=1e-6)


def test_labels_outside_the_classes_are_clipped_into_them():
    logits = np.float32([[3, -3], [-3, 3], [1, 0]])
    objects, valid = np.tile(np.float32([0, 0, 24, 8]), (3, 1)), np.ones(3, bool)
    arrays = CELLS, FULL, logits, np.zeros(3, np.float32), objects
    clipped, wild = (
        jax.device_get(jitted()(*arrays, np.int32(labels), valid)[0])
        for labels in ([0, 1, 1], [-1, 2, 99])
    )
    assert clipped.costs[0, 0] < clipped.costs[1, 0] < np.inf
    np.testing.assert_array_equal(wild.costs, clipped.costs)


def test_no_slots_are_as_empty_ones():
    arrays = CELLS, *map(jnp.asarray, (FULL, np.zeros((3, 2), np.float32), np.zeros(3)))
    slots = jnp.zeros((0, 4)), jnp.zeros(0, int), jnp.zeros(0, bool)
    found = jax.jit(assign_simota)(*arrays, *slots)
    jax.tree.map(np.testing.assert_array_equal, found, match_cells(FULL, []))
    assert not found.positive.any()


def test_one_program_serves_every_number_of_objects_and_never_leaves_the_device():
    # Of its own: jit shares the programs of one function.
    assign = jax.jit(lambda *arrays: assign_simota(*arrays))
    for num_objects in (0, 1, 37, NUM_SLOTS):
        assign(*random_problem(num_objects, num_objects))
    assert assign._cache_size() == 1
    program = str(jax.make_jaxpr(assign_simota)(*random_problem(0, 3)))
    assert "top_k" in program
    assert not any(word in program for word in ("callback", "infeed", "outfeed", "while"))


def test_no_gradient_flows_through_costs_or_assignment():
    problem = random_problem(0, 30)
    floats = problem[1:5]  # Garbage in padded slots among them.

    def total(*floats):
        costs, found = jitted()(problem[0], *floats, *problem[5:])
        return jnp.sum(jnp.where(jnp.isfinite(costs.costs), costs.costs, 0)) + found.overlaps.sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(*floats)
    assert value > 0
    for gradient in jax.device_get(gradients):
        assert not gradient.any()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(centre_radius=-1.0), "centre_radius must be at least 0, got -1.0"),
        (dict(penalty=float("nan")), "penalty must be at least 0, got nan"),
        (dict(iou_weight=-3.0), "iou_weight must be at least 0, got -3.0"),
        (dict(num_candidates=0), "num_candidates must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("op", [simota_costs, assign_simota])
def test_impossible_settings_raise_while_tracing(op, settings, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(op, **settings), *random_problem(0, 2))


def test_wrong_shapes_raise_while_tracing():
    points, *arrays = random_problem(0, 2)
    few = GridPoints(points.centres[1:], points.strides)
    with pytest.raises(ValueError, match=r"66 predictions, but .* \(65, 2\) and strides of \(66,"):
        jax.eval_shape(assign_simota, few, *arrays)
    with pytest.raises(ValueError, match=r"objectness wants the shape \(N\), found \(65,\)"):
        jax.eval_shape(assign_simota, points, *arrays[:2], arrays[2][1:], *arrays[3:])


@given(
    st.lists(st.sampled_from([-np.inf, -2.5, 0.0, 0.5, 1e5, np.inf]), min_size=5, max_size=12),
    st.integers(1, 5),
)
@example([0.5, -np.inf, -np.inf, -np.inf, 0.0], 5)  # What is left is as low as can be.
def test_the_largest_in_turn_are_those_of_a_sort(row, count):
    rows = jnp.array([row, row[::-1]], jnp.float32)
    for found, wanted in zip(
        _largest_in_turn(rows, count), jax.lax.top_k(rows, count), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype


def test_a_tpu_sorts_no_rows_of_anchors():
    traced = jax.jit(partial(_largest, count=10)).trace(jnp.zeros((3, 77)))
    for platform, sorts in (("cpu", True), ("tpu", False), ("cuda", True)):
        assert ("top_k" in traced.lower(lowering_platforms=(platform,)).as_text()) == sorts
