"""What every public function of jaxdet.ops keeps to, held for all of them alike."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import ops
from jaxdet.ops.anchors import GridPoints
from jaxdet.ops.assignment import IGNORE, NEGATIVE, POSITIVE, Assignment

N, G, K, C, SIZE = 12, 4, 3, 2, (40, 60)
ROI = dict(strides=(4, 8), finest_scale=8.0, output_size=2)
PER_CLASS = dict(score_threshold=0.1, iou_threshold=0.5, max_detections=4, max_candidates=20)
PROPOSALS = dict(level_sizes=(8, 4), pre_nms=6, iou_threshold=0.7, num_proposals=5)
IOUS = dict(positive_iou=0.5, negative_iou=0.4)

# They make constants of static numbers, decorate, check, or only rearrange what `pyramid_roi_*`
# are given.
STATIC = {
    "anchors.octave_scales",
    "anchors.base_anchors",
    "anchors.grid_anchors",
    "anchors.pyramid_anchors",
    "anchors.grid_points",
    "roi_pooling.flatten_pyramid",
    "roi_pooling.bins_of",
}


class Case(NamedTuple):
    """How to call an op.

    Attributes:
        draw: `rng -> {argument: array}`, of one image.
        settings: static keyword arguments.
        masks: {argument: the mask argument whose False slots may hold anything}.
    """

    draw: Callable[[np.random.Generator], dict[str, Any]]
    settings: dict[str, Any] = {}
    masks: dict[str, str] = {}


def boxes(rng, *shape):
    low = rng.uniform(0, 30, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(1, 25, low.shape)], -1).astype(np.float32)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def some(rng, *shape):
    return rng.random(shape) < 0.7


def labels(rng, *shape):
    return rng.choice([POSITIVE, NEGATIVE, IGNORE], shape).astype(np.int32)


def pair(first, second):
    return lambda rng: {first: boxes(rng, N), second: boxes(rng, N)}


def one(name="boxes"):
    return lambda rng: {name: boxes(rng, N)}


def size(rng):
    return np.array(SIZE, np.int32)


def objects(rng):
    valid = some(rng, G)
    return {"boxes": boxes(rng, G), "valid": valid, "crowd": ~valid & some(rng, G)}


def pyramid(rng):
    return (normal(rng, 10, 15, C), normal(rng, 5, 8, C))


def points(rng):
    return GridPoints(rng.uniform(0, 50, (N, 2)).astype(np.float32), np.full(N, 8, np.float32))


def simota(rng):
    return {
        "points": points(rng),
        "predictions": boxes(rng, N),
        "class_logits": normal(rng, N, K),
        "objectness": normal(rng, N),
        "boxes": boxes(rng, G),
        "labels": rng.integers(0, K, G, np.int32),
        "valid": some(rng, G),
    }


def assignment(rng):
    return Assignment(labels(rng, N), np.zeros(N, np.int32), rng.random(N).astype(np.float32))


CASES = {
    "boxes.area": Case(one()),
    "boxes.clip": Case(lambda rng: {"boxes": 2 * boxes(rng, N), "size": size(rng)}),
    "boxes.iou": Case(pair("a", "b")),
    "boxes.iof": Case(pair("a", "b")),
    "boxes.giou": Case(pair("a", "b")),
    "boxes.diou": Case(pair("a", "b")),
    "boxes.pairwise_iou": Case(pair("a", "b")),
    "boxes.pairwise_iof": Case(pair("a", "b")),
    "boxes.pairwise_giou": Case(pair("a", "b")),
    "boxes.xyxy_to_cxcywh": Case(one()),
    "boxes.cxcywh_to_xyxy": Case(one()),
    "boxes.flip_horizontal": Case(one(), dict(width=60.0)),
    "boxes.flip_vertical": Case(one(), dict(height=40.0)),
    "boxes.rescale": Case(one(), dict(factor=1.5)),
    "boxes.has_min_size": Case(one(), dict(min_size=8.0)),
    "box_coder.encode": Case(pair("anchors", "targets")),
    "box_coder.decode": Case(lambda rng: {"anchors": boxes(rng, N), "deltas": normal(rng, N, 4)}),
    "box_coder.encode_grid": Case(lambda rng: {"points": points(rng), "targets": boxes(rng, N)}),
    "box_coder.decode_grid": Case(
        lambda rng: {"points": points(rng), "offsets": normal(rng, N, 4)}
    ),
    "anchors.pyramid_valid": Case(
        lambda rng: {"size": size(rng)},
        dict(feature_sizes=((10, 15), (5, 8)), strides=(4, 8), num_base=3, divisor=8),
    ),
    "anchors.inside_image": Case(lambda rng: {"anchors": boxes(rng, N), "size": size(rng)}),
    "assignment.assign_by_iou": Case(
        lambda rng: {
            "candidates": boxes(rng, N),
            "candidates_valid": some(rng, N),
            **objects(rng),
        },
        IOUS | dict(ignore_iof_threshold=0.5),
        {"candidates": "candidates_valid"},
    ),
    "assignment.append_ground_truth": Case(
        lambda rng: {
            "candidates": boxes(rng, N),
            "assignment": assignment(rng),
            "boxes": boxes(rng, G),
            "valid": some(rng, G),
        },
        {},
        {"boxes": "valid"},
    ),
    "simota.simota_costs": Case(simota, {}, {"boxes": "valid", "labels": "valid"}),
    "simota.assign_simota": Case(simota, {}, {"boxes": "valid", "labels": "valid"}),
    "sampling.sample_labels": Case(
        lambda rng: {"key": jax.random.key(rng.integers(9)), "labels": labels(rng, N)},
        dict(num_samples=6, positive_fraction=0.5),
    ),
    "sampling.take_all": Case(lambda rng: {"labels": labels(rng, N)}),
    "sampling.pad_labels": Case(lambda rng: {"labels": labels(rng, N)}, dict(count=N + 3)),
    "losses.sigmoid_cross_entropy": Case(
        lambda rng: {"logits": normal(rng, N, K), "targets": some(rng, N, K)}
    ),
    "losses.sigmoid_focal": Case(
        lambda rng: {"logits": normal(rng, N, K), "targets": some(rng, N, K)}
    ),
    "losses.softmax_cross_entropy": Case(
        lambda rng: {"logits": normal(rng, N, K), "labels": rng.integers(0, K, N, np.int32)}
    ),
    "losses.l1": Case(lambda rng: {"predictions": normal(rng, N), "targets": normal(rng, N)}),
    "losses.smooth_l1": Case(
        lambda rng: {"predictions": normal(rng, N), "targets": normal(rng, N)}
    ),
    "losses.sample_weights": Case(
        lambda rng: {"positive": some(rng, N), "valid": some(rng, N)}, dict(positive_weight=2.0)
    ),
    "losses.accuracy": Case(
        lambda rng: {
            "logits": normal(rng, N, K),
            "labels": rng.integers(0, K, N, np.int32),
            "valid": some(rng, N),
        },
        {},
        {"logits": "valid", "labels": "valid"},
    ),
    "losses.confusion_matrix": Case(
        lambda rng: {
            "labels": rng.integers(0, K, N, np.int32),
            "predictions": rng.integers(0, K, N, np.int32),
            "valid": some(rng, N),
        },
        dict(num_classes=K),
        {"labels": "valid", "predictions": "valid"},
    ),
    "losses.masked_sum": Case(
        lambda rng: {"values": normal(rng, N, K), "where": some(rng, N)}, {}, {"values": "where"}
    ),
    "losses.global_count": Case(lambda rng: {"count": np.float32(rng.integers(5))}),
    "box_losses.iou_loss": Case(pair("predictions", "targets")),
    "box_losses.giou_loss": Case(pair("predictions", "targets")),
    "box_losses.diou_loss": Case(pair("predictions", "targets")),
    "box_losses.box_regression": Case(
        lambda rng: {
            "anchors": boxes(rng, N),
            "deltas": normal(rng, N, 4),
            "targets": boxes(rng, N),
        },
        dict(kind="giou"),
    ),
    "suppression.nms": Case(
        lambda rng: {
            "boxes": boxes(rng, N),
            "scores": rng.random(N).astype(np.float32),
            "valid": some(rng, N),
            "groups": rng.integers(0, 2, N, np.int32),
        },
        dict(iou_threshold=0.3),
        {"boxes": "valid", "scores": "valid", "groups": "valid"},
    ),
    "suppression.nms_sorted": Case(
        lambda rng: {"boxes": boxes(rng, N), "valid": some(rng, N)},
        dict(iou_threshold=0.3),
        {"boxes": "valid"},
    ),
    "suppression.soft_nms": Case(
        lambda rng: {
            "boxes": boxes(rng, N),
            "scores": rng.random(N).astype(np.float32),
            "valid": some(rng, N),
        },
        dict(iou_threshold=0.3),
        {"boxes": "valid", "scores": "valid"},
    ),
    "suppression.nms_per_class": Case(
        lambda rng: {
            "boxes": boxes(rng, N, K),
            "scores": rng.random((N, K)).astype(np.float32),
            "valid": some(rng, N),
        },
        PER_CLASS,
        {"boxes": "valid", "scores": "valid"},
    ),
    "suppression.nms_best_class": Case(
        lambda rng: {
            "boxes": boxes(rng, N),
            "scores": rng.random((N, K)).astype(np.float32),
            "valid": some(rng, N),
        },
        PER_CLASS,
        {"boxes": "valid", "scores": "valid"},
    ),
    "proposals.generate_proposals": Case(
        lambda rng: {
            "scores": rng.random(N).astype(np.float32),
            "deltas": normal(rng, N, 4),
            "anchors": boxes(rng, N),
            "anchors_valid": some(rng, N),
            "size": size(rng),
        },
        PROPOSALS,
        {"scores": "anchors_valid", "deltas": "anchors_valid", "anchors": "anchors_valid"},
    ),
    "proposals.best_of_levels": Case(
        lambda rng: {"scores": rng.random(N).astype(np.float32)},
        dict(level_sizes=(8, 4), count=6),
    ),
    "roi_pooling.map_levels": Case(one("rois"), dict(num_levels=3, finest_scale=8.0)),
    "roi_pooling.roi_align": Case(
        lambda rng: {"features": normal(rng, 10, 15, C), "rois": boxes(rng, N)},
        dict(stride=4, output_size=2),
    ),
    "roi_pooling.pyramid_roi_align": Case(
        lambda rng: {"pyramid": pyramid(rng), "rois": boxes(rng, N)}, ROI
    ),
    "roi_pooling.roi_pool": Case(
        lambda rng: {"features": normal(rng, 10, 15, C), "rois": boxes(rng, N)},
        dict(stride=4, output_size=2),
    ),
    "roi_pooling.pyramid_roi_pool": Case(
        lambda rng: {"pyramid": pyramid(rng), "rois": boxes(rng, N)}, ROI
    ),
    "pixels.content_mask": Case(
        lambda rng: {"size": size(rng)}, dict(height=SIZE[0] + 4, width=SIZE[1] + 4)
    ),
    "pixels.normalize": Case(
        lambda rng: {
            "pixels": rng.integers(0, 256, (44, 64, 3), np.uint8, endpoint=False),
            "size": size(rng),
        },
        dict(mean=(120.0, 110, 100), std=(50.0, 60, 70)),
    ),
}
MASKED = [name for name, case in CASES.items() if case.masks]
# Their first float argument is learnt through.
DIFFERENTIABLE = [
    name for name in CASES if name.split(".")[0] in ("losses", "box_losses", "box_coder")
] + ["boxes.iou", "boxes.giou", "boxes.diou", "boxes.area", "boxes.xyxy_to_cxcywh"]
DIFFERENTIABLE += [name for name in CASES if name.startswith("roi_") and "map" not in name]


def public_ops():
    names = set()
    for module in pkgutil.iter_modules(ops.__path__):
        if module.name == "contracts" or module.name.startswith("_"):
            continue
        members = vars(importlib.import_module(f"jaxdet.ops.{module.name}"))
        names |= {
            f"{module.name}.{name}"
            for name, member in members.items()
            if inspect.isfunction(member)
            and not name.startswith("_")
            and member.__module__ == f"jaxdet.ops.{module.name}"
        }
    return names


def test_every_public_op_has_a_case():
    assert public_ops() == CASES.keys() | STATIC


class Op:
    """An op with its static settings, called by argument names; jitted once for all tests."""

    def __init__(self, name):
        module, function = name.split(".")
        self.case = CASES[name]
        op = getattr(importlib.import_module(f"jaxdet.ops.{module}"), function)
        self.eager = lambda arrays: op(**arrays, **self.case.settings)
        self.jitted = jax.jit(self.eager)

    def draw(self, seed=0):
        drawn = self.case.draw(np.random.default_rng(seed))
        return jax.tree.map(jnp.asarray, drawn)


JITTED = {}


@pytest.fixture
def op(request):
    if request.param not in JITTED:
        JITTED[request.param] = Op(request.param)
    return JITTED[request.param]


def over(names):
    return pytest.mark.parametrize("op", names, indirect=True, ids=list(names))


def assert_same(found, wanted, *, exactly):
    def compare(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        if exactly or not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    jax.tree.map(compare, found, wanted)


@over(CASES)
def test_jitted_equals_eager(op):
    drawn = op.draw()
    assert_same(op.jitted(drawn), op.eager(drawn), exactly=False)


@over(CASES)
def test_a_batch_under_vmap_equals_one_image_at_a_time(op):
    images = [op.draw(seed) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *images)
    together = jax.device_get(jax.vmap(op.jitted)(batch))
    for i, image in enumerate(images):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_same(alone, op.jitted(image), exactly=False)


def fill(drawn, masks, garbage):
    """Garbage where a mask is False; integers become large and negative numbers."""
    filled = dict(drawn)
    for name, mask in masks.items():
        values = np.asarray(drawn[name])
        rows = np.asarray(drawn[mask]).reshape(-1, *[1] * (values.ndim - 1))
        kind = garbage if jnp.issubdtype(values.dtype, jnp.floating) else -(10**6)
        filled[name] = np.where(rows, values, np.asarray(kind, values.dtype))
    return filled


def without_valid(op, drawn):
    """Nothing is valid, and NaN stands in every slot."""
    empty = {mask: np.zeros_like(drawn[mask]) for mask in op.case.masks.values()}
    return fill(drawn | empty, op.case.masks, np.nan)


@over(MASKED)
def test_garbage_in_padded_slots_changes_nothing(op):
    for seed in range(3):
        drawn = op.draw(seed)
        wanted = op.jitted(drawn)
        for garbage in (np.nan, np.inf, -np.inf, 1e30):
            assert_same(op.jitted(fill(drawn, op.case.masks, garbage)), wanted, exactly=True)


@over([name for name in MASKED if name != "simota.simota_costs"])  # What is not real costs inf.
def test_nothing_valid_gives_finite_values_and_no_sample(op):
    found = op.jitted(without_valid(op, op.draw()))
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def loss_of(op, drawn):
    """The sum of all that an op computes, as a function of its float arrays."""
    floats = {
        name: value
        for name, value in drawn.items()
        if name != "points"  # Constants, never learnt.
        and jnp.issubdtype(jax.tree.leaves(value)[0].dtype, jnp.floating)
    }

    def total(floats, drawn):
        leaves = jax.tree.leaves(op.eager(drawn | floats))
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in leaves)

    gradient = jax.jit(jax.grad(total))
    return lambda floats: gradient(floats, drawn), floats


@over(DIFFERENTIABLE)
def test_gradients_are_finite_of_real_and_of_zeroed_padded_inputs(op):
    drawn = op.draw()
    gradient, floats = loss_of(op, drawn)
    if not floats:
        return  # Counts and masks only.
    for values in (floats, jax.tree.map(np.zeros_like, floats)):
        found = jax.tree.leaves(gradient(values))
        assert all(np.isfinite(leaf).all() for leaf in found)


@over([name for name in MASKED if name in DIFFERENTIABLE])
def test_gradients_with_nothing_valid_are_zero_whatever_the_slots_hold(op):
    gradient, floats = loss_of(op, without_valid(op, op.draw()))
    for leaf in jax.tree.leaves(gradient(floats)):
        assert not np.asarray(leaf).any()


@over(CASES)
def test_bfloat16_inputs_are_computed_as_their_values_in_float32(op):
    def cast(leaf, kind):
        return np.asarray(leaf, kind) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    half = jax.tree.map(lambda leaf: cast(leaf, jnp.bfloat16), op.draw())
    full = jax.tree.map(lambda leaf: cast(leaf, np.float32), half)

    def compare(found, wanted):
        # Pooling and rounding back to the features' type may lose what bfloat16 cannot hold.
        tolerance = 0.03 if found.dtype == jnp.bfloat16 else 1e-6
        found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, op.jitted(half), op.jitted(full))


@over([name for name in CASES if name != "losses.masked_sum"])  # It takes any shape.
def test_a_wrong_shape_is_a_value_error_that_says_what_was_wanted(op):
    drawn = op.draw()
    for name, value in drawn.items():
        if name in ("key", "assignment", "pyramid", "points"):
            continue
        wrong = value[..., :3] if value.shape[-1:] == (4,) else value[None]
        with pytest.raises(ValueError, match="wants the shape") as raised:
            jax.eval_shape(op.eager, drawn | {name: wrong})
        assert str(wrong.shape) in str(raised.value)
