import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data import padding, transforms
from jaxdet.export.letterbox import letterbox
from jaxdet.prediction import inputs

CANVAS = (48, 64)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "size",
    [
        (48, 64),  # As it is.
        (30, 50),  # Enlarged.
        (70, 90),  # Made smaller.
        (96, 128),  # Just half: bilinear still.
        (144, 192),  # A third, so that whole pixels are averaged.
        (131, 140),  # Less than half, by parts of pixels.
        (1, 3),
    ],
)
def test_images_are_resized_as_opencv_does(size, known):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = padding.blank_images(1, CANVAS, 0)
    padding.fit_image(wanted, 0, inputs.to_example(image, 0), CANVAS)
    sides = size if known else map(jnp.int32, size)

    found = letterbox(jnp.asarray(image[None]), *sides, canvas=CANVAS, resize=CANVAS)

    height, width = wanted.sizes[0]
    assert tuple(map(int, found.size)) == (height, width)
    np.testing.assert_allclose(found.scale, wanted.scales[0], rtol=1e-6)
    difference = found.pixels[0, :height, :width] - wanted.pixels[0, :height, :width].astype(int)
    assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 1e-3


@pytest.mark.parametrize("resize", [(480, 640), ((480, 600), 10**9), (50, 10**9)])
def test_sides_that_are_not_known_become_the_same_but_where_a_half_is_rounded(resize):
    canvas, blank = (600, 720), jnp.zeros((1, 1, 1, 3), jnp.uint8)
    sizes = np.random.default_rng(0).integers(1, 2**14, (20000, 2))
    one = jax.vmap(lambda h, w: letterbox(blank, h, w, canvas=canvas, resize=resize)[1:])
    found, scales = jax.jit(one)(*sizes.T.astype(np.int32))

    short = max(resize[0]) if isinstance(resize[0], tuple) else resize[0]
    exact = [
        transforms.fit_scale(size, short=short, long=resize[1], canvas=canvas)
        for size in map(tuple, sizes.tolist())
    ]
    exact = np.array(exact)
    np.testing.assert_allclose(scales, exact, rtol=1e-6)
    for found_side, side in zip(found, (sizes * exact[:, None]).T, strict=True):
        other = found_side != np.maximum(1, np.round(side))
        assert (np.abs(side - np.floor(side) - 0.5)[other] < 1e-9).all()
        assert other.mean() < 2e-3
