import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.drawn_variables import draw, normal

from jaxdet.models import BoxHead, RPNHead

SIZES = ((3, 4), (2, 2))


@pytest.fixture(scope="module")
def rpn():
    """An RPN head, jitted; its variables and a pyramid of two levels."""
    head = RPNHead(num_anchors=3, channels=5)
    rng = np.random.default_rng(0)
    maps = tuple(normal(rng, 2, *size, 4) for size in SIZES)
    return jax.jit(head.apply), draw(head.init, maps), maps


def test_rpn_outputs_follow_levels_then_rows_then_columns_then_anchors(rpn):
    apply, variables, maps = rpn
    params = jax.tree.map(np.zeros_like, variables["params"])
    # The first feature reaches all outputs, times 1, 2, 3 for the anchors.
    params["conv"]["kernel"][1, 1, 0, 0] = 1.0
    params["logits"]["kernel"][0, 0, 0] = np.arange(1.0, 4.0)
    params["deltas"]["bias"] = np.arange(12, dtype=np.float32)
    logits, deltas = jax.device_get(apply({"params": params}, maps))
    features = [np.maximum(x[..., :1], 0) * np.arange(1, 4) for x in maps]
    wanted = np.concatenate([x.reshape(2, -1) for x in features], axis=1)
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)
    assert deltas.shape == (2, wanted.shape[1], 4)
    np.testing.assert_array_equal(deltas[1, 3:6], np.arange(12.0).reshape(3, 4))


def test_rpn_levels_share_the_weights_and_do_not_touch(rpn):
    apply, variables, maps = rpn
    logits, _ = apply(variables, maps)
    alone, _ = apply(variables, maps[1:])
    np.testing.assert_allclose(np.asarray(logits)[:, -12:], alone, rtol=1e-6)


@pytest.mark.parametrize("class_agnostic, boxes", [(False, 6), (True, 1)])
def test_box_head_outputs_have_one_more_logit_than_classes(class_agnostic, boxes):
    head = BoxHead(num_classes=6, hidden=8, class_agnostic=class_agnostic)
    features = normal(np.random.default_rng(1), 2, 3, 7, 7, 4)
    variables, apply = draw(head.init, features), jax.jit(head.apply)
    logits, deltas = jax.device_get(apply(variables, features))
    assert logits.shape == (2, 3, 7) and deltas.shape == (2, 3, boxes, 4)
    assert variables["params"]["fc0"]["kernel"].shape == (7, 7, 4, 8)
    # Every region is computed by itself, whatever the leading axes are.
    alone, _ = apply(variables, features[1, 2])
    np.testing.assert_allclose(alone, logits[1, 2], rtol=1e-5)


def test_box_head_computes_its_layers_in_turn():
    head = BoxHead(num_classes=2, hidden=5)
    features = normal(np.random.default_rng(1), 3, 2, 2, 4)
    variables = draw(head.init, features)
    params, x = variables["params"], features.reshape(3, -1)
    for name in ("fc0", "fc1"):
        x = np.maximum(slow_dense_rows(x, params[name]), 0)
    logits, deltas = jax.jit(head.apply)(variables, features)
    wanted = slow_dense_rows(x, params["logits"])
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
    wanted = slow_dense_rows(x, params["deltas"]).reshape(3, 2, 4)
    np.testing.assert_allclose(deltas, wanted, rtol=1e-5, atol=1e-6)


def slow_branch(x, params, prefix, convs, fcs, *, pooled):
    """The layers of one part of the head on one region, by explicit sums."""
    for i in range(convs):
        layer, padded = params[f"{prefix}conv{i}"], np.pad(x, ((1, 1), (1, 1), (0, 0)))
        height, width = x.shape[:2]
        x = sum(
            padded[dy : dy + height, dx : dx + width] @ layer["kernel"][dy, dx]
            for dy in range(3)
            for dx in range(3)
        )
        x = np.maximum(x + layer["bias"], 0)
    for i in range(fcs):
        layer = params[f"{prefix}fc{i}"]
        x = np.maximum(slow_dense(x, layer, pooled=pooled), 0)
    return x


def slow_dense(x, layer, *, pooled):
    x = x.mean(axis=(0, 1)) if pooled and x.ndim == 3 else x
    return slow_dense_rows(x.reshape(-1), layer)


def slow_dense_rows(x, layer):
    return x @ layer["kernel"].reshape(-1, len(layer["bias"])) + layer["bias"]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("convs, fcs", [((2, 0, 0), (1, 1, 0)), ((1, 1, 2), (0, 2, 0))])
def test_box_head_branches_equal_plain_sums(convs, fcs, pooled):
    names = ("shared", "class", "box")
    parts = {f"{name}_convs": count for name, count in zip(names, convs, strict=True)}
    parts |= {f"{name}_fcs": count for name, count in zip(names, fcs, strict=True)}
    head = BoxHead(num_classes=2, hidden=5, conv_channels=6, average_pool=pooled, **parts)
    features = normal(np.random.default_rng(1), 2, 3, 4, 4, 3)
    variables = draw(head.init, features)
    logits, deltas = jax.device_get(jax.jit(head.apply)(variables, features))
    params = variables["params"]
    assert sum("conv" in name for name in params) == sum(convs)
    assert sum("fc" in name for name in params) == sum(fcs)
    shared = slow_branch(features[1, 2], params, "", convs[0], fcs[0], pooled=pooled)
    branches = [
        slow_branch(shared, params, prefix, convs[i], fcs[i], pooled=pooled)
        for i, prefix in ((1, "class_"), (2, "box_"))
    ]
    wanted_logits = slow_dense(branches[0], params["logits"], pooled=pooled)
    wanted_deltas = slow_dense(branches[1], params["deltas"], pooled=pooled)
    np.testing.assert_allclose(logits[1, 2], wanted_logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(deltas[1, 2].reshape(-1), wanted_deltas, rtol=1e-4, atol=1e-6)


def test_group_norm_in_the_box_head_looks_at_one_region_only():
    head = BoxHead(num_classes=2, hidden=4, shared_convs=1, shared_fcs=1, norm="group")
    features = normal(np.random.default_rng(1), 4, 3, 3, 2)
    variables, apply = draw(head.init, features), jax.jit(head.apply)
    assert "bias" not in variables["params"]["conv0"] and "norm0" in variables["params"]
    logits, _ = jax.device_get(apply(variables, features))
    alone, _ = apply(variables, features[2:3])
    np.testing.assert_allclose(alone, logits[2:3], rtol=1e-4, atol=1e-6)


def test_dropout_follows_the_keys_of_the_images_and_spares_calls_without_keys():
    head = BoxHead(num_classes=2, hidden=64, dropout=0.25)
    features = normal(np.random.default_rng(1), 3, 5, 2, 2, 4)
    variables, apply = draw(head.init, features), jax.jit(head.apply)
    plain, _ = apply(variables, features)
    keys = jax.random.split(jax.random.key(2), 3)
    dropped, _ = apply(variables, features, keys)
    assert not np.allclose(dropped, plain)
    turned, _ = apply(variables, np.roll(features, 1, axis=0), keys[np.array([2, 0, 1])])
    np.testing.assert_allclose(turned, np.roll(dropped, 1, axis=0), rtol=1e-5, atol=1e-6)
    still, _ = jax.jit(BoxHead(num_classes=2, hidden=64).apply)(variables, features)
    np.testing.assert_allclose(still, plain, rtol=1e-6)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    head = BoxHead(num_classes=1, hidden=400, shared_fcs=1, dropout=0.25)
    features = np.ones((1, 8, 1, 1, 2), np.float32)
    params = draw(head.init, features)["params"]
    params["fc0"] = {"kernel": jnp.zeros((1, 1, 2, 400)), "bias": jnp.ones(400)}
    # Counts what is left, grown by 4 / 3.
    params["logits"] = {"kernel": jnp.ones((400, 2)), "bias": jnp.zeros(2)}
    keys = jax.random.split(jax.random.key(1), 1)
    logits, _ = jax.jit(head.apply)({"params": params}, features, keys)
    kept = np.asarray(logits)[0, :, 0] * 0.75 / 400
    assert 0.7 < kept.mean() < 0.8 and kept.std() > 0.005


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (dict(norm="batch"), "norm must be one of none, group; found 'batch'"),
        (dict(class_convs=1), "shared_fcs must be 0 where branches have convolutions; found 2"),
    ],
)
def test_impossible_box_heads_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            BoxHead(num_classes=2, **settings).init, jax.random.key(0), jnp.zeros((1, 3, 3, 2))
        )


def test_box_head_starts_with_the_spreads_of_the_paper():
    head = BoxHead(num_classes=20, hidden=64)

    @jax.jit  # Only what is returned is compiled.
    def init(key):
        params = head.init(key, jnp.ones((1, 7, 7, 8)))["params"]
        return [params[name]["kernel"] for name in ("logits", "deltas", "fc0")]

    logits, deltas, first = jax.device_get(init(jax.random.key(0)))
    assert np.std(logits) == pytest.approx(0.01, rel=0.1)
    assert np.std(deltas) == pytest.approx(0.001, rel=0.1)
    # Xavier uniform: variance 2 / (fan in + fan out).
    assert np.var(first) == pytest.approx(2 / (7 * 7 * 8 + 64), rel=0.1)


def test_bfloat16_heads_return_float32(rpn):
    apply, variables, maps = rpn
    half_maps = tuple(x.astype(jnp.bfloat16) for x in maps)
    half_head = RPNHead(num_anchors=3, channels=5, dtype=jnp.bfloat16)
    found = jax.jit(half_head.apply)(variables, half_maps)
    wanted = apply(variables, maps)
    for half, full in zip(found, wanted, strict=True):
        assert half.dtype == jnp.float32
        np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    head = BoxHead(num_classes=2, hidden=8, dtype=jnp.bfloat16)
    regions = jnp.ones((3, 2, 2, 4), jnp.bfloat16)
    outputs_and_variables = jax.eval_shape(head.init_with_output, jax.random.key(0), regions)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(outputs_and_variables))
