import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import anchors as anchor_ops

NAN = float("nan")
SWAP = [1, 0, 3, 2]  # Between the yxyx of simple-faster-rcnn and xyxy.
jitted_inside = jax.jit(
    anchor_ops.inside_image, static_argnames=("allowed_border", "count_touching")
)


def pyramid(data, tag):
    sizes = [tuple(size) for size in data[f"{tag}/feat_sizes"].tolist()]
    strides = data[f"{tag}/strides"].tolist()
    if tag == "rpn":
        scales = data["rpn/scales"].tolist()
    else:
        scales = anchor_ops.octave_scales(
            int(data["retina/octave_base_scale"]), int(data["retina/scales_per_octave"])
        )
    return sizes, strides, dict(scales=scales, ratios=data[f"{tag}/ratios"].tolist())


@pytest.mark.parametrize("tag", ["rpn", "retina"])
def test_anchors_equal_the_reference(golden, tag):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    np.testing.assert_allclose(shapes["scales"], data[f"{tag}/scales"], rtol=1e-6)
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        base = anchor_ops.base_anchors(stride, **shapes)
        assert len(base) == data[f"{tag}/num_base_anchors"][i]
        np.testing.assert_allclose(base, data[f"{tag}/base_anchors/{i}"], rtol=1e-5)
        grid = anchor_ops.grid_anchors(base, size, stride)
        np.testing.assert_allclose(grid, data[f"{tag}/grid_anchors/{i}"], rtol=1e-5, atol=1e-5)
    whole = anchor_ops.pyramid_anchors(sizes, strides, **shapes)
    levels = [data[f"{tag}/grid_anchors/{i}"] for i in range(len(sizes))]
    np.testing.assert_allclose(whole, np.concatenate(levels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tag", ["rpn", "retina"])
def test_valid_anchors_equal_the_reference(golden, tag):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    valid = jax.jit(
        lambda size: anchor_ops.pyramid_valid(
            sizes,
            strides,
            size,
            num_base=len(shapes["scales"]) * len(shapes["ratios"]),
            divisor=1,  # The file's sizes are what is left after padding.
        )
    )(data[f"{tag}/pad_hw"])
    expected = [data[f"{tag}/valid_flags/{i}"] for i in range(len(sizes))]
    np.testing.assert_array_equal(valid, np.concatenate(expected).astype(bool))


@pytest.mark.parametrize("tag", ["rpn", "retina"])
@pytest.mark.parametrize("border", [-1, 0, 16])
@pytest.mark.parametrize("image", ["full", "pad"])
def test_inside_flags_equal_the_reference(golden, tag, border, image):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    anchors = anchor_ops.pyramid_anchors(sizes, strides, **shapes)
    size = data[f"{tag}/{'image_hw' if image == 'full' else 'pad_hw'}"]
    inside = jitted_inside(anchors, size, allowed_border=border)
    # The reference's flags have the valid flags in them, which cover the padded image.
    valid = np.concatenate([data[f"{tag}/valid_flags/{i}"] for i in range(len(sizes))])
    expected = data[f"{tag}/inside_flags/border{border}/{image}"].astype(bool)
    np.testing.assert_array_equal(np.asarray(inside) & valid.astype(bool), expected)


def test_anchors_equal_those_of_simple_faster_rcnn(golden):
    data = golden("sfrcnn_bbox")
    shapes = dict(scales=data["anchor_scales"].tolist(), ratios=data["ratios"].tolist(), centre=0.5)
    base = anchor_ops.base_anchors(int(data["base_size"]), **shapes)
    np.testing.assert_allclose(base, data["anchor_base"][:, SWAP], rtol=1e-5)
    stride, size = int(data["feat_stride"]), tuple(data["feat_hw"].tolist())
    grid = anchor_ops.grid_anchors(base, size, stride)
    np.testing.assert_allclose(grid, data["shifted_anchors"][:, SWAP], rtol=1e-5, atol=1e-4)
    # One level of a pyramid counts in its own strides.
    share = int(data["base_size"]) / stride
    shapes |= dict(scales=[scale * share for scale in shapes["scales"]], centre=0.5 * share)
    np.testing.assert_allclose(
        anchor_ops.pyramid_anchors([size], [stride], **shapes), grid, rtol=1e-5, atol=1e-4
    )


def test_custom_base_anchors_equal_those_of_simple_faster_rcnn(golden):
    # The file does not hold the settings: read them off the anchors, whose order is the test.
    expected = golden("sfrcnn_bbox")["anchor_base_custom"][:, SWAP]
    stride = int(round(float(expected[0, 0] + expected[0, 2])))
    width, height = (expected[:, 2:] - expected[:, :2]).astype(float).T
    ratios = list({round(r, 3): r for r in (height / width).tolist()}.values())
    sides = (np.sqrt(width * height) / stride).tolist()
    scales = list({round(side, 3): side for side in sides}.values())
    assert len(ratios) > 1 and len(scales) > 1
    base = anchor_ops.base_anchors(stride, scales=scales, ratios=ratios, centre=0.5)
    np.testing.assert_allclose(base, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["yolox_simota", "yolox_simota_v01"])
def test_grid_points_equal_the_reference(golden, name):
    data = golden(name)
    strides = data["strides"].tolist()
    sizes = [tuple((data["image_hw"] // stride).tolist()) for stride in strides]
    found = anchor_ops.grid_points(sizes, strides)
    np.testing.assert_array_equal(found.strides, data["expanded_strides"][0])
    cells = np.stack([data["x_shifts"][0], data["y_shifts"][0]], axis=-1)
    np.testing.assert_allclose(found.centres, (cells + 0.5) * found.strides[:, None], rtol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3))
def test_grid_points_equal_plain_loops(sizes):
    strides = [3 * 2**i for i in range(len(sizes))]
    expected = [
        ((x + 0.5) * stride, (y + 0.5) * stride, stride)
        for (height, width), stride in zip(sizes, strides, strict=True)
        for y in range(height)
        for x in range(width)
    ]
    found = anchor_ops.grid_points(sizes, strides)
    assert all(array.dtype == np.float32 for array in found)
    rows = np.concatenate([found.centres, found.strides[:, None]], axis=1)
    np.testing.assert_array_equal(rows, np.reshape(expected, (-1, 3)))


def test_a_cell_runs_over_ratios_then_scales():
    base = anchor_ops.base_anchors(4, scales=(1, 2), ratios=(1.0, 4.0))
    np.testing.assert_allclose(base[:, 2] * 2, [4, 8, 2, 4])  # Widths.
    np.testing.assert_allclose(base[:, 3] * 2, [4, 8, 8, 16])  # Heights: ratio is h / w.


def test_the_centre_moves_by_strides():
    shapes = dict(scales=(1, 3), ratios=(0.5, 2.0))
    corner = anchor_ops.pyramid_anchors([(2, 3), (1, 2)], [4, 8], **shapes)
    middle = anchor_ops.pyramid_anchors([(2, 3), (1, 2)], [4, 8], centre=0.5, **shapes)
    moved = np.repeat([2.0, 4.0], (24, 8))[:, None] * np.ones(4)
    np.testing.assert_allclose(middle - corner, moved, rtol=1e-5)


def test_rounded_anchors_are_torchvisions():
    base = anchor_ops.base_anchors(4, scales=(8,), ratios=(0.5, 1.0, 2.0), rounded=True)
    np.testing.assert_array_equal(
        base, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    )
    # A side of 40.3 is 40; one of 50.8 is 50, half of which is even; halves go to even numbers.
    base = anchor_ops.base_anchors(8, scales=(5.04, 6.35, 0.625), ratios=(1.0,), rounded=True)
    np.testing.assert_array_equal(base[:, 2], [20, 25, 2])


def test_cells_may_share_the_canvas():
    shape = dict(scales=(1,), ratios=(1.0,))
    boxes = anchor_ops.pyramid_anchors([(2, 3)], [64], canvas=(112, 170), **shape)
    # 112 pixels are 56 a row, 170 are 56 a column and 2 left over.
    np.testing.assert_array_equal(boxes[:, 0] + 32, [0, 56, 112, 0, 56, 112])
    np.testing.assert_array_equal(boxes[:, 1] + 32, [0, 0, 0, 56, 56, 56])


def test_octave_scales_of_retinanet():
    assert anchor_ops.octave_scales(4, 1) == (4.0,)
    np.testing.assert_allclose(anchor_ops.octave_scales(2, 2), [2, 2 * 2**0.5])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(st.floats(0.1, 9), min_size=1, max_size=3),
    st.lists(st.floats(0.1, 9), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_pyramid_anchors_equal_plain_loops(sizes, scales, ratios, centre):
    strides = [4 * 2**i for i in range(len(sizes))]
    expected = [
        ((x + centre) * stride, (y + centre) * stride, stride * scale / ratio**0.5, ratio)
        for (height, width), stride in zip(sizes, strides, strict=True)
        for y in range(height)
        for x in range(width)
        for ratio in ratios
        for scale in scales
    ]
    found = anchor_ops.pyramid_anchors(sizes, strides, scales=scales, ratios=ratios, centre=centre)
    assert found.shape == (len(expected), 4) and found.dtype == np.float32
    for (x1, y1, x2, y2), (x, y, width, ratio) in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
            [x, y, width, width * ratio],
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.fixture(scope="module")
def jitted_valid():
    sizes, strides = [(6, 8), (3, 4)], [16, 32]
    return jax.jit(lambda size: anchor_ops.pyramid_valid(sizes, strides, size, num_base=2))


@given(st.integers(1, 96), st.integers(1, 128))
def test_valid_anchors_equal_plain_loops(jitted_valid, height, width):
    expected = [
        y * stride < -(-height // 32) * 32 and x * stride < -(-width // 32) * 32
        for (rows, columns), stride in zip([(6, 8), (3, 4)], [16, 32], strict=True)
        for y in range(rows)
        for x in range(columns)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(jitted_valid(np.array([height, width])), expected)


def test_anchors_in_the_canvas_padding_are_invalid():
    valid_of = jax.vmap(lambda size: anchor_ops.pyramid_valid([(4, 4)], [32], size, num_base=1))
    valid = np.asarray(jax.jit(valid_of)(np.array([[65, 32], [128, 128]])))
    expected = np.arange(4)[:, None] < 3 * (np.arange(4) < 1)
    np.testing.assert_array_equal(valid[0].reshape(4, 4), expected)
    assert valid[1].all()


@pytest.mark.parametrize(
    "settings, expected",
    [
        # Inside; right edge on the border; left of 0 by 2; garbage.
        (dict(), [True, False, False, False]),
        (dict(count_touching=True), [True, True, False, False]),
        (dict(allowed_border=2), [True, True, True, False]),
        (dict(allowed_border=1.5), [True, True, False, False]),
        (dict(allowed_border=-1), [True, True, True, True]),
    ],
)
def test_inside_image_worked_by_hand(settings, expected):
    anchors = np.array([[0, 0, 9, 19], [4, 4, 10, 8], [-2, 3, 5, 8], [NAN] * 4], np.float32)
    inside = jax.jit(lambda a, size: anchor_ops.inside_image(a, size, **settings))
    np.testing.assert_array_equal(inside(anchors, np.array([20, 10])), expected)
    coarse = anchors.astype(jnp.bfloat16)
    np.testing.assert_array_equal(inside(coarse, np.array([20, 10])), expected)
    both = jax.vmap(inside, in_axes=(None, 0))(anchors, np.array([[20, 10], [8, 99]]))
    np.testing.assert_array_equal(np.asarray(both)[0], expected)


@given(st.integers(0, 2**32 - 1))
def test_inside_image_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)
    anchors = rng.integers(-4, 24, (30, 4)).astype(np.float32)
    height, width = rng.integers(1, 24, 2).tolist()
    border, touching = int(rng.integers(0, 4)), bool(rng.integers(2))
    found = anchor_ops.inside_image(
        anchors, jnp.array([height, width]), allowed_border=border, count_touching=touching
    )
    far = 0.5 if touching else 0  # In whole pixels, <= n is < n + 0.5.
    expected = [
        min(x1, y1) >= -border and x2 < width + border + far and y2 < height + border + far
        for x1, y1, x2, y2 in anchors
    ]
    np.testing.assert_array_equal(found, expected)


def test_levels_without_a_stride_raise():
    with pytest.raises(ValueError, match="2 feature maps but 1 strides"):
        anchor_ops.pyramid_anchors([(2, 2), (1, 1)], [4], scales=(8,), ratios=(1,))
    with pytest.raises(ValueError, match="1 feature maps but 2 strides"):
        anchor_ops.pyramid_valid([(2, 2)], [4, 8], jnp.array([8, 8]), num_base=1)


@pytest.mark.parametrize(
    "function, arguments, settings, message",
    [
        ("octave_scales", (0, 3), {}, r"base must be finite numbers above 0, got \(0,\)"),
        ("octave_scales", (4, 0), {}, "num_scales must be at least 1, got 0"),
        ("base_anchors", (0,), dict(scales=[1], ratios=[1]), r"stride must be .* got \(0,\)"),
        ("base_anchors", (4,), dict(scales=[], ratios=[1]), r"scales must be .* got \(\)"),
        ("base_anchors", (4,), dict(scales=[1], ratios=[1, -1]), r"ratios must .* got \(1, -1\)"),
        ("base_anchors", (4,), dict(scales=[NAN], ratios=[1]), r"scales must be .* got \(nan,\)"),
        ("base_anchors", (4,), dict(scales=[1], ratios=[1], centre=8), r"centre must lie in .* 8"),
        ("grid_anchors", (np.zeros((1, 4), np.float32), (2, 2), 0), {}, "stride must be"),
        ("grid_anchors", (np.zeros((1, 4), np.float32), (-2, 2), 4), {}, "height must be at least"),
        ("grid_anchors", (np.zeros((1, 5), np.float32), (2, 2), 4), {}, "base wants the shape"),
        ("grid_points", ([(2, 2)], [4, 8]), {}, "1 feature maps but 2 strides"),
        ("grid_points", ([(2, 2)], [0]), {}, r"strides must be .* got \(0,\)"),
        ("grid_points", ([(2, -2)], [4]), {}, "width must be at least 0, got -2"),
        ("pyramid_anchors", ([(2, 2)], [-4]), dict(scales=[1], ratios=[1]), "strides must be"),
    ],
)
def test_impossible_anchors_raise(function, arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(anchor_ops, function)(*arguments, **settings)


@pytest.mark.parametrize(
    "size, settings, message",
    [
        ((3,), {}, r"size wants the shape \(2\), found \(3,\)"),
        ((2,), dict(num_base=0), "num_base must be at least 1, got 0"),
        ((2,), dict(divisor=0), "divisor must be at least 1, got 0"),
        ((2,), dict(strides=[0]), r"strides must be finite numbers above 0, got \(0,\)"),
    ],
)
def test_impossible_masks_raise_while_tracing(size, settings, message):
    settings = dict(feature_sizes=[(2, 2)], strides=[4], num_base=1) | settings
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda size: anchor_ops.pyramid_valid(size=size, **settings), jnp.zeros(size, int)
        )


def test_impossible_borders_raise_while_tracing():
    size = jnp.zeros(2, int)
    with pytest.raises(ValueError, match="allowed_border must be a number, got nan"):
        jax.eval_shape(
            lambda a: anchor_ops.inside_image(a, size, allowed_border=NAN), jnp.zeros((3, 4))
        )
    with pytest.raises(ValueError, match=r"anchors wants the shape \(N, 4\), found \(3, 1, 4\)"):
        jax.eval_shape(lambda a: anchor_ops.inside_image(a, size), jnp.zeros((3, 1, 4)))
