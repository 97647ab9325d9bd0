import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, PartitionSpec

from jaxdet.interop import from_torch
from jaxdet.models import PAFPN, CSPDarknet, YOLOXHead, cspdarknet
from jaxdet.models.cspdarknet import ConvBlock, CSPLayer, focus, spatial_pyramid
from jaxdet.models.layers import activate, upsample_2x

GOLDENS = Path(__file__).parent.parent / "goldens"
# Depth, width and published millions of parameters for 80 classes.
SIZES = {
    "nano": (0.33, 0.25, 0.91),
    "tiny": (0.33, 0.375, 5.06),
    "s": (0.33, 0.50, 9.0),
    "m": (0.67, 0.75, 25.3),
    "l": (1.0, 1.0, 54.2),
    "x": (1.33, 1.25, 99.1),
}


class Network(nn.Module):
    """Backbone, neck and head, under the names that they have in a detector."""

    depth: float
    width: float
    num_classes: int
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        names = ("depthwise", "activation", "norm", "dtype")
        common = {name: getattr(self, name) for name in names}
        self.backbone = CSPDarknet(depth=self.depth, width=self.width, **common)
        self.neck = PAFPN(depth=self.depth, **common)
        self.head = YOLOXHead(self.num_classes, width=self.width, **common)

    def __call__(self, x, *, train=False):
        maps = self.backbone(x, train=train)
        pyramid = self.neck(maps, train=train)
        return maps, pyramid, self.head(pyramid, train=train)


def shapes(model, size=(64, 64), *, train=False):
    """The outputs' and the variables' shapes, without computing anything."""
    return jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, train=train),
        jax.random.key(0),
        jnp.zeros((1, *size, 3)),
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def reference(golden):
    """The network of the golden file, its arrays and its variables."""
    arrays = golden("yolox_model")
    model = Network(float(arrays["depth"]), float(arrays["width"]), int(arrays["num_classes"]))
    weights = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    variables, report = from_torch(weights, shapes(model)[1], bgr=False)
    assert not report.missing and not report.unused
    return model, arrays, variables


@pytest.fixture(scope="module")
def outputs(reference):
    """What the network computes for the golden images, and what its stem does."""
    model, arrays, variables = reference

    @jax.jit
    def run(variables, x):
        outputs, captured = model.apply(
            variables, x, capture_intermediates=lambda m, _: m.name == "stem"
        )
        return *outputs, captured["intermediates"]["backbone"]["stem"]["__call__"][0]

    return run(variables, nhwc(arrays["input_net"]))


def assert_close(found, wanted):
    """Equal but for rounding: of float64, ours and torch's both miss by 1e-5 of the spread."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-5 * np.std(wanted))


def test_the_norms_have_the_golden_settings(reference):
    _, arrays, _ = reference
    assert cspdarknet.NORM_EPSILON == pytest.approx(float(arrays["bn_eps"]))
    assert cspdarknet.NORM_MOMENTUM == pytest.approx(1 - float(arrays["bn_momentum"]))


def test_the_maps_of_backbone_and_neck_equal_the_golden_ones(reference, outputs):
    _, arrays, _ = reference
    maps, pyramid, _, stem = outputs
    assert_close(stem, nhwc(arrays["focus_out"]))
    for level, found in enumerate(maps, 3):
        assert_close(found, nhwc(arrays[f"backbone/dark{level}"]))
    for level, found in enumerate(pyramid):
        assert_close(found, nhwc(arrays[f"pafpn/{level}"]))


def test_the_heads_outputs_equal_the_golden_ones_level_by_level(reference, outputs):
    _, arrays, _ = reference
    logits, boxes, objectness = outputs[2]

    def flat(kind):
        maps = [arrays[f"head_raw_eval/{kind}{level}"] for level in range(3)]
        flattened = [x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]) for x in maps]
        return np.concatenate(flattened, axis=1)

    assert_close(logits, flat("cls"))
    assert_close(boxes, flat("reg"))
    assert_close(objectness, flat("obj")[..., 0])


def test_bfloat16_outputs_are_float32_and_close(reference, outputs):
    model, _, variables = reference
    (maps, pyramid, found), initial = shapes(model.clone(dtype=jnp.bfloat16))
    assert all(x.dtype == jnp.bfloat16 for x in (*maps, *pyramid))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((found, initial)))
    head = YOLOXHead(model.num_classes, width=model.width, dtype=jnp.bfloat16)
    finest = outputs[1][0]
    own = {collection: tree["head"] for collection, tree in variables.items()}
    found = jax.jit(lambda v: head.apply(v, (finest,), train=False))(own)
    for half, wanted in zip(found, outputs[2], strict=True):
        wanted = np.asarray(wanted)[:, : half.shape[1]]
        difference = np.abs(half - wanted).mean()
        assert 0 < difference < 0.05 * np.std(wanted)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_equal_the_published_ones(name):
    depth, width, millions = SIZES[name]
    params = shapes(Network(depth, width, 80, depthwise=name == "nano"))[1]["params"]
    digits = len(str(millions).split(".")[1])
    assert round(count(params) / 1e6, digits) == millions
    keys = json.loads((GOLDENS / "yolox_s_keys.json").read_text())
    if theirs := keys.get(f"yolox_{name}"):
        running = ("running_mean", "running_var", "num_batches_tracked")
        learned = [shape for key, shape in theirs.items() if not key.endswith(running)]
        assert count(params) == sum(np.prod(shape) for shape in learned)


@pytest.mark.parametrize("size", [(64, 96), (40, 58)])
def test_maps_have_their_strides_rounded_up(size):
    (maps, pyramid, (logits, boxes, objectness)), _ = shapes(Network(0.33, 0.125, 3), size)
    wanted = [tuple(-(-side // stride) for side in size) for stride in CSPDarknet.strides]
    assert [x.shape[1:3] for x in maps] == [x.shape[1:3] for x in pyramid] == wanted
    points = sum(height * width for height, width in wanted)
    assert logits.shape == (1, points, 3) and boxes.shape == (1, points, 4)
    assert objectness.shape == (1, points)


def test_the_neck_wants_three_maps():
    assert PAFPN().strides((8, 16, 32)) == (8, 16, 32)
    with pytest.raises(ValueError, match=r"PAFPN wants three maps; found maps of strides \(16,\)"):
        PAFPN().strides((16,))


def test_the_norm_is_chosen_everywhere_and_group_norm_has_no_statistics():
    group, batch = (shapes(Network(0.33, 0.125, 2, norm=n))[1] for n in ("group", "batch"))
    assert group == {"params": batch["params"]}
    # Every convolution has a norm, but for the three outputs of each of three levels.
    leaves = [path[-1] for path in flatten_dict(batch["params"])]
    assert leaves.count("scale") == leaves.count("kernel") - 3 * 3
    assert len(flatten_dict(batch["batch_stats"])) == 2 * leaves.count("scale")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(depth=0.0), "depth must be positive; found 0.0"),
        (dict(width=0.01), "width must leave 1 of 64 channels or more; found 0.01"),
        (dict(norm="bach"), "norm must be one of frozen, batch, sync, group; found 'bach'"),
        (dict(activation="elu"), "activation must be one of silu, relu, leaky_relu; found 'elu'"),
    ],
)
def test_impossible_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        shapes(Network(**(dict(depth=0.33, width=0.125, num_classes=2) | settings)))


def test_focus_puts_left_before_right_and_top_before_bottom():
    x = jnp.arange(16.0).reshape(1, 2, 4, 2)  # Pixel (y, x) holds 8 y + 2 x and one more.
    np.testing.assert_array_equal(
        focus(x)[0, 0], [[0, 1, 8, 9, 2, 3, 10, 11], [4, 5, 12, 13, 6, 7, 14, 15]]
    )
    with pytest.raises(ValueError, match="must be even; found 2 x 3"):
        focus(x[:, :, :3])


def slow_pyramid(x, weights):
    """Maxima of windows, and the gradient of their weighted sum, which goes to the largest."""
    (height, width, channels), gradient = x.shape, np.zeros_like(x)
    maps = []
    for size, weight in zip((1, 5, 9, 13), np.split(weights, 4, axis=-1), strict=True):
        maps.append(np.zeros_like(x))
        for y, column, c in np.ndindex(height, width, channels):
            top, left = max(y - size // 2, 0), max(column - size // 2, 0)
            window = x[top : y + size // 2 + 1, left : column + size // 2 + 1, c]
            row, offset = np.unravel_index(window.argmax(), window.shape)
            maps[-1][y, column, c] = window.max()
            gradient[top + row, left + offset, c] += weight[y, column, c]
    return np.concatenate(maps, axis=-1), gradient


def test_the_pyramid_of_pooled_maps_equals_maxima_of_windows_forward_and_backward():
    rng = np.random.default_rng(0)
    # Lower than every window, wider than the two smaller ones; no two values are equal, and
    # all are below 0, which padding must not win from.
    x = rng.permutation(np.arange(-72, 0)).reshape(1, 3, 12, 2).astype(np.float32)
    weights = rng.normal(size=(1, 3, 12, 8)).astype(np.float32)

    @jax.jit
    def run(x, weights):
        maps, pull = jax.vjp(spatial_pyramid, x)
        return maps, pull(weights)[0]

    maps, gradient = run(x, weights)
    wanted_maps, wanted_gradient = slow_pyramid(x[0], weights[0])
    np.testing.assert_array_equal(maps[0], wanted_maps)
    np.testing.assert_allclose(gradient[0], wanted_gradient, rtol=1e-5, atol=1e-5)


def test_upsampling_repeats_pixels_and_cuts_the_odd_ones():
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    found = upsample_2x(x, (3, 4))
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]])
    maps = tuple(jnp.zeros((1, side, side, 4)) for side in (8, 4, 3))
    with pytest.raises(ValueError, match="3 x 3 is not half of the finer 4 x 4"):
        jax.eval_shape(lambda: PAFPN().init(jax.random.key(0), maps, train=False))


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("silu", [-1 / (1 + np.e), 0, 2 / (1 + np.exp(-2))]),
        ("relu", [0, 0, 2]),
        ("leaky_relu", [-0.1, 0, 2]),
    ],
)
def test_activations_by_hand(kind, wanted):
    x = jnp.asarray([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(activate(x, kind), wanted, rtol=1e-6)


def slow_layer(x, kernel, params, stats, *, stride=1):
    """Convolution, batch norm by running statistics and leaky ReLU of one map, by loops."""
    k, _, inputs, features = kernel.shape
    groups = x.shape[-1] // inputs
    padded = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = (-(-side // stride) for side in x.shape[:2])
    y = np.zeros((height, width, features))
    for row, column, o in np.ndindex(*y.shape):
        top, left, first = row * stride, column * stride, o // (features // groups) * inputs
        window = padded[top : top + k, left : left + k, first : first + inputs]
        y[row, column, o] = np.sum(window * kernel[..., o])
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]
    return np.where(y > 0, y, 0.1 * y)


def draw(shapes, seed=0):
    """Positive numbers about 1 for variances and scales, others about 0."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        centre = path[-1].key in ("var", "scale")
        return jnp.asarray(rng.uniform(centre - 0.5, centre + 0.5, shape.shape), jnp.float32)

    return jax.tree.map_with_path(leaf, shapes)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_block_convolves_channels_alone_and_then_mixes_them(stride):
    block = ConvBlock(5, 3, stride, depthwise=True, activation="leaky_relu")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 4, 3)), jnp.float32)
    variables = draw(jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False)))
    params, stats = (jax.tree.map(np.asarray, variables[k]) for k in ("params", "batch_stats"))
    y = np.asarray(x[0])
    for prefix, step in (("depthwise", stride), ("pointwise", 1)):
        kernel, norm = params[f"{prefix}_conv"]["kernel"], f"{prefix}_norm"
        y = slow_layer(y, kernel, params[norm], stats[norm], stride=step)
    assert params["depthwise_conv"]["kernel"].shape == (3, 3, 1, 3)
    found = jax.jit(lambda v: block.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(found[0], y, rtol=1e-4, atol=1e-5)


def test_1x1_blocks_and_the_stem_are_not_split():
    _, variables = shapes(Network(0.33, 0.125, 2, depthwise=True))
    params = variables["params"]
    whole = {"conv", "norm"}
    split = {"depthwise_conv", "depthwise_norm", "pointwise_conv", "pointwise_norm"}
    assert set(params["backbone"]["stem"]) == set(params["head"]["stem0"]) == whole
    assert set(params["backbone"]["dark3"]["csp"]["block0_conv1"]) == whole
    for block in (
        params["backbone"]["dark2"]["down"],
        params["backbone"]["dark3"]["csp"]["block0_conv2"],
        params["neck"]["down3"],
        params["neck"]["top_down4"]["block0_conv2"],
        params["head"]["class_conv2_1"],
    ):
        assert set(block) == split


def test_a_csp_layer_adds_its_shortcuts_where_it_has_them():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 3, 4)), jnp.float32)
    conv = functools.partial(ConvBlock, activation="leaky_relu")
    both = [CSPLayer(4, 2, conv, shortcut=shortcut) for shortcut in (False, True)]
    variables = draw(jax.eval_shape(lambda: both[0].init(jax.random.key(1), x, train=False)))
    # Blocks whose last scale and bias are 0 give 0: with a shortcut, their input.
    params, stats = variables["params"], variables["batch_stats"]
    for i in range(2):
        norm = params[f"block{i}_conv2"]["norm"]
        norm |= {name: jnp.zeros_like(value) for name, value in norm.items()}
    without, with_them = (
        jax.jit(lambda v, layer=layer: layer.apply(v, x, train=False))(variables) for layer in both
    )

    def slow(name, x):
        layer = jax.tree.map(np.asarray, {**params[name], "stats": stats[name]["norm"]})
        return slow_layer(x, layer["conv"]["kernel"], layer["norm"], layer["stats"])

    first, second = (slow(name, np.asarray(x[0])) for name in ("conv1", "conv2"))
    for found, half in ((without, np.zeros_like(first)), (with_them, first)):
        wanted = slow("conv3", np.concatenate([half, second], axis=-1))
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_training_step_keeps_97_percent_of_the_statistics():
    block = ConvBlock(2, 1, activation="relu")
    # So small that epsilon matters.
    x = np.random.default_rng(0).normal(0.1, 0.05, (2, 3, 4, 2)).astype(np.float32)
    variables = {
        "params": {
            "conv": {"kernel": jnp.eye(2)[None, None]},
            "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 3.0)},
        },
        "batch_stats": {"norm": {"mean": jnp.ones(2), "var": jnp.ones(2)}},
    }
    apply = jax.jit(lambda v, x: block.apply(v, x, train=True, mutable=["batch_stats"]))
    y, updates = apply(variables, x)
    mean, var = np.mean(x, axis=(0, 1, 2)), np.var(x, axis=(0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-3) + 3, rtol=1e-4)
    norm = updates["batch_stats"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.97 + 0.03 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm["var"], 0.97 + 0.03 * var, rtol=1e-5)


def test_synchronised_norm_on_two_devices_equals_batch_norm_on_the_whole_batch():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 3, 2)), jnp.float32)
    block, whole = ConvBlock(3, 3, norm="sync", axis_name="batch"), ConvBlock(3, 3)
    variables = draw(jax.eval_shape(lambda: whole.init(jax.random.key(0), x, train=True)))
    on_each = PartitionSpec("batch")
    split = jax.shard_map(
        lambda v, x: block.apply(v, x, train=True, mutable=["batch_stats"]),
        mesh=Mesh(jax.devices()[:2], "batch"),
        in_specs=(PartitionSpec(), on_each),
        out_specs=(on_each, PartitionSpec()),
        check_vma=False,
    )
    found = jax.jit(split)(variables, x)
    wanted = jax.jit(lambda v: whole.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    jax.tree.map(assert_close, found, wanted)


def test_the_head_starts_with_the_prior_and_torchs_spread():
    head, map3 = YOLOXHead(num_classes=40, width=0.25), jnp.zeros((1, 2, 2, 16))

    @jax.jit  # Only what is returned is compiled.
    def init(key):
        params = head.init(key, (map3,), train=False)["params"]
        biases = {name: params[f"{name}0"]["bias"] for name in ("logits", "boxes", "objectness")}
        return biases, params["class_conv0_0"]["conv"]["kernel"]

    biases, kernel = jax.tree.map(np.asarray, init(jax.random.key(0)))
    for name in ("logits", "objectness"):
        np.testing.assert_allclose(1 / (1 + np.exp(-biases[name])), 0.01, rtol=1e-5)
    assert not np.any(biases["boxes"])
    bound = 1 / np.sqrt(3 * 3 * 64)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.02)
