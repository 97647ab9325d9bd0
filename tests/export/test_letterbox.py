from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data import padding, transforms
from jaxdet.export import sides, stablehlo
from jaxdet.export.letterbox import letterbox
from jaxdet.export.program import Program
from jaxdet.prediction import inputs

CANVAS = (48, 64)


SIZES = [
    (48, 64),  # As it is.
    (30, 50),  # Enlarged.
    (52, 68),  # Made smaller; times the inverse of 2 * 63 a weight is another.
    (70, 90),
    (96, 128),  # Just half: bilinear still.
    (144, 192),  # A third, so that whole pixels are averaged.
    (131, 140),  # Less than half, by parts of pixels.
    (1, 3),
]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_opencv_does(size, known):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = padding.blank_images(1, CANVAS, 0)
    padding.fit_image(wanted, 0, inputs.to_example(image, 0), CANVAS)
    height_width = size if known else map(jnp.int32, size)

    found = letterbox(jnp.asarray(image[None]), *height_width, canvas=CANVAS, resize=CANVAS)

    height, width = wanted.sizes[0]
    assert tuple(map(int, found.size)) == (height, width)
    np.testing.assert_allclose(found.scale, wanted.scales[0], rtol=1e-6)
    difference = found.pixels[0, :height, :width] - wanted.pixels[0, :height, :width].astype(int)
    averaged = wanted.scales[0] < 0.5
    assert np.abs(difference).max() <= averaged and np.mean(difference != 0) < 1e-3


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (49, 60)])  # In 64 bits, 49 * (64 / 49) is below 64.
def test_images_are_resized_as_torchvision_does(size, known):
    image, rule = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), "torchvision"
    limits = {"canvas": (64, 96), "resize": (64, 96)}
    wanted = padding.blank_images(1, limits["canvas"], 0, rule)
    padding.fit_image(wanted, 0, inputs.to_example(image, 0), limits["resize"], rule)
    resized = partial(letterbox, **limits, rule=rule)
    # One program, whose parts a compiler may join.
    run = jax.jit(lambda pixels: resized(pixels, *size)) if known else jax.jit(resized)

    found = run(image[None], *(() if known else size))

    height, width = wanted.sizes[0]
    assert tuple(map(int, found.size)) == (height, width)
    np.testing.assert_allclose(found.scale, wanted.scales[0], rtol=1e-6)
    assert found.pixels.dtype == jnp.float32
    np.testing.assert_allclose(
        found.pixels[0, :height, :width], wanted.pixels[0, :height, :width], rtol=0, atol=1e-4
    )


def test_a_file_for_jax_resizes_as_torchvision_does(tmp_path):
    """As its program is compiled once sizes are known, constants fold."""
    rule, limits = "torchvision", {"canvas": CANVAS, "resize": CANVAS}
    call = lambda *image: letterbox(*image, **limits, rule=rule)[:1]  # noqa: E731
    path, _ = stablehlo.write(Program(call, 1, None, {}), tmp_path / "file")
    run = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    for size in SIZES[1:3]:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        wanted = padding.blank_images(1, CANVAS, 0, rule)
        padding.fit_image(wanted, 0, inputs.to_example(image, 0), CANVAS, rule)
        (found,), (height, width) = run(image[None]), wanted.sizes[0]
        np.testing.assert_allclose(
            found[0, :height, :width], wanted.pixels[0, :height, :width], rtol=0, atol=1e-4
        )


def both_sides(resize, rule):
    """Sides that are not known, computed of many sizes; the exact ones of real numbers."""
    canvas = (600, 720)
    sizes = np.random.default_rng(0).integers(1, 2**15, (20000, 2))
    sizes[::4, 1] = sizes[::4, 0]
    fit = partial(sides.fit, canvas=canvas, resize=resize, rule=rule)
    found, scales, _ = jax.jit(jax.vmap(fit))(*sizes.T.astype(np.int32))

    short = max(resize[0]) if isinstance(resize[0], tuple) else resize[0]
    exact = [
        transforms.fit_scale(size, short=short, long=resize[1], canvas=canvas)
        for size in map(tuple, sizes.tolist())
    ]
    np.testing.assert_allclose(scales, exact, rtol=1e-6)
    return np.stack(found, axis=1), sizes * np.array(exact)[:, None]


RESIZES = [(480, 640), ((480, 600), 10**9), (50, 10**9)]


@pytest.mark.parametrize("resize", RESIZES)
def test_sides_that_are_not_known_become_the_same_but_where_a_half_is_rounded(resize):
    found, exact = both_sides(resize, "rounded")
    other = found != np.maximum(1, np.round(exact))
    assert (np.abs(exact - np.floor(exact) - 0.5)[other] < 1e-9).all()
    assert other.mean() < 2e-3


@pytest.mark.parametrize("resize", RESIZES)
def test_sides_that_are_rounded_down_are_those_of_64_bits(resize):
    found, exact = both_sides(resize, "torchvision")
    np.testing.assert_array_equal(found, np.maximum(1, exact.astype(int)))
    # Where a whole number is meant, 64 bits are below it here and there.
    assert np.any((exact < np.round(exact)) & (np.round(exact) - exact < 1e-9))
