import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import boxes as box_ops

COUNT = 24  # One padded shape, so that random inputs compile once.


def random_boxes(seed, count=COUNT, limit=100.0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, limit, (count, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def slow_iou(a, b):
    x1, y1, x2, y2 = (f(p, q) for f, p, q in zip((max, max, min, min), a, b, strict=True))
    intersection = max(float(x2) - float(x1), 0.0) * max(float(y2) - float(y1), 0.0)
    areas = [(float(c[2]) - float(c[0])) * (float(c[3]) - float(c[1])) for c in (a, b)]
    return intersection / max(sum(areas) - intersection, 1e-6)


@pytest.mark.parametrize("name", ["iou", "iof", "giou"])
def test_overlaps_equal_the_reference(golden, name):
    data = golden("mmdet_bbox_overlaps")
    function = jax.jit(getattr(box_ops, name))
    pairs = function(data["a"][:, None], data["b"][None])
    np.testing.assert_allclose(pairs, data[name], rtol=1e-5, atol=1e-6)
    aligned = function(data["a_aligned"], data["b_aligned"])
    np.testing.assert_allclose(aligned, data[f"{name}_aligned"], rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_pairwise_iou_equals_a_loop(seed):
    a, b = random_boxes(seed), random_boxes(seed + 1)
    expected = [[slow_iou(p, q) for q in b] for p in a]
    np.testing.assert_allclose(jax.jit(box_ops.pairwise_iou)(a, b), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_jitted_iou_equals_eager_iou_bit_for_bit(seed):
    a, b = random_boxes(seed), random_boxes(seed + 1)
    b[:4], a[5:8] = a[:4], a[:3]  # Objects that equal anchors, and duplicated anchors.
    eager = np.asarray(box_ops.pairwise_iou(jnp.asarray(a), jnp.asarray(b)))
    jitted = np.asarray(jax.jit(box_ops.pairwise_iou)(a, b))
    np.testing.assert_array_equal(eager.view(np.int32), jitted.view(np.int32))
    np.testing.assert_array_equal(eager[5:8], eager[:3])


def test_pairwise_iof_divides_by_the_first():
    a, b = jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 0, 10, 1]])
    assert float(box_ops.pairwise_iof(a, b)[0, 0]) == 0.5
    assert float(box_ops.pairwise_iof(b, a)[0, 0]) == pytest.approx(0.2)


def test_empty_and_inverted_boxes_have_area_and_overlap_zero():
    boxes = jnp.array([[5.0, 5, 5, 9], [5, 5, 3, 3], [0, 0, 10, 10]])
    np.testing.assert_array_equal(box_ops.area(boxes), [0, 0, 100])
    assert np.count_nonzero(box_ops.pairwise_iou(boxes, boxes)) == 1


def test_clip_moves_corners_to_the_border_of_height_and_width():
    clipped = box_ops.clip(jnp.array([[-3.0, -4, 300, 400]]), jnp.array([200, 100]))
    np.testing.assert_array_equal(clipped, [[0, 0, 100, 200]])


def test_formats_are_inverse_of_each_other():
    boxes = jnp.asarray(random_boxes(3))
    np.testing.assert_array_equal(
        box_ops.xyxy_to_cxcywh(jnp.array([[0.0, 2, 4, 8]])), [[2, 5, 4, 6]]
    )
    back = box_ops.cxcywh_to_xyxy(box_ops.xyxy_to_cxcywh(boxes))
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=1e-4)


def test_flip_mirrors_the_left_edge_to_the_right():
    np.testing.assert_array_equal(
        box_ops.flip_horizontal(jnp.array([[1.0, 2, 4, 8]]), 10.0), [[6, 2, 9, 8]]
    )


def test_overlaps_of_bfloat16_boxes_are_float32():
    boxes = jnp.asarray(random_boxes(0)).astype(jnp.bfloat16)
    assert box_ops.pairwise_iou(boxes, boxes).dtype == jnp.float32


@pytest.mark.parametrize("name", ["iou", "iof", "giou"])
def test_gradients_of_empty_boxes_are_finite(name):
    function = getattr(box_ops, name)
    empty = jnp.zeros((3, 4))
    gradient = jax.grad(lambda a: jnp.sum(function(a, jnp.asarray(random_boxes(0, 3)))))(empty)
    assert np.isfinite(gradient).all()
