from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import box_losses, losses
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.box_losses import BOX_LOSS_KINDS, box_regression, diou_loss, giou_loss, iou_loss

COUNT = 10
STDS = (0.1, 0.1, 0.2, 0.2)


@cache
def fast(function, **settings):
    """Compiled as one, with results of NumPy: op by op, dozens of small programs would be."""
    compiled = jax.jit(partial(function, **settings))
    return lambda *arrays: jax.device_get(compiled(*arrays))


def test_giou_loss_equals_the_reference(golden):
    data = golden("mmdet_losses")
    values = fast(giou_loss)(data["giou/pred"], data["giou/target"])
    np.testing.assert_allclose(values, data["giou/none"], rtol=1e-5, atol=1e-6)
    values = values * data["giou/weight"]
    average = fast(losses.masked_sum)(values, np.ones(len(values), bool)) / data["giou/avg_factor"]
    np.testing.assert_allclose(average, data["giou/loss_avg"], rtol=1e-5)
    # A weight for each coordinate is one for the box: the reference averages the four.
    np.testing.assert_allclose(average, data["giou/loss_avg_w4"], rtol=1e-5)


def yolox_boxes(data):
    return [fast(box_ops.cxcywh_to_xyxy)(data[key]) for key in ("pred", "target")]


@pytest.mark.parametrize("name", ["yolox_iouloss", "yolox_iouloss_v01"])
def test_the_squared_iou_loss_and_overlaps_equal_yolox(golden, name):
    data = golden(name)
    predictions, targets = yolox_boxes(data)
    values = fast(iou_loss, form="square")(predictions, targets)
    np.testing.assert_allclose(values, data["iou_none"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values.mean(), data["iou_mean"], rtol=1e-5)
    np.testing.assert_allclose(values.sum(), data["iou_sum"], rtol=1e-5)
    expected = data["bboxes_iou_cxcywh"]
    overlaps = fast(box_ops.pairwise_iou)(predictions, targets)[:, : expected.shape[1]]
    np.testing.assert_allclose(overlaps, expected, rtol=1e-5, atol=1e-6)


def test_the_giou_loss_equals_yolox_but_for_what_its_first_version_subtracts(golden):
    data, first = golden("yolox_iouloss"), golden("yolox_iouloss_v01")
    values = fast(giou_loss)(*yolox_boxes(data))
    np.testing.assert_allclose(values, data["giou_none"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values.mean(), data["giou_mean"], rtol=1e-5)
    np.testing.assert_allclose(values.sum(), data["giou_sum"], rtol=1e-5)
    # Version 0.1 takes the intersection from the hull where the union belongs.
    a, b = yolox_boxes(first)
    hull = np.prod(np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2]), axis=1)
    overlap = fast(box_ops.iou)(a, b)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = union / (1 + overlap)
    ours = fast(giou_loss)(a, b)
    theirs = ours + union * (1 - overlap) / hull
    np.testing.assert_allclose(theirs, first["giou_none"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(theirs.mean(), first["giou_mean"], rtol=1e-5)
    np.testing.assert_allclose(theirs.sum(), first["giou_sum"], rtol=1e-5)
    assert (theirs > ours + 1e-3).any()


def test_losses_of_boxes_by_hand():
    # 4 of 16 + 16 - 4 = 28 shared; the hull has 36, its diagonal 72, the centres are 8 apart.
    a, b = np.int32([0, 0, 4, 4]), np.int32([2, 2, 6, 6])
    overlap = 1 / 7
    expected = {
        "linear": 1 - overlap,
        "log": -np.log(overlap),
        "square": 1 - overlap**2,
    }
    for form, value in expected.items():
        np.testing.assert_allclose(fast(iou_loss, form=form)(a, b), value, rtol=1e-6)
    np.testing.assert_allclose(fast(giou_loss)(a, b), 1 - overlap + 8 / 36, rtol=1e-6)
    np.testing.assert_allclose(fast(diou_loss)(a, b), 1 - overlap + 8 / 72, rtol=1e-6)


def test_boxes_apart_cost_most_and_only_giou_and_diou_draw_them_together():
    a, b = np.float32([0, 0, 1, 1]), np.float32([5, 5, 6, 6])
    kinds = [partial(iou_loss, form=form) for form in box_losses.IOU_FORMS]
    kinds += [giou_loss, diou_loss]
    slopes = fast(lambda a, b: [jax.value_and_grad(kind)(a, b) for kind in kinds])(a, b)
    for form, (value, slope) in zip(box_losses.IOU_FORMS, slopes[:-2], strict=True):
        if form == "log":
            np.testing.assert_allclose(value, -np.log(1e-6), rtol=1e-6)
        else:
            assert value == 1
        np.testing.assert_array_equal(slope, np.zeros(4))
    for value, slope in slopes[-2:]:
        assert value > 1
        assert (slope[2:] < 0).all()  # Growing the far corner helps.


def slow_box_loss(anchor, delta, target, kind, beta):
    """One box in float64."""

    def centre(box):
        return (box[:2] + box[2:]) / 2

    sides = anchor[2:] - anchor[:2]
    if "l1" in kind:
        shift = (centre(target) - centre(anchor)) / sides
        growth = np.log((target[2:] - target[:2]) / sides)
        gap = np.abs(delta - np.concatenate([shift, growth]) / STDS)
        return (
            gap.sum()
            if kind == "l1"
            else sum(0.5 * g * g / beta if g < beta else g - beta / 2 for g in gap)
        )
    delta = delta * STDS
    middle, sides = centre(anchor) + delta[:2] * sides, sides * np.exp(delta[2:])
    box = np.concatenate([middle - sides / 2, middle + sides / 2])
    low, high = np.maximum(box[:2], target[:2]), np.minimum(box[2:], target[2:])
    shared = np.prod(np.maximum(high - low, 0))
    union = np.prod(box[2:] - box[:2]) + np.prod(target[2:] - target[:2]) - shared
    hull = np.maximum(box[2:], target[2:]) - np.minimum(box[:2], target[:2])
    loss = 1 - shared / union
    if kind == "giou":
        loss += 1 - union / np.prod(hull)
    if kind == "diou":
        loss += np.sum((centre(box) - centre(target)) ** 2) / np.sum(hull**2)
    return loss


@pytest.fixture(scope="module")
def jitted():
    """All kinds of box loss, by name, and the gradients of their sums."""

    def all_kinds(anchors, deltas, targets):
        return {
            kind: box_regression(anchors, deltas, targets, kind=kind, beta=0.7, stds=STDS)
            for kind in BOX_LOSS_KINDS
        }

    def total(*arrays):
        return sum(jnp.sum(values) for values in all_kinds(*arrays).values())

    return jax.jit(lambda *a: (all_kinds(*a), jax.grad(total, argnums=(0, 1, 2))(*a)))


def random_boxes(rng):
    low = rng.uniform(0, 40, (COUNT, 2))
    return np.concatenate([low, low + rng.uniform(2, 40, low.shape)], axis=1).astype(np.float32)


@given(st.integers(0, 2**32 - 1))
def test_box_losses_equal_plain_loops(jitted, seed):
    rng = np.random.default_rng(seed)
    anchors, targets = random_boxes(rng), random_boxes(rng)
    deltas = (rng.normal(size=(COUNT, 4)) * 2).astype(np.float32)
    found, (to_anchors, _, to_targets) = jitted(anchors, deltas, targets)
    for kind in BOX_LOSS_KINDS:
        expected = [
            slow_box_loss(*(box.astype(np.float64) for box in boxes), kind, 0.7)
            for boxes in zip(anchors, deltas, targets, strict=True)
        ]
        np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=1e-4, err_msg=kind)
    assert not to_anchors.any() and not to_targets.any()


@pytest.mark.parametrize(
    "anchor, target",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # Padding.
        ([0, 0, 0, 0], [3, 4, 30, 40]),
        ([3, 4, 30, 40], [0, 0, 0, 0]),
        ([3, 4, 30, 40], [3, 4, 30, 40]),  # Equal.
        ([3, 4, 30, 40], [9, 4, 9, 40]),  # Empty.
        ([3, 4, 30, 40], [900, 4, 1000, 40]),  # Apart.
    ],
)
def test_losses_and_gradients_of_padded_empty_and_equal_boxes_are_finite(jitted, anchor, target):
    anchors, targets = (np.tile(np.float32(box), (COUNT, 1)) for box in (anchor, target))
    deltas = np.zeros((COUNT, 4), np.float32)
    deltas[1:3] = [[99, -99, 99, -99], [1e4, 1e4, -1e4, -1e4]]
    found, (_, gradient, _) = jitted(anchors, deltas, targets)
    assert all(np.isfinite(values).all() for values in found.values())
    assert np.isfinite(gradient).all()


def test_a_right_delta_costs_nothing_and_bfloat16_comes_out_as_float32(jitted):
    anchors = random_boxes(np.random.default_rng(0))
    found, _ = jitted(anchors, np.zeros((COUNT, 4), np.float32), anchors)
    for kind, values in found.items():
        np.testing.assert_allclose(values, 0, atol=1e-5, err_msg=kind)
    half = anchors.astype(jnp.bfloat16)
    values = fast(box_regression, kind="giou")(half, np.zeros_like(half), half)
    assert values.dtype == jnp.float32


def test_anchors_go_with_many_deltas_by_broadcasting():
    anchors, targets = (
        random_boxes(np.random.default_rng(1)),
        random_boxes(np.random.default_rng(2)),
    )
    deltas = np.zeros((3, COUNT, 4), np.float32)
    many = fast(box_regression, kind="iou")(anchors, deltas, targets)
    one = fast(box_regression, kind="iou")(anchors, deltas[0], targets)
    np.testing.assert_allclose(many, np.tile(one, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: iou_loss(b, b, form="cubic"), "form must be one of linear, log, square, got 'c"),
        (lambda b: iou_loss(b, b[:, :3]), "targets wants the shape"),
        (lambda b: giou_loss(b, b[:2]), "targets wants the shape"),
        (lambda b: diou_loss(b[:, :2], b), "predictions wants the shape"),
        (lambda b: box_regression(b, b, b, kind="ciou"), "kind must be one of l1, smooth_l1, iou"),
        (lambda b: box_regression(b, b, b, kind="smooth_l1", beta=0), "beta must be positive"),
        (lambda b: box_regression(b, b[:2], b), "deltas wants the shape"),
    ],
)
def test_impossible_inputs_raise_while_tracing(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, jnp.zeros((3, 4)))
