import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, PartitionSpec
from models.drawn_variables import draw, normal

from jaxdet.interop import from_torch
from jaxdet.models import ResNet
from jaxdet.models.resnet import Stage

TOLERANCE = dict(rtol=1e-4, atol=1e-5)
LEVELS = ("C2", "C3", "C4", "C5")
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def shapes(model):
    """The variables' shapes, without computing anything."""
    return jax.eval_shape(lambda key, x: model.init(key, x, train=True), jax.random.key(0), IMAGE)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def load(model, arrays):
    """The variables of a golden file's backbone."""
    weights = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    tree = {collection: {"backbone": tree} for collection, tree in shapes(model).items()}
    variables, report = from_torch(weights, tree)
    assert not report.missing
    return {collection: tree["backbone"] for collection, tree in variables.items()}


@pytest.fixture(scope="module")
def resnet18(golden):
    """A narrow ResNet-18, its golden arrays and weights."""
    arrays = golden("mmdet_resnet18_fpn")
    model = ResNet(depth=18, width=int(arrays["base_channels"]), norm="batch")
    return model, arrays, load(model, arrays)


@functools.cache
def jitted(model, train):
    mutable = ["batch_stats"] if train else False
    return jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=mutable))


def apply(model, variables, x, *, train):
    return jax.device_get(jitted(model, train)(variables, x))


@pytest.mark.parametrize(
    "depth, style, name",
    [
        (18, "pytorch", "mmdet_resnet18_fpn"),
        (50, "pytorch", "mmdet_resnet50_fpn"),
        (50, "caffe", "mmdet_resnet50_caffe_fpn"),
    ],
)
def test_maps_equal_the_golden_ones(golden, depth, style, name):
    arrays = golden(name)
    weights = golden("mmdet_resnet50_fpn") if style == "caffe" else arrays
    model = ResNet(depth=depth, width=int(arrays["base_channels"]), style=style)
    maps = apply(model, load(model, weights), nhwc(arrays["input"]), train=False)
    for level, found in zip(LEVELS, maps, strict=True):
        np.testing.assert_allclose(found, nhwc(arrays[f"out/{level}"]), **TOLERANCE)


def test_training_with_batch_norm_equals_the_golden_maps_and_statistics(resnet18):
    model, arrays, variables = resnet18
    x = nhwc(arrays["bn_train/input"])
    maps, updates = apply(model, variables, x, train=True)
    for level, found in zip(LEVELS, maps, strict=True):
        np.testing.assert_allclose(found, nhwc(arrays[f"bn_train/{level}"]), **TOLERANCE)

    after = {
        k.removeprefix("bn_train/after/"): v for k, v in arrays.items() if "bn_train/after" in k
    }
    tree = {"batch_stats": {"backbone": updates["batch_stats"]}}
    wanted, report = from_torch(after, tree)
    assert not report.missing and not report.unused
    before, found, wanted = (
        flatten_dict(t, sep="/")
        for t in (
            variables["batch_stats"],
            updates["batch_stats"],
            wanted["batch_stats"]["backbone"],
        )
    )
    images, height, width, _ = x.shape
    sizes = {"stem_norm": 2} | {f"layer{i}": 2 ** (i + 1) for i in range(1, 5)}
    pixels = {name: images * (height // s) * (width // s) for name, s in sizes.items()}
    for path, value in wanted.items():
        if path.endswith("var"):
            # Torch averages the unbiased variance, with n - 1 in the denominator.
            n = pixels[path.split("/")[0]]
            value = 0.9 * before[path] + (value - 0.9 * before[path]) * (n - 1) / n
        np.testing.assert_allclose(found[path], value, err_msg=path, **TOLERANCE)


def test_frozen_norm_keeps_its_statistics_while_training(resnet18):
    _, arrays, variables = resnet18
    model = ResNet(depth=18, width=4, norm="frozen")
    maps, updates = apply(model, variables, nhwc(arrays["input"]), train=True)
    np.testing.assert_allclose(maps[3], nhwc(arrays["out/C5"]), **TOLERANCE)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("frozen_stages", [1, 3])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(resnet18, frozen_stages):
    _, arrays, variables = resnet18
    model = ResNet(depth=18, width=4, norm="batch", frozen_stages=frozen_stages)

    def loss(params, x):
        maps, updates = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return sum(jnp.sum(m**2) for m in maps), updates["batch_stats"]

    x = nhwc(arrays["bn_train/input"])
    slope = jax.jit(jax.grad(loss, has_aux=True))
    gradients, stats = jax.device_get(slope(variables["params"], x))

    def is_frozen(path):
        return any(path.startswith(f"{prefix}/") for prefix in model.frozen)

    for path, gradient in flatten_dict({"params": gradients}, sep="/").items():
        assert np.any(gradient) != is_frozen(path), path
    before = flatten_dict(variables, sep="/")
    for path, value in flatten_dict({"batch_stats": stats}, sep="/").items():
        assert np.array_equal(value, before[path]) == is_frozen(path), path


def test_what_is_frozen_is_the_stem_and_the_stages_or_all_statistics():
    assert ResNet(norm="batch").frozen == ()
    parts = ("stem_conv", "stem_norm", "layer1", "layer2")
    params = tuple(f"params/{part}" for part in parts)
    statistics = tuple(f"batch_stats/{part}" for part in parts)
    assert ResNet(norm="batch", frozen_stages=2).frozen == params + statistics
    assert ResNet(norm="frozen", frozen_stages=2).frozen == (*params, "batch_stats")
    with pytest.raises(ValueError, match="found 5"):
        _ = ResNet(frozen_stages=5).frozen


def test_caffes_weights_read_bgr_and_others_say_it_by_their_names():
    assert ResNet(style="caffe").bgr_weights is True
    assert ResNet().bgr_weights is None


# The models of torchvision less their classifiers, 1000 x (512 or 2048) + 1000.
@pytest.mark.parametrize(
    "depth, count",
    [
        (18, 11_689_512 - 513_000),
        (34, 21_797_672 - 513_000),
        (50, 25_557_032 - 2_049_000),
        (101, 44_549_160 - 2_049_000),
    ],
)
def test_parameter_counts_equal_torchvisions(depth, count):
    params = shapes(ResNet(depth=depth))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_all_norms_have_the_same_parameters_and_group_norm_no_statistics():
    group, frozen, batch, sync = (
        shapes(ResNet(depth=18, width=8, norm=norm))
        for norm in ("group", "frozen", "batch", "sync")
    )
    assert frozen == batch == sync
    assert group == {"params": frozen["params"]}


def test_synchronised_norm_on_two_devices_equals_batch_norm_on_the_whole_batch(resnet18):
    batch_model, arrays, variables = resnet18
    model = ResNet(depth=18, width=4, norm="sync", axis_name="batch")
    x = nhwc(arrays["bn_train/input"])
    on_each = PartitionSpec("batch")
    split = jax.jit(
        jax.shard_map(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
            mesh=Mesh(jax.devices()[:2], "batch"),
            in_specs=(PartitionSpec(), on_each),
            out_specs=(on_each, PartitionSpec()),
            check_vma=False,
        )
    )
    found = split(variables, x)
    wanted = apply(batch_model, variables, x, train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, wanted)


def test_bfloat16_maps_are_close_and_parameters_stay_float32(resnet18):
    _, arrays, variables = resnet18
    model, x = ResNet(depth=18, width=4, norm="batch", dtype=jnp.bfloat16), arrays["bn_train/input"]
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    maps, updates = jax.eval_shape(train, variables, nhwc(x))
    assert all(half.dtype == jnp.bfloat16 for half in maps)
    found = jax.jit(lambda v, x: train(v, x)[0][1])(variables, nhwc(x))  # The others cost seconds.
    wanted = nhwc(arrays["bn_train/C3"])
    assert np.abs(np.float32(found) - wanted).mean() < 0.02 * np.abs(wanted).mean()
    leaves = jax.tree.leaves((shapes(model), updates))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.parametrize("zero_init", [False, True])
def test_zero_init_residual_makes_blocks_start_as_their_shortcut(zero_init):
    x = normal(np.random.default_rng(1), 1, 4, 4, 4)
    settings = dict(num_blocks=2, features=4, stride=1, bottleneck=False, norm="batch")
    settings |= dict(style="pytorch", frozen=False, axis_name=None, norm_epsilon=1e-5)
    stage = Stage(**settings, zero_init_residual=zero_init, remat=False, dtype=jnp.float32)
    init = functools.partial(stage.init, train=False)

    @jax.jit  # Only what is returned is compiled: all but the kernels.
    def constants(key, x):
        return jax.tree.map_with_path(
            lambda path, leaf: None if path[-1].key == "kernel" else leaf, init(key, x)
        )

    variables = jax.tree.map(
        lambda drawn, constant: drawn if constant is None else constant,
        draw(init, x),
        constants(jax.random.key(1), x),
    )
    y = apply(stage, variables, x, train=False)
    assert np.array_equal(y, np.maximum(x, 0)) == zero_init
    for block in variables["params"].values():
        assert np.all(block["norm1"]["scale"] == 1)
        assert np.all(block["norm2"]["scale"] == 1 - zero_init)


def test_the_epsilon_is_added_to_every_variance():
    plain = ResNet(depth=10, width=2, norm_epsilon=0.5)
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    variables = draw(functools.partial(plain.init, train=False), image)
    expected = apply(plain, variables, image, train=False)
    stats = flatten_dict(variables["batch_stats"])
    stats = {path: leaf + 0.5 * (path[-1] == "var") for path, leaf in stats.items()}
    variables = {**variables, "batch_stats": unflatten_dict(stats)}
    found = apply(plain.clone(norm_epsilon=0.0), variables, image, train=False)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings, found", [({"depth": 19}, "19"), ({"style": "tf"}, "tf"), ({"frozen_stages": 5}, "5")]
)
def test_wrong_settings_are_named(settings, found):
    with pytest.raises(ValueError, match=f"found '?{found}"):
        shapes(ResNet(**settings))


def test_rematerialised_blocks_give_the_same_gradients_and_statistics():
    x = jnp.asarray(normal(np.random.default_rng(0), 2, 32, 32, 3))
    found = []
    for remat in (False, True):
        model = ResNet(depth=10, width=4, norm="batch", frozen_stages=1, remat=remat)
        variables = draw(functools.partial(model.init, train=True), x)

        def loss(params, model=model, variables=variables):
            tree = {**variables, "params": params}
            maps, updates = model.apply(tree, x, train=True, mutable=["batch_stats"])
            return sum((level**2).mean() for level in maps), updates

        step = jax.value_and_grad(loss, has_aux=True)
        found.append(jax.jit(step)(variables["params"]))
        # What is computed again stands in the backward pass behind such a barrier.
        assert ("remat" in str(jax.make_jaxpr(step)(variables["params"]))) == remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
