import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.drawn_variables import draw

from jaxdet.interop import from_torch
from jaxdet.models import FPN

TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def outputs(fpn, arrays, prefix):
    """The pyramid of a golden file's backbone maps, with the weights under `prefix`."""
    maps = tuple(nhwc(arrays[f"out/{level}"]) for level in ("C2", "C3", "C4", "C5"))
    tree = jax.eval_shape(fpn.init, jax.random.key(0), maps)
    weights = {
        "neck." + k.removeprefix(prefix).removeprefix("neck."): v
        for k, v in arrays.items()
        if k.startswith(prefix) and "backbone" not in k
    }
    variables, report = from_torch(weights, {"params": {"neck": tree["params"]}})
    assert not report.missing and not report.unused
    return jax.jit(fpn.apply)({"params": variables["params"]["neck"]}, maps)


@pytest.mark.parametrize(
    "name, weights",
    [
        ("mmdet_resnet18_fpn", ""),
        ("mmdet_resnet50_fpn", ""),
        ("mmdet_resnet50_caffe_fpn", "mmdet_resnet50_fpn"),
    ],
)
def test_maps_equal_the_golden_ones(golden, name, weights):
    arrays = golden(weights or name) | golden(name)
    found = outputs(FPN(channels=int(arrays["fpn_out_channels"])), arrays, "param/")
    for level, x in zip(("P2", "P3", "P4", "P5", "P6"), found, strict=True):
        np.testing.assert_allclose(x, nhwc(arrays[f"out/{level}"]), **TOLERANCE)


@pytest.mark.parametrize("extra", ["on_input", "on_lateral", "on_output"])
def test_extra_convolutions_equal_the_golden_ones(golden, extra):
    arrays = golden("mmdet_resnet18_fpn")
    channels = int(arrays["fpn_out_channels"])
    relu = extra == "on_output"
    fpn = FPN(channels=channels, start_level=1, extra=extra, relu_before_extra=relu)
    found = outputs(fpn, arrays, f"extra_{extra}/param/")
    for level, x in zip(("P3", "P4", "P5", "P6", "P7"), found, strict=True):
        np.testing.assert_allclose(x, nhwc(arrays[f"extra_{extra}/{level}"]), **TOLERANCE)


def test_odd_sizes_take_the_nearest_coarse_pixel():
    sizes = ((5, 7), (3, 4))
    fpn = FPN(channels=1, num_levels=2)
    maps = tuple(np.zeros((1, *size, 1), np.float32) for size in sizes)
    params = jax.tree.map(np.zeros_like, draw(fpn.init, maps)["params"])
    for name in ("lateral0", "lateral1"):
        params[name]["kernel"][:] = 1
    for name in ("output0", "output1"):
        params[name]["kernel"][1, 1] = 1
    coarse = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    fine, _ = jax.device_get(jax.jit(fpn.apply)({"params": params}, (maps[0], coarse)))
    rows, columns = np.arange(5) * 3 // 5, np.arange(7) * 4 // 7
    np.testing.assert_array_equal(fine[0, :, :, 0], coarse[0, :, :, 0][rows][:, columns])


@pytest.mark.parametrize(
    "settings, sizes, message",
    [
        ({"num_levels": 1}, ((4, 4), (2, 2)), "num_levels 1"),
        ({"start_level": 2}, ((4, 4), (2, 2)), "start_level 2"),
        ({"extra": "on_top"}, ((4, 4), (2, 2)), "found 'on_top'"),
        ({}, ((6, 6), (2, 2)), "2 x 2 is not half of the finer 6 x 6"),
    ],
)
def test_maps_and_levels_that_do_not_fit_are_named(settings, sizes, message):
    maps = tuple(jnp.zeros((1, *size, 2)) for size in sizes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(FPN(channels=2, **settings).init, jax.random.key(0), maps)


@pytest.mark.parametrize(
    "settings, inputs, wanted",
    [
        ({}, (4, 8, 16, 32), (4, 8, 16, 32, 64)),
        ({"start_level": 1}, (4, 8, 16, 32), (8, 16, 32, 64, 128)),
        ({"num_levels": 3}, (16,), (16, 32, 64)),
        ({"num_levels": 2}, (8, 16), (8, 16)),
    ],
)
def test_strides_go_on_doubling(settings, inputs, wanted):
    assert FPN(**settings).strides(inputs) == wanted


@pytest.mark.parametrize("settings", [{"num_levels": 1}, {"start_level": 2}])
def test_strides_that_do_not_fit_are_refused_as_their_maps_are(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"{name} {settings[name]}"):
        FPN(**settings).strides((4, 8))
