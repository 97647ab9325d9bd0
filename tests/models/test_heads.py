import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models import BoxHead, RPNHead

SIZES = ((3, 4), (2, 2))


@pytest.fixture(scope="module")
def rpn():
    """An RPN head, its variables and a pyramid of two levels."""
    head = RPNHead(num_anchors=3, channels=5)
    rng = np.random.default_rng(0)
    maps = tuple(jnp.asarray(rng.normal(size=(2, *size, 4)), jnp.float32) for size in SIZES)
    return head, jax.jit(head.init)(jax.random.key(0), maps), maps


def test_rpn_outputs_follow_levels_then_rows_then_columns_then_anchors(rpn):
    head, variables, maps = rpn
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    # The first feature reaches all outputs, times 1, 2, 3 for the anchors.
    params["conv"]["kernel"] = params["conv"]["kernel"].at[1, 1, 0, 0].set(1.0)
    params["logits"]["kernel"] = params["logits"]["kernel"].at[0, 0, 0].set(jnp.arange(1.0, 4.0))
    params["deltas"]["bias"] = jnp.arange(12.0)
    logits, deltas = head.apply({"params": params}, maps)
    features = [np.maximum(x[..., :1], 0) * np.arange(1, 4) for x in maps]
    wanted = np.concatenate([x.reshape(2, -1) for x in features], axis=1)
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)
    assert deltas.shape == (2, wanted.shape[1], 4)
    np.testing.assert_array_equal(deltas[1, 3:6], np.arange(12.0).reshape(3, 4))


def test_rpn_levels_share_the_weights_and_do_not_touch(rpn):
    head, variables, maps = rpn
    logits, _ = head.apply(variables, maps)
    alone, _ = head.apply(variables, maps[1:])
    np.testing.assert_allclose(logits[:, -12:], alone, rtol=1e-6)


@pytest.mark.parametrize("class_agnostic, boxes", [(False, 6), (True, 1)])
def test_box_head_outputs_have_one_more_logit_than_classes(class_agnostic, boxes):
    head = BoxHead(num_classes=6, hidden=8, class_agnostic=class_agnostic)
    features = jnp.ones((2, 3, 7, 7, 4))
    (logits, deltas), variables = jax.jit(head.init_with_output)(jax.random.key(0), features)
    assert logits.shape == (2, 3, 7) and deltas.shape == (2, 3, boxes, 4)
    assert variables["params"]["fc0"]["kernel"].shape == (7, 7, 4, 8)
    # Every region is computed by itself, whatever the leading axes are.
    alone, _ = head.apply(variables, features[1, 2])
    np.testing.assert_allclose(alone, logits[1, 2], rtol=1e-5)


def test_box_head_computes_its_layers_in_turn():
    head = BoxHead(num_classes=2, hidden=5)
    features = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    variables = jax.jit(head.init)(jax.random.key(1), features)
    params = jax.tree.map(np.asarray, variables["params"])
    x = features.reshape(3, -1)
    for name in ("fc0", "fc1"):
        layer = params[name]
        x = np.maximum(x @ layer["kernel"].reshape(-1, 5) + layer["bias"], 0)
    logits, deltas = head.apply(variables, features)
    np.testing.assert_allclose(logits, x @ params["logits"]["kernel"], rtol=1e-5, atol=1e-6)
    wanted = (x @ params["deltas"]["kernel"]).reshape(3, 2, 4)
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
    return x.reshape(-1) @ layer["kernel"].reshape(-1, len(layer["bias"])) + layer["bias"]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("convs, fcs", [((2, 0, 0), (1, 1, 0)), ((1, 1, 2), (0, 2, 0))])
def test_box_head_branches_equal_plain_sums(convs, fcs, pooled):
    names = ("shared", "class", "box")
    parts = {f"{name}_convs": count for name, count in zip(names, convs, strict=True)}
    parts |= {f"{name}_fcs": count for name, count in zip(names, fcs, strict=True)}
    head = BoxHead(num_classes=2, hidden=5, conv_channels=6, average_pool=pooled, **parts)
    features = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))
    (logits, deltas), variables = jax.jit(head.init_with_output)(jax.random.key(1), features)
    params = jax.tree.map(np.asarray, variables["params"])
    assert sum("conv" in name for name in params) == sum(convs)
    assert sum("fc" in name for name in params) == sum(fcs)
    shared = slow_branch(np.asarray(features[1, 2]), params, "", convs[0], fcs[0], pooled=pooled)
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
    features = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    (logits, _), variables = jax.jit(head.init_with_output)(jax.random.key(1), features)
    assert "bias" not in variables["params"]["conv0"] and "norm0" in variables["params"]
    alone, _ = head.apply(variables, features[2:3])
    np.testing.assert_allclose(alone, logits[2:3], rtol=1e-4, atol=1e-6)


def test_dropout_follows_the_keys_of_the_images_and_spares_calls_without_keys():
    head = BoxHead(num_classes=2, hidden=64, dropout=0.25)
    features = jax.random.normal(jax.random.key(0), (3, 5, 2, 2, 4))
    plain, variables = jax.jit(head.init_with_output)(jax.random.key(1), features)
    apply, keys = jax.jit(head.apply), jax.random.split(jax.random.key(2), 3)
    dropped, _ = apply(variables, features, keys)
    assert not np.allclose(dropped, plain[0])
    turned, _ = apply(variables, jnp.roll(features, 1, axis=0), jnp.roll(keys, 1))
    np.testing.assert_allclose(turned, jnp.roll(dropped, 1, axis=0), rtol=1e-5, atol=1e-6)
    still = BoxHead(num_classes=2, hidden=64).apply(variables, features)
    np.testing.assert_allclose(still[0], plain[0], rtol=1e-6)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    head = BoxHead(num_classes=1, hidden=400, shared_fcs=1, dropout=0.25)
    features = jnp.ones((1, 8, 1, 1, 2))
    params = jax.jit(head.init)(jax.random.key(0), features)["params"]
    params["fc0"] = {"kernel": jnp.zeros((1, 1, 2, 400)), "bias": jnp.ones(400)}
    params["logits"]["kernel"] = jnp.ones((400, 2))  # Counts what is left, grown by 4 / 3.
    logits, _ = head.apply({"params": params}, features, jax.random.split(jax.random.key(1), 1))
    kept = np.asarray(logits[0, :, 0]) * 0.75 / 400
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
    params = jax.jit(head.init)(jax.random.key(0), jnp.ones((1, 7, 7, 8)))["params"]
    assert np.std(params["logits"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    assert np.std(params["deltas"]["kernel"]) == pytest.approx(0.001, rel=0.1)
    # Xavier uniform: variance 2 / (fan in + fan out).
    assert np.var(params["fc0"]["kernel"]) == pytest.approx(2 / (7 * 7 * 8 + 64), rel=0.1)


def test_bfloat16_heads_return_float32(rpn):
    _, variables, maps = rpn
    half_maps = tuple(x.astype(jnp.bfloat16) for x in maps)
    found = RPNHead(num_anchors=3, channels=5, dtype=jnp.bfloat16).apply(variables, half_maps)
    wanted = RPNHead(num_anchors=3, channels=5).apply(variables, maps)
    for half, full in zip(found, wanted, strict=True):
        assert half.dtype == jnp.float32
        np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    head = BoxHead(num_classes=2, hidden=8, dtype=jnp.bfloat16)
    outputs, box_variables = head.init_with_output(jax.random.key(0), jnp.ones((3, 2, 2, 4)))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((outputs, box_variables)))
