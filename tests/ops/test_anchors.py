import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import anchors as anchor_ops


def pyramid(data, tag):
    sizes = [tuple(size) for size in data[f"{tag}/feat_sizes"].tolist()]
    strides = data[f"{tag}/strides"].tolist()
    if tag == "rpn":
        scales = data["rpn/scales"].tolist()
    else:
        octaves = np.arange(3) / 3
        scales = (data["retina/octave_base_scale"] * 2**octaves).tolist()
    return sizes, strides, dict(scales=scales, ratios=data[f"{tag}/ratios"].tolist())


@pytest.mark.parametrize("tag", ["rpn", "retina"])
def test_anchors_equal_the_reference(golden, tag):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        base = anchor_ops.base_anchors(stride, **shapes)
        np.testing.assert_allclose(base, data[f"{tag}/base_anchors/{i}"], rtol=1e-5, atol=1e-5)
        grid = anchor_ops.grid_anchors(base, size, stride)
        np.testing.assert_allclose(grid, data[f"{tag}/grid_anchors/{i}"], rtol=1e-5, atol=1e-4)
    whole = anchor_ops.pyramid_anchors(sizes, strides, **shapes)
    levels = [data[f"{tag}/grid_anchors/{i}"] for i in range(len(sizes))]
    np.testing.assert_allclose(whole, np.concatenate(levels), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tag", ["rpn", "retina"])
def test_valid_anchors_equal_the_reference(golden, tag):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    valid = anchor_ops.pyramid_valid(
        sizes,
        strides,
        jnp.asarray(data[f"{tag}/pad_hw"]),
        num_base=len(shapes["scales"]) * len(shapes["ratios"]),
        divisor=1,  # The file's sizes are what is left after padding.
    )
    expected = [data[f"{tag}/valid_flags/{i}"] for i in range(len(sizes))]
    np.testing.assert_array_equal(valid, np.concatenate(expected).astype(bool))


@pytest.mark.parametrize("tag", ["rpn", "retina"])
@pytest.mark.parametrize("border", [-1, 0, 16])
@pytest.mark.parametrize("image", ["full", "pad"])
def test_inside_flags_equal_the_reference(golden, tag, border, image):
    data = golden("mmdet_anchors")
    sizes, strides, shapes = pyramid(data, tag)
    anchors = anchor_ops.pyramid_anchors(sizes, strides, **shapes)
    size = jnp.asarray(data[f"{tag}/{'image_hw' if image == 'full' else 'pad_hw'}"])
    inside = anchor_ops.inside_image(anchors, size, allowed_border=border)
    # The reference's flags have the valid flags in them, which cover the padded image.
    valid = np.concatenate([data[f"{tag}/valid_flags/{i}"] for i in range(len(sizes))])
    expected = data[f"{tag}/inside_flags/border{border}/{image}"].astype(bool)
    np.testing.assert_array_equal(np.asarray(inside) & valid.astype(bool), expected)


def test_a_cell_runs_over_ratios_then_scales():
    base = anchor_ops.base_anchors(4, scales=(1, 2), ratios=(1.0, 4.0))
    np.testing.assert_allclose(base[:, 2] * 2, [4, 8, 2, 4])  # Widths.
    np.testing.assert_allclose(base[:, 3] * 2, [4, 8, 8, 16])  # Heights: ratio is h / w.


def test_anchors_in_the_canvas_padding_are_invalid():
    valid = jax.jit(lambda size: anchor_ops.pyramid_valid([(4, 4)], [32], size, num_base=1))(
        jnp.array([65, 32])
    )
    np.testing.assert_array_equal(
        valid.reshape(4, 4), np.arange(4)[:, None] < 3 * (np.arange(4) < 1)
    )


def test_levels_without_a_stride_raise():
    with pytest.raises(ValueError, match="2 feature maps but 1 strides"):
        anchor_ops.pyramid_anchors([(2, 2), (1, 1)], [4], scales=(8,), ratios=(1,))
    with pytest.raises(ValueError, match="1 feature maps but 2 strides"):
        anchor_ops.pyramid_valid([(2, 2)], [4, 8], jnp.array([8, 8]), num_base=1)
