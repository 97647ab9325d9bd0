import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import box_coder


def normalisation(data, case):
    return {key: tuple(data[f"{case}/{key}"].tolist()) for key in ("means", "stds")}


@pytest.mark.parametrize("case", ["s1", "s2", "s3"])
def test_encode_and_decode_equal_the_reference(golden, case):
    data = golden("mmdet_delta_coder")
    settings = normalisation(data, case)
    encoded = box_coder.encode(jnp.asarray(data["rois"]), jnp.asarray(data["gts"]), **settings)
    np.testing.assert_allclose(encoded, data[f"{case}/encode"], rtol=1e-5, atol=1e-5)
    decoded = box_coder.decode(
        jnp.asarray(data["rois"]),
        jnp.asarray(data["deltas"]),
        size=jnp.asarray(data["max_shape"]),
        **settings,
    )
    np.testing.assert_allclose(decoded, data[f"{case}/decode_clip"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["s1", "s2"])
@pytest.mark.parametrize(
    "output, deltas, extra",
    [
        ("decode_noclip", "deltas", {}),
        ("decode_clip_border_False", "deltas", {}),
        ("decode_ratio_0.5", "deltas", {"max_ratio": 2.0, "clip": True}),
        ("decode_cls_clip", "deltas_cls", {"clip": True}),
        ("decode_cls_noclip", "deltas_cls", {}),
    ],
)
def test_options_of_decode_equal_the_reference(golden, case, output, deltas, extra):
    data = golden("mmdet_delta_coder")
    settings = normalisation(data, case) | extra
    size = jnp.asarray(data["max_shape"]) if settings.pop("clip", False) else None
    rows = data[deltas].reshape(40, -1, 4)  # One box a class.
    decoded = jax.jit(lambda a, d: box_coder.decode(a, d, size=size, **settings))(
        data["rois"][:, None], rows
    )
    expected = data[f"{case}/{output}"].reshape(rows.shape)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-4)


def test_encode_of_a_box_twice_as_wide_and_one_side_away():
    anchor, target = jnp.array([[0.0, 0, 10, 20]]), jnp.array([[5.0, 0, 25, 20]])
    np.testing.assert_allclose(
        box_coder.encode(anchor, target), [[1.0, 0.0, np.log(2), 0.0]], rtol=1e-6
    )


def test_decode_undoes_encode():
    rng = np.random.default_rng(0)
    anchors, targets = (
        jnp.asarray(np.concatenate([low, low + rng.uniform(1, 40, (50, 2))], axis=1), jnp.float32)
        for low in rng.uniform(0, 60, (2, 50, 2))
    )
    settings = dict(means=(0.1, 0.0, -0.1, 0.2), stds=(0.1, 0.1, 0.2, 0.2))
    deltas = box_coder.encode(anchors, targets, **settings)
    np.testing.assert_allclose(
        box_coder.decode(anchors, deltas, **settings), targets, rtol=1e-4, atol=1e-3
    )


def test_wild_deltas_and_empty_boxes_stay_finite():
    empty, wild = jnp.zeros((2, 4)), jnp.full((2, 4), 1e4)
    assert np.isfinite(box_coder.encode(empty, empty)).all()
    assert np.isfinite(box_coder.decode(jnp.array([[0.0, 0, 10, 10]] * 2), wild)).all()
    gradient = jax.grad(lambda d: jnp.sum(box_coder.decode(jnp.ones((2, 4)), d)))(wild)
    assert np.isfinite(gradient).all()
