import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.assignment import POSITIVE, assign_by_iou

COUNT = 12  # One padded shape, so that random inputs compile once.
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
OVERLAPS = ["iou", "iof", "giou", "diou"]


@functools.cache
def jitted(name):
    return jax.jit(getattr(box_ops, name))


def slow_overlaps(a, b):
    """IoU, IoF, GIoU and DIoU of two boxes in double precision."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.astype(float), b.astype(float)
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    area_a, area_b = (
        max(p, 0) * max(q, 0) for p, q in ((ax2 - ax1, ay2 - ay1), (bx2 - bx1, by2 - by1))
    )
    union = max(area_a + area_b - shared, 1e-6)
    width, height = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    hull = max(max(width, 0) * max(height, 0), 1e-6)
    distance = np.hypot((ax1 + ax2) / 2 - (bx1 + bx2) / 2, (ay1 + ay2) / 2 - (by1 + by2) / 2)
    return {
        "iou": shared / union,
        "iof": shared / max(area_a, 1e-6),
        "giou": shared / union - (hull - union) / hull,
        "diou": shared / union - distance**2 / max(width**2 + height**2, 1e-6),
    }  # fmt: skip


def random_boxes(seed, count=COUNT, limit=100.0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, limit, (count, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def awkward_boxes(seed, num_real):
    """Two sets with empty, touching, contained, equal and inverted boxes, then garbage."""
    rng = np.random.default_rng(seed)
    a, b = random_boxes(seed), random_boxes(seed + 1)
    b[:3] = a[:3]
    b[3] = a[3, [2, 1, 2, 3]]  # Empty, at the edge.
    b[4, :2], b[4, 2:] = a[4, :2] + 1e-3, a[4, 2:] - 1e-3
    a[5], b[6] = a[5, [2, 3, 0, 1]], 7.0
    a, b = a[rng.permutation(COUNT)], b[rng.permutation(COUNT)]
    a[num_real:], b[num_real:] = rng.choice(GARBAGE, (2, COUNT - num_real, 4))
    return a, b


@pytest.mark.parametrize("name", ["iou", "iof", "giou"])
def test_overlaps_equal_the_reference(golden, name):
    data = golden("mmdet_bbox_overlaps")
    pairs = jitted(f"pairwise_{name}")(data["a"], data["b"])
    np.testing.assert_allclose(pairs, data[name], rtol=1e-5, atol=1e-6)
    aligned = jitted(name)(data["a_aligned"], data["b_aligned"])
    np.testing.assert_allclose(aligned, data[f"{name}_aligned"], rtol=1e-5, atol=1e-6)
    nothing = jitted(f"pairwise_{name}")(data["a"], np.zeros((0, 4), np.float32))
    assert nothing.shape == tuple(data["iou_empty_shape"])


def test_iou_equals_that_of_simple_faster_rcnn(golden):
    data = golden("sfrcnn_bbox")
    a, c = (data[key][:, [1, 0, 3, 2]] for key in ("a", "c"))  # Theirs are yxyx.
    np.testing.assert_allclose(jitted("pairwise_iou")(a, c), data["iou"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        # They share 2 square pixels of 18; the hull is 5 x 4, the centres are 2 and 1 apart.
        ([0, 0, 2, 2], [1, 0, 5, 4], (2 / 18, 2 / 4, 2 / 18 - 2 / 20, 2 / 18 - 5 / 41)),
        ([0, 0, 2, 2], [0, 0, 2, 2], (1, 1, 1, 1)),  # Equal.
        ([0, 0, 2, 2], [2, 0, 4, 2], (0, 0, 0, -4 / 20)),  # Touching.
        ([0, 0, 1, 1], [9, 0, 10, 1], (0, 0, -0.8, -81 / 101)),  # Apart.
        ([0, 0, 4, 4], [1, 1, 3, 3], (0.25, 0.25, 0.25, 0.25)),  # Contained, one centre.
        ([3, 3, 3, 3], [3, 3, 3, 3], (0, 0, 0, 0)),  # Empty and equal.
        ([0, 0, 4, 4], [2, 2, 2, 2], (0, 0, 0, 0)),  # Empty, inside.
    ],
)
def test_overlaps_of_boxes_worked_by_hand(a, b, expected):
    found = [float(jitted(name)(jnp.array(a), jnp.array(b))) for name in OVERLAPS]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OVERLAPS)
@given(st.integers(0, 2**32 - 2), st.integers(0, COUNT))
def test_overlaps_equal_a_loop_whatever_the_padding_holds(name, seed, num_real):
    a, b = awkward_boxes(seed, num_real)
    together = np.asarray(jitted(name)(a, b))[:num_real]
    expected = [slow_overlaps(p, q)[name] for p, q in zip(a[:num_real], b[:num_real], strict=True)]
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)
    if name != "diou":  # It has no pairwise form.
        pairs = np.asarray(jitted(f"pairwise_{name}")(a, b))
        np.testing.assert_array_equal(np.diagonal(pairs)[:num_real], together)
        last = pairs[: min(num_real, 1), :num_real]
        expected = [[slow_overlaps(p, q)[name] for q in b[:num_real]] for p in a[: len(last)]]
        np.testing.assert_allclose(last, np.reshape(expected, last.shape), rtol=1e-4, atol=1e-5)


def crowded_boxes(seed, num_anchors, num_objects):
    """Anchors and objects with many duplicates, in whole and in broken pixels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (num_anchors, 2))
    anchors = np.concatenate([low, low + rng.uniform(0.1, 30, low.shape)], 1).astype(np.float32)
    anchors[::3] = np.round(anchors[::3])
    anchors[1::4] = rng.permutation(anchors)[: len(anchors[1::4])]
    objects = rng.permutation(anchors)[:num_objects] + rng.choice([0, 0.3, 1], (num_objects, 1))
    objects[::5] = objects[-1]
    return anchors, objects.astype(np.float32)


def eager_iou(objects, anchors):
    return np.asarray(box_ops.pairwise_iou(jnp.asarray(objects), jnp.asarray(anchors)))


def bits(overlaps):
    return np.asarray(overlaps).view(np.int32)


@pytest.fixture(scope="module")
def fusions():
    """Programs of ever more work around the same IoU: each gives (images, objects, anchors)."""

    def busy(objects, anchors):
        overlaps = box_ops.pairwise_iou(objects, anchors)
        best = jnp.max(overlaps, axis=1, keepdims=True)
        return overlaps, jnp.sum((overlaps == best) & (overlaps > 0.1)), jnp.argmax(overlaps, 0)

    return (
        jax.jit(jax.vmap(box_ops.pairwise_iou)),
        jax.jit(lambda *boxes: jax.vmap(busy)(*boxes)[0]),
        jax.jit(lambda *boxes: jax.lax.map(lambda pair: busy(*pair)[0], boxes)),
        jax.jit(lambda o, a: jnp.swapaxes(jax.vmap(box_ops.pairwise_iou)(a, o), 1, 2)),
    )


@given(st.integers(0, 2**32 - 2))
def test_jitted_iou_equals_eager_iou_bit_for_bit(fusions, seed):
    images = [crowded_boxes(seed + i, 200, 24) for i in range(2)]
    anchors, objects = (np.stack(arrays) for arrays in zip(*images, strict=True))
    eager = np.stack([eager_iou(*pair) for pair in zip(objects, anchors, strict=True)])
    for fusion in fusions:
        np.testing.assert_array_equal(bits(fusion(objects, anchors)), bits(eager))


def test_overlaps_in_the_assigner_equal_eager_iou_bit_for_bit():
    assign = jax.jit(jax.vmap(lambda *a: assign_by_iou(*a, positive_iou=0.7, negative_iou=0.3)))
    for seed in range(5):
        images = [crowded_boxes(seed + 10 * i, 200, 24) for i in range(2)]
        anchors, objects = (np.stack(arrays) for arrays in zip(*images, strict=True))
        real = np.ones((2, 200), bool), np.ones((2, 24), bool)
        found = jax.device_get(assign(anchors, real[0], objects, real[1], ~real[1]))
        for i in range(2):
            eager = eager_iou(objects[i], anchors[i])
            np.testing.assert_array_equal(bits(found.overlaps[i]), bits(eager.max(0)))
            best = eager.max(axis=1, keepdims=True)
            positive = ((eager == best) & (best > 0)).any(0) | (eager.max(0) >= 0.7)
            np.testing.assert_array_equal(found.labels[i] == POSITIVE, positive)


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("area", ([[0, 0, 4, 3], [5, 5, 5, 9], [5, 5, 3, 3]],), [12, 0, 0]),
        ("clip", ([[-3, -4, 300, 400], [1, 2, 3, 4]], [20, 10]), [[0, 0, 10, 20], [1, 2, 3, 4]]),
        ("xyxy_to_cxcywh", ([[0, 2, 4, 8]],), [[2, 5, 4, 6]]),
        ("cxcywh_to_xyxy", ([[2, 5, 4, 6]],), [[0, 2, 4, 8]]),
        ("flip_horizontal", ([[1, 2, 4, 8]], 10), [[6, 2, 9, 8]]),
        ("flip_vertical", ([[1, 2, 4, 9]], 10), [[1, 1, 4, 8]]),
        ("pairwise_iof", ([[0, 0, 2, 2]], [[0, 0, 10, 1], [0, 0, 9, 9]]), [[0.5, 1]]),
    ],
)  # fmt: skip
def test_boxes_worked_by_hand(name, arguments, expected):
    arrays = [jnp.array(value, jnp.float32) for value in arguments]
    np.testing.assert_array_equal(jitted(name)(*arrays), expected)
    # Eager, from whole numbers: float32 all the same.
    arrays = [value if value == 10 else jnp.array(value) for value in arguments]
    found = getattr(box_ops, name)(*arrays)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.float32


def test_rescale_keeps_the_centre():
    boxes = jnp.array([[2, 2, 4, 6], [0, 0, 0, 0]])
    np.testing.assert_array_equal(box_ops.rescale(boxes, 2.0), [[1, 0, 5, 8], [0, 0, 0, 0]])
    np.testing.assert_array_equal(box_ops.rescale(boxes, 0), [[3, 4, 3, 4], [0, 0, 0, 0]])


def test_has_min_size_wants_both_sides():
    boxes = jnp.array([[0, 0, 4, 4], [0, 0, 9, 3], [0, 0, 3.9, 9], [5, 5, 1, 1], [0, 0, np.nan, 9]])
    np.testing.assert_array_equal(box_ops.has_min_size(boxes, 4), np.arange(5) < 1)
    np.testing.assert_array_equal(box_ops.has_min_size(boxes, 0), np.arange(5) < 3)


@given(st.integers(0, 2**32 - 2), st.integers(0, COUNT))
def test_formats_flips_and_sizes_equal_plain_numpy(seed, num_real):
    padded, _ = awkward_boxes(seed, num_real)
    x1, y1, x2, y2 = padded[:num_real].T
    side_x, side_y = x2 - x1, y2 - y1
    expected = {
        "area": np.maximum(side_x, 0) * np.maximum(side_y, 0),
        "xyxy_to_cxcywh": np.stack([(x1 + x2) / 2, (y1 + y2) / 2, side_x, side_y], 1),
        "cxcywh_to_xyxy": np.stack([x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2], 1),
        "flip_horizontal": np.stack([90 - x2, y1, 90 - x1, y2], 1),
        "flip_vertical": np.stack([x1, 90 - y2, x2, 90 - y1], 1),
        "clip": np.clip(padded[:num_real], 0, [90, 60, 90, 60]),
    }
    extra = {"flip_horizontal": [90.0], "flip_vertical": [90.0], "clip": [np.array([60, 90])]}
    for name, values in expected.items():
        found = np.asarray(jitted(name)(padded, *extra.get(name, [])))[:num_real]
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_overlaps_of_bfloat16_boxes_are_float32():
    boxes = random_boxes(0).astype(jnp.bfloat16)
    exact = boxes.astype(np.float32)
    for name in OVERLAPS:
        found = jitted(name)(boxes, boxes[::-1])
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, jitted(name)(exact, exact[::-1]))


@pytest.mark.parametrize("name", OVERLAPS)
def test_gradients_of_awkward_boxes_are_finite(name):
    box = np.float32([10, 10, 20, 20])
    others = np.float32(
        [
            [0, 0, 0, 0],
            [10, 10, 10, 10],
            [15, 10, 15, 20],  # Empty.
            [10, 10, 20, 20],  # Identical.
            [1e6, 1e6, 1e6 + 1, 1e6 + 1],  # Far.
            [20, 10, 30, 20],
            [20, 20, 30, 30],  # Touching.
            [20, 20, 10, 10],  # Inverted.
        ]
    )
    slope = jax.jit(jax.vmap(jax.grad(getattr(box_ops, name), argnums=(0, 1)), in_axes=(None, 0)))
    for gradient in (*slope(box, others), *slope(np.full_like(box, 15), others)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["giou", "diou"])
def test_boxes_apart_are_drawn_together(name):
    gradient = jax.jit(jax.grad(getattr(box_ops, name)))
    slope = np.asarray(gradient(np.float32([0, 0, 2, 2]), np.float32([8, 0, 10, 2])))
    assert slope[0] + slope[2] > 0


@pytest.mark.parametrize(
    "name, shapes, message",
    [
        ("pairwise_iou", [(3, 4), (3, 5)], r"b wants the shape \(M, 4\), found \(3, 5\)"),
        ("pairwise_giou", [(4,), (3, 4)], r"a wants the shape \(N, 4\), found \(4,\)"),
        ("diou", [(3, 1, 4), (2, 5, 4)], r"b wants the shape"),
        ("clip", [(3, 4), (3,)], r"size wants the shape \(2\), found \(3,\)"),
        ("area", [(3,)], r"boxes wants the shape"),
        ("flip_horizontal", [(3, 4), (3,)], r"width wants the shape \(\), found \(3,\)"),
        ("flip_vertical", [(3, 4), (1,)], r"height wants the shape \(\), found \(1,\)"),
    ],
)
def test_wrong_shapes_raise_while_tracing(name, shapes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(box_ops, name), *(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_negative_sizes_raise(value):
    with pytest.raises(ValueError, match=f"factor must be at least 0, got {value}"):
        jax.eval_shape(lambda b: box_ops.rescale(b, value), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=f"min_size must be at least 0, got {value}"):
        jax.eval_shape(lambda b: box_ops.has_min_size(b, value), jnp.zeros((3, 4)))
