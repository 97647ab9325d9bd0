import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import box_coder
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import GridPoints, grid_points
from jaxdet.ops.box_losses import giou_loss, iou_loss

COUNT = 10
SETTINGS = dict(means=(0.1, 0.0, -0.1, 0.2), stds=(0.1, 0.1, 0.2, 0.2))
SWAP = [1, 0, 3, 2]  # Between the yxyx of simple-faster-rcnn and xyxy.


@functools.cache
def jitted(name, **settings):
    return jax.jit(functools.partial(getattr(box_coder, name), **settings))


def normalisation(data, case):
    return {key: tuple(data[f"{case}/{key}"].tolist()) for key in ("means", "stds")}


@pytest.mark.parametrize("case", ["s1", "s2", "s3"])
def test_encode_and_decode_equal_the_reference(golden, case):
    data = golden("mmdet_delta_coder")
    settings = normalisation(data, case)
    encoded = jitted("encode", **settings)(data["rois"], data["gts"])
    np.testing.assert_allclose(encoded, data[f"{case}/encode"], rtol=1e-5, atol=1e-6)
    decoded = jitted("decode", max_ratio=1 / float(data["wh_ratio_clip"]), **settings)(
        data["rois"], data["deltas"], size=data["max_shape"]
    )
    np.testing.assert_allclose(decoded, data[f"{case}/decode_clip"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["s1", "s2"])
@pytest.mark.parametrize(
    "output, deltas, clips, max_ratio",
    [
        ("decode_noclip", "deltas", False, None),
        ("decode_clip_border_False", "deltas", False, None),
        ("decode_ratio_0.5", "deltas", True, 1 / 0.5),
        ("decode_cls_clip", "deltas_cls", True, None),
        ("decode_cls_noclip", "deltas_cls", False, None),
    ],
)
def test_options_of_decode_equal_the_reference(golden, case, output, deltas, clips, max_ratio):
    data = golden("mmdet_delta_coder")
    max_ratio = max_ratio or 1 / float(data["wh_ratio_clip"])
    num_boxes = int(data["num_classes"]) if deltas == "deltas_cls" else 1
    rows = data[deltas].reshape(-1, num_boxes, 4)
    decoded = jitted("decode", max_ratio=max_ratio, **normalisation(data, case))(
        data["rois"][:, None], rows, size=data["max_shape"] if clips else None
    )
    expected = data[f"{case}/{output}"].reshape(rows.shape)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-4)


def test_encode_and_decode_equal_simple_faster_rcnn(golden):
    data = golden("sfrcnn_bbox")
    a, b, deltas = (data[key][:, SWAP] for key in ("a", "b", "random_loc"))
    encoded = jitted("encode")(a, b)
    np.testing.assert_allclose(encoded, data["loc"][:, SWAP], rtol=1e-5, atol=1e-6)
    decode = jitted("decode", max_ratio=math.inf)
    np.testing.assert_allclose(
        decode(a, deltas), data["decoded"][:, SWAP], rtol=1e-5, atol=1e-4
    )  # fmt: skip
    per_class, expected = (
        data[key].reshape(len(a), -1, 4)[..., SWAP] for key in ("random_loc_cls", "decoded_cls")
    )
    np.testing.assert_allclose(decode(a[:, None], per_class), expected, rtol=1e-5, atol=1e-4)


def test_encode_of_a_box_twice_as_wide_and_one_side_away():
    anchor, target = jnp.array([[0.0, 0, 10, 20]]), jnp.array([[5.0, 0, 25, 20]])
    np.testing.assert_allclose(
        jitted("encode")(anchor, target), [[1.0, 0.0, np.log(2), 0.0]], rtol=1e-6
    )
    found = jitted("encode", means=(0.5, 1.0, 0.0, 0.0), stds=(0.1, 0.1, 0.2, 0.2))(anchor, target)
    np.testing.assert_allclose(found, [[5.0, -10.0, np.log(2) / 0.2, 0.0]], rtol=1e-6)


def test_decode_of_boxes_worked_by_hand():
    anchor = jnp.array([0, 0, 10, 20])
    deltas = jnp.array([[0.5, 0.0, np.log(2.0), 0.0], [0, 0, 9, -9]])
    found = jitted("decode", max_ratio=4.0)(anchor, deltas)
    np.testing.assert_allclose(
        found, [[0, 0, 20, 20], [-15, 7.5, 25, 12.5]], rtol=1e-5, atol=1e-5
    )  # Four times as wide and a quarter as high, at most.
    clipped = jitted("decode", max_ratio=4.0)(anchor, deltas, size=jnp.array([10, 18]))
    np.testing.assert_allclose(clipped, [[0, 0, 18, 10], [0, 7.5, 18, 10]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_ratio", [math.inf, 8.0, 1 / 8])
def test_sides_grow_by_the_largest_ratio_at_most(max_ratio):
    grown = jitted("decode", max_ratio=max_ratio)(jnp.array([0, 0, 1, 1]), jnp.full(4, 7.0))
    factor = math.exp(7) if max_ratio == math.inf else 8
    grown = np.asarray(grown)
    np.testing.assert_allclose(grown[2:] - grown[:2], [factor] * 2, rtol=1e-5)


@pytest.mark.parametrize("max_ratio", [8.0, 1 / 8, math.inf])
def test_sides_shrink_without_limit_where_growth_alone_is_limited(max_ratio):
    decode = jitted("decode", max_ratio=max_ratio, limit_shrinking=False)
    found = np.asarray(decode(jnp.array([0, 0, 1, 1]), jnp.array([0.0, 0, 7, -7])))
    growth = math.exp(7) if max_ratio == math.inf else 8
    np.testing.assert_allclose(found[2:] - found[:2], [growth, math.exp(-7)], rtol=1e-4)


def random_boxes(rng):
    low = rng.uniform(0, 60, (COUNT, 2))
    return np.concatenate([low, low + rng.uniform(0.5, 40, low.shape)], axis=1).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, COUNT))
def test_coder_equals_plain_loops_whatever_the_padding_holds(seed, num_real):
    rng = np.random.default_rng(seed)
    anchors, targets = random_boxes(rng), random_boxes(rng)
    deltas = rng.normal(size=(COUNT, 4)).astype(np.float32) * 8
    for array in (anchors, targets, deltas):
        array[num_real:] = rng.choice([np.nan, np.inf, -np.inf, 1e30], (COUNT - num_real, 4))
    encoded = np.asarray(jitted("encode", **SETTINGS)(anchors, targets))
    decoded = np.asarray(jitted("decode", **SETTINGS)(anchors, deltas, size=np.array([50, 90])))
    back = np.asarray(jitted("decode", **SETTINGS)(anchors, encoded))
    for i in range(num_real):
        (ax, ay, aw, ah), (tx, ty, tw, th) = (
            ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            for x1, y1, x2, y2 in (anchors[i].astype(float), targets[i].astype(float))
        )
        raw = ((tx - ax) / aw, (ty - ay) / ah, math.log(tw / aw), math.log(th / ah))
        normal = [
            (r - m) / s for r, m, s in zip(raw, SETTINGS["means"], SETTINGS["stds"], strict=True)
        ]
        np.testing.assert_allclose(encoded[i], normal, rtol=1e-4, atol=1e-4)
        dx, dy, dw, dh = deltas[i] * np.array(SETTINGS["stds"]) + SETTINGS["means"]
        limit = math.log(1000 / 16)
        w, h = (side * math.exp(max(-limit, min(limit, d))) for side, d in ((aw, dw), (ah, dh)))
        x, y = ax + dx * aw, ay + dy * ah
        box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [90, 50, 90, 50])
        np.testing.assert_allclose(decoded[i], box, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(back[:num_real], targets[:num_real], rtol=1e-4, atol=1e-3)


def test_wild_deltas_and_empty_boxes_stay_finite():
    empty, wild = np.zeros((2, 4), np.float32), np.full((2, 4), 1e4, np.float32)
    assert np.isfinite(jitted("encode")(empty, empty)).all()
    assert np.isfinite(jitted("decode")(np.float32([[0, 0, 10, 10]] * 2), wild)).all()
    for name, arrays in (("encode", (empty, empty)), ("decode", (np.ones_like(wild), wild))):
        total = jax.grad(lambda *a, name=name: jnp.sum(jitted(name)(*a)), argnums=(0, 1))
        assert all(np.isfinite(gradient).all() for gradient in jax.jit(total)(*arrays))


def test_bfloat16_boxes_are_coded_in_float32():
    rng = np.random.default_rng(0)
    coarse = [random_boxes(rng).astype(jnp.bfloat16) for _ in range(2)]
    for name in ("encode", "decode"):
        found = jitted(name)(*coarse)
        exact = jitted(name)(*(array.astype(np.float32) for array in coarse))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("name", ["encode", "decode"])
@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(means=(0.0,) * 3), r"means must be four finite numbers, got \(0.0, 0.0, 0.0\)"),
        (dict(means=(0.0, 0.0, 0.0, math.nan)), "means must be four finite numbers"),
        (dict(stds=(1.0,) * 5), "stds must be four finite numbers"),
        (dict(stds=(1.0, 1.0, 1.0, math.inf)), "stds must be four finite numbers"),
        (dict(stds=(1.0, 0.0, 1.0, 1.0)), r"stds must be above 0, got \(1.0, 0.0"),
    ],
)
def test_impossible_normalisation_raises(name, settings, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(getattr(box_coder, name), **settings), *jnp.ones((2, 3, 4))
        )


@pytest.mark.parametrize("max_ratio", [0.0, -2.0, math.nan])
def test_impossible_ratio_raises(max_ratio):
    decode = functools.partial(box_coder.decode, max_ratio=max_ratio)
    with pytest.raises(ValueError, match=f"max_ratio must be above 0, got {max_ratio}"):
        jax.eval_shape(decode, *jnp.ones((2, 3, 4)))


def test_wrong_shapes_raise_while_tracing():
    with pytest.raises(ValueError, match=r"targets wants the shape .*, found \(3, 5\)"):
        jax.eval_shape(box_coder.encode, jnp.ones((3, 4)), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match=r"deltas wants the shape .*, found \(2, 5, 4\)"):
        jax.eval_shape(box_coder.decode, jnp.ones((3, 1, 4)), jnp.ones((2, 5, 4)))


def golden_points(data):
    strides = data["strides"].tolist()
    return grid_points([tuple((data["image_hw"] // s).tolist()) for s in strides], strides)


@pytest.mark.parametrize("name", ["yolox_simota", "yolox_simota_v01"])
def test_offsets_in_cells_equal_the_reference_and_come_back(golden, name):
    data = golden(name)
    points = golden_points(data)
    for raw, decoded in zip(data["origin_preds"], data["outputs_decoded"][..., :4], strict=True):
        boxes = jitted("decode_grid")(points, raw)
        expected = jax.jit(box_ops.cxcywh_to_xyxy)(decoded)
        np.testing.assert_allclose(boxes, expected, rtol=1e-5, atol=1e-4)
        back = jitted("encode_grid")(points, boxes)
        np.testing.assert_allclose(back, raw, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_the_grid_coder_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)
    points = grid_points([(2, 3), (2, 2)], [8, 24])
    offsets = (rng.normal(size=(COUNT, 4)) * 3).astype(np.float32)
    targets = random_boxes(rng)
    boxes = np.asarray(jitted("decode_grid")(points, offsets))
    raw = np.asarray(jitted("encode_grid")(points, targets))
    cells = [(x, y, 8) for y in range(2) for x in range(3)]
    cells += [(x, y, 24) for y in range(2) for x in range(2)]
    for i, (x, y, stride) in enumerate(cells):
        dx, dy, dw, dh = offsets[i].astype(float)
        cx, cy = (x + dx) * stride, (y + dy) * stride
        w, h = math.exp(dw) * stride, math.exp(dh) * stride
        wanted = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        np.testing.assert_allclose(boxes[i], wanted, rtol=1e-4, atol=1e-2)
        x1, y1, x2, y2 = targets[i].astype(float)
        centre = ((x1 + x2) / 2 / stride - x, (y1 + y2) / 2 / stride - y)
        logs = (math.log((x2 - x1) / stride), math.log((y2 - y1) / stride))
        np.testing.assert_allclose(raw[i], [*centre, *logs], rtol=1e-4, atol=1e-4)


def test_wild_offsets_and_empty_targets_stay_finite_also_in_gradients():
    points = GridPoints(np.full((3, 2), 32, np.float32), np.full(3, 64, np.float32))
    offsets = np.float32([[0, 0, 1e4, 1e4], [9, 9, 1e4, -1e4], [0, 0, 3e38, 0]])
    target = jnp.array([10.0, 10, 90, 90])

    def total(offsets):
        boxes = jitted("decode_grid")(points, offsets)
        return jnp.sum(iou_loss(boxes, target, form="square") + giou_loss(boxes, target))

    value, gradient = jax.jit(jax.value_and_grad(total))(offsets)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    side = np.asarray(jitted("decode_grid")(points, offsets))[0, 2] * 2 - 64
    np.testing.assert_allclose(side, 64 * math.exp(box_coder.MAX_LOG_SIDE), rtol=1e-5)
    # Up to the guard nothing changes.
    offsets = np.zeros((3, 4), np.float32)
    offsets[:, 2:] = box_coder.MAX_LOG_SIDE - 1
    side = np.asarray(jitted("decode_grid")(points, offsets))[0, 2] * 2
    np.testing.assert_allclose(side, 64 * math.exp(box_coder.MAX_LOG_SIDE - 1), rtol=1e-5)

    encoded = np.asarray(jitted("encode_grid")(points, np.zeros((3, 4), np.float32)))
    np.testing.assert_allclose(encoded[0], [0, 0, math.log(1e-8), math.log(1e-8)], rtol=1e-6)


@pytest.mark.parametrize("name", ["encode_grid", "decode_grid"])
def test_points_that_do_not_fit_the_boxes_raise(name):
    points = grid_points([(1, 3)], [8])
    with pytest.raises(ValueError, match=r"2 boxes, but points .* \(3, 2\) and strides of \(3,\)"):
        jax.eval_shape(lambda rows: getattr(box_coder, name)(points, rows), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"wants the shape \(N, 4\), found \(3, 5\)"):
        jax.eval_shape(lambda rows: getattr(box_coder, name)(points, rows), jnp.zeros((3, 5)))
