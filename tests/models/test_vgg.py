import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from models.drawn_variables import draw, normal

from jaxdet.models.layers import max_pool_2x2_stride_2
from jaxdet.models.vgg import VGG

GOLDENS = Path(__file__).parent.parent / "goldens"


def slow_conv(x, kernel, bias):
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width = x.shape[:2]
    taps = [
        padded[dy : dy + height, dx : dx + width] @ kernel[dy, dx]
        for dy in range(3)
        for dx in range(3)
    ]
    return np.maximum(sum(taps) + bias, 0)


def slow_pool(x):
    height, width = x.shape[0] // 2, x.shape[1] // 2
    windows = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return windows.max(axis=(1, 3))


def test_its_map_equals_plain_sums():
    model, image = VGG(width=2), normal(np.random.default_rng(1), 1, 40, 52, 3)
    variables = draw(partial(model.init, train=False), image)
    (found,) = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    x, params = image[0], variables["params"]
    for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
        x = x if stage == 1 else slow_pool(x)
        for i in range(1, convs + 1):
            x = slow_conv(x, **params[f"layer{stage}"][f"conv{i}"])
    assert found.shape == (1, 2, 3, 16)  # Floors of 40 / 16 and 52 / 16.
    np.testing.assert_allclose(found[0], x, rtol=1e-4, atol=1e-5)


def test_its_parameters_have_torchvisions_shapes():
    keys = json.loads((GOLDENS / "torchvision_keys.json").read_text())["vgg16"]
    theirs = [shape for name, shape in keys.items() if name.startswith("features.")]
    shapes = jax.eval_shape(
        lambda x: VGG().init(jax.random.key(0), x, train=False), jnp.zeros((1, 32, 32, 3))
    )
    ours = flatten_dict(shapes["params"])
    kernels = [ours[path].shape for path in sorted(ours) if path[-1] == "kernel"]
    wanted = [(h, w, i, o) for o, i, h, w in (shape for shape in theirs if len(shape) == 4)]
    assert kernels == wanted
    assert sum(leaf.size for leaf in ours.values()) == sum(np.prod(shape) for shape in theirs)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(norm):
    model = VGG(width=2, norm=norm, frozen_stages=2)
    image = normal(np.random.default_rng(1), 2, 32, 32, 3)
    variables = draw(partial(model.init, train=False), image)
    stats = {k: v for k, v in variables.items() if k != "params"}

    def total(params, image):
        (x,), updates = model.apply(
            {"params": params, **stats}, image, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(x**2), updates

    slope = jax.jit(jax.grad(total, has_aux=True))
    gradients, updates = jax.device_get(slope(variables["params"], image))
    assert "params/layer2" in model.frozen and "params/layer3" not in model.frozen
    for path, gradient in flatten_dict({"params": gradients}, sep="/").items():
        assert np.any(gradient) != path.startswith(model.frozen), path
    before = flatten_dict(stats, sep="/")
    for path, value in flatten_dict(dict(updates), sep="/").items():
        assert np.array_equal(value, before[path]) == path.startswith(model.frozen), path


def test_a_norm_takes_the_place_of_the_bias():
    shapes = jax.eval_shape(
        lambda x: VGG(width=4, norm="group").init(jax.random.key(0), x, train=False),
        jnp.zeros((1, 16, 16, 3)),
    )
    stage = shapes["params"]["layer1"]
    assert "bias" not in stage["conv1"] and set(stage["norm1"]) == {"scale", "bias"}


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(norm="frozen"), "norm must be one of none, batch, sync, group; found 'frozen'"),
        (dict(frozen_stages=6), "frozen_stages must be 0..5; found 6"),
    ],
)
def test_impossible_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: VGG(**settings).init(jax.random.key(0), x, train=False),
            jnp.zeros((1, 16, 16, 3)),
        )


def test_pooling_drops_an_odd_row_and_column():
    x = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(jax.jit(max_pool_2x2_stride_2)(x)[0, :, :, 0], [[6, 8]])
