from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from models.drawn_variables import normal

from jaxdet.models import convolution
from jaxdet.models.convolution import MAX_PARTS, convolve
from jaxdet.models.winograd import convolve_by_tiles

FORMS = ("whole", "parts", "tiles")


def by_xla(x, kernel, stride):
    padding = [((kernel.shape[0] - 1) // 2,) * 2] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Small maps meet the form: its limits are lowered."""
    if request.param != "whole":
        monkeypatch.setattr(convolution, "PART_BYTES", 40)
    if request.param == "tiles":
        monkeypatch.setattr(convolution, "TILED_CHANNELS", 1)
        monkeypatch.setattr(convolution, "TILED_CELLS", 0)
    convolve.clear_cache()  # What is traced already knows other limits.
    yield request.param
    convolve.clear_cache()


# Odd sides; fewer and more images than parts; rows that two parts of a strided map both see.
CASES = [
    ((2, 9, 6, 3), 3, 1),
    ((1, 7, 8, 3), 3, 2),
    ((1, 8, 7, 3), 3, 2),
    ((11, 2, 3, 3), 3, 1),
    ((1, 1, 5, 3), 5, 1),
    ((0, 4, 4, 3), 3, 1),
    ((1, 9, 9, 3), 7, 2),
]


@pytest.mark.parametrize("shape, size, stride", CASES)
def test_derivatives_are_xlas(form, shape, size, stride):
    rng = np.random.default_rng(1)
    x, kernel = normal(rng, *shape), normal(rng, size, size, shape[-1], 4)
    gradient = normal(rng, *jax.eval_shape(lambda: by_xla(x, kernel, stride)).shape)

    @jax.jit
    def both_ways(x, kernel):
        results = []
        for run in (lambda *a: convolve(*a, stride, 1), lambda *a: by_xla(*a, stride)):
            y, pull = jax.vjp(run, x, kernel)
            _, pushed = jax.jvp(run, (x, kernel), (x + 1, kernel - 1))
            results.append((y, *pull(gradient), pushed))
        return results

    for found, wanted in zip(*both_ways(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_gradient_takes_the_form_that_its_map_wants(form):
    gradient = jax.grad(lambda kernel, x: jnp.sum(convolve(x, kernel, 1, 1)))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 3, 4), (2, 9, 6, 3))]
    lowered = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("cpu",)).as_text()
    # Forward passes whose results no one wants are not lowered.
    counts = lowered.count("stablehlo.convolution"), lowered.count("stablehlo.dot_general")
    assert counts == {"whole": (1, 0), "parts": (MAX_PARTS, 0), "tiles": (0, 2)}[form]


@pytest.mark.parametrize("form", ["parts", "tiles"], indirect=True)
@pytest.mark.parametrize("groups, dtype", [(3, jnp.float32), (1, jnp.bfloat16)])
def test_groups_and_other_types_keep_xlas_gradient(form, groups, dtype):
    kernel = jax.ShapeDtypeStruct((3, 3, 3 // groups, 3), dtype)
    gradient = jax.grad(lambda kernel, x: jnp.sum(convolve(x, kernel, 1, groups)))
    lowered = jax.jit(gradient).lower(kernel, jax.ShapeDtypeStruct((2, 9, 6, 3), dtype)).as_text()
    assert lowered.count("stablehlo.convolution") == 1


@pytest.mark.parametrize("form", ["tiles"], indirect=True)
def test_nothing_but_the_map_is_kept_for_the_gradient(form):
    kernel, x = jnp.ones((3, 3, 3, 4)), jnp.ones((2, 9, 6, 3))
    _, pull = jax.vjp(lambda kernel: convolve(x, kernel, 1, 1), kernel)
    assert sum(a.size for a in jax.tree.leaves(pull)) < 2 * x.size


@pytest.mark.parametrize("form", ["tiles"], indirect=True)
def test_other_platforms_keep_xlas_gradient(form):
    gradient = jax.grad(lambda kernel, x: jnp.sum(convolve(x, kernel, 1, 1)))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 3, 4), (2, 9, 6, 3))]
    lowered = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("stablehlo.convolution") == 1


@pytest.mark.parametrize("form", ["parts", "tiles"], indirect=True)
def test_each_image_may_have_a_gradient_of_its_own(form):
    rng = np.random.default_rng(1)
    x, kernel = normal(rng, 2, 5, 4, 3), normal(rng, 3, 3, 3, 4)

    def own(run):
        gradient = jax.grad(lambda kernel, x: jnp.sum(run(x[None], kernel) ** 2))
        return jax.vmap(gradient, (None, 0))

    found = jax.jit(own(lambda *a: convolve(*a, 1, 1)))(kernel, x)
    wanted = jax.jit(own(lambda *a: by_xla(*a, 1)))(kernel, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape, features", [((1, 9, 7, 128), 96), ((2, 6, 8, 256), 256)])
def test_tiles_lose_at_most_twice_as_much_to_rounding_as_the_sum(shape, features):
    """Both against float64; the largest differences and the mean squares."""
    rng = np.random.default_rng(2)
    x, kernel = map(jnp.asarray, (normal(rng, *shape), normal(rng, 3, 3, shape[-1], features)))
    with jax.enable_x64(True):
        exact = by_xla(np.float64(x), np.float64(kernel), 1)
    errors = [
        np.asarray(run(x, kernel)) - np.asarray(exact)
        for run in (convolve_by_tiles, partial(by_xla, stride=1))
    ]
    for measure in (lambda e: np.abs(e).max(), lambda e: np.sqrt((e**2).mean())):
        tiles, direct = map(measure, errors)
        assert 0 < tiles < 2 * direct


@pytest.mark.parametrize(
    "shape, features, tiled",
    [
        ((1, 23, 22, 96), 96, True),
        ((1, 22, 22, 96), 96, False),  # 484 cells: the kernel's sums cost more.
        ((2, 40, 60, 96), 95, False),
        ((2, 80, 60, 128), 128, True),
        ((3, 80, 60, 128), 128, False),  # 7.4 MB, and not wide.
        ((3, 80, 60, 192), 200, True),
        ((2, 200, 336, 192), 192, False),  # 103 MB would take 825.
    ],
)
def test_wide_convolutions_are_products_of_tiles_on_cpus_alone(shape, features, tiled):
    shapes = jax.ShapeDtypeStruct(shape, jnp.float32), jnp.ones((3, 3, shape[-1], features))
    traced = jax.jit(partial(convolve, stride=1, groups=1)).trace(*shapes)
    for platform in ("cpu", "tpu"):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        whole = not (tiled and platform == "cpu")
        assert lowered.count("stablehlo.convolution") == whole


@pytest.mark.parametrize("sides", ["batch, 20, 20", "2, height, width"])
def test_an_export_for_any_number_of_images_or_size_convolves_whole(sides):
    kernel, x = jnp.ones((3, 3, 96, 96)), jnp.ones((2, 20, 20, 96))
    shape = jax.export.symbolic_shape(f"{sides}, 96")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: convolve(x, kernel, 1, 1)))(images)
    np.testing.assert_allclose(exported.call(x), by_xla(x, kernel, 1), rtol=1e-6)
