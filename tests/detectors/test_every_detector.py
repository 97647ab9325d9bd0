"""What every detector keeps to, whatever its method."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, SETTINGS, WIDTH, build, draw_batch, drawn_variables

from jaxdet import detectors
from jaxdet.ops.assignment import POSITIVE
from jaxdet.ops.boxes import pairwise_iou
from jaxdet.training.accumulation import PartsAxis
from jaxdet.types import UserError

KEY, IMAGES = jax.random.key(1), 5


class Case:
    """A detector, its variables and its jitted functions, compiled once for all tests."""

    def __init__(self, name):
        self.name, self.detector = name, build(name)
        self.variables = drawn_variables(self.detector, draw_batch(name, 1))
        # One compile serves every test that asks for a loss or for a gradient.
        loss = partial(self.detector.loss, final=True)  # With every term that there is.
        # Of YOLOX's gradient hundreds are computed: to compile a faster one pays.
        options = {"xla_backend_optimization_level": 1} if name == "yolox" else {}
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)
        self.predict = jax.jit(self.detector.predict)

    def loss(self, variables, batch, key):
        return self.gradient(variables, batch, key)[0]

    def batch(self, **keywords):
        return draw_batch(self.name, IMAGES, **keywords)


@pytest.fixture(scope="module", params=SETTINGS)
def case(request):
    return Case(request.param)


def skip_stages(case):
    """The two stages are tested together, as Faster R-CNN, where a test is dear."""
    if case.name in ("rpn", "fast_rcnn"):
        pytest.skip("tested as a part of faster_rcnn")


def skip_what_compiles_again(case):
    """YOLOX has most layers: what its loss does is tested without them, in test_yolox.py."""
    skip_stages(case)
    if case.name == "yolox":
        pytest.skip("tested without its network, and its network without it")


def test_every_detector_is_tested_here():
    assert SETTINGS.keys() == detectors.DETECTORS.keys()


def test_what_is_assigned_is_what_the_loss_counts(case):
    skip_stages(case)
    batch = case.batch(seed=3)
    shapes = jax.eval_shape(case.detector.assign, case.variables, batch)
    if shapes.by_prediction:
        found = jax.jit(case.detector.assign)(case.variables, batch)
    else:  # The weights do not count: there are none.
        found = jax.jit(partial(case.detector.assign, jax.eval_shape(lambda: case.variables)))(
            batch
        )
    assert shapes.levels == found.levels and len(found.boxes) == found.labels.shape[1]
    assert sum(level.count for level in found.levels) == len(found.boxes)
    learns = found.labels == POSITIVE
    counts = case.loss(case.variables, batch, KEY)[1][0].counts
    if case.name == "faster_rcnn":  # Of an image 16 at most are drawn.
        assert np.minimum(learns.sum(axis=1), 16).sum() == counts["rpn_positives"] > 0
    else:
        assert learns.sum() == counts["positives"] > 0
    # Each learns an object that there is, and on the whole one that it is near to.
    owners = jnp.take_along_axis(batch.valid, found.index, axis=1)
    assert owners[learns].all()


def test_one_compile_serves_every_object_count(case):
    for seed in range(3):
        batch = case.batch(seed=seed, first=IMAGES * seed)
        batch = batch._replace(valid=batch.valid & (seed != 1))  # Once without any object.
        total, (metrics, _) = case.loss(case.variables, batch, KEY)
        assert np.isfinite(total)
        assert float(total) == pytest.approx(
            sum(float(v) for k, v in metrics.means.items() if k.endswith("loss")),
            rel=1e-5,
        )
    assert case.gradient._cache_size() == 1


def test_the_matrices_among_the_counts_are_those_that_the_detector_names(case):
    counts = case.loss(case.variables, case.batch(), KEY)[1][0].counts
    sizes = {name: count.shape for name, count in counts.items() if count.ndim}
    named = {
        name: sum(CLASSES if label is ... else 1 for label in labels)
        for name, labels in case.detector.matrices.items()
    }
    assert sizes == {name: (size, size) for name, size in named.items()}
    stages = {"rpn": ["rpn"], "fast_rcnn": ["roi"], "faster_rcnn": ["rpn", "roi"]}
    assert list(named) == [f"{stage}_confusion" for stage in stages.get(case.name, ())]


def test_gradients_are_finite_without_objects_and_with_garbage_in_the_slots(case):
    batch = case.batch()
    slots = jnp.where(batch.valid[..., None], batch.boxes, jnp.nan)
    for garbage in (
        batch._replace(boxes=slots),
        batch._replace(boxes=jnp.full_like(batch.boxes, jnp.nan), valid=batch.valid & False),
    ):
        leaves = jax.tree.leaves(case.gradient(case.variables, garbage, KEY)[1])
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_garbage_in_slots_and_canvas_padding_does_not_change_the_loss(case):
    batch = case.batch()
    sizes = batch.images.sizes.at[:, 1].set(WIDTH - 32)
    boxes = jnp.minimum(batch.boxes, jnp.array([WIDTH - 60, HEIGHT, WIDTH - 32, HEIGHT]))
    batch = batch._replace(boxes=boxes, images=batch.images._replace(sizes=sizes))
    proposals = batch.images.proposals
    if proposals is not None:
        garbage = jnp.where(proposals.valid[..., None], proposals.boxes, jnp.nan)
        proposals = proposals._replace(boxes=garbage)
    dirty = batch._replace(
        boxes=jnp.where(batch.valid[..., None], batch.boxes, jnp.inf),
        labels=jnp.where(batch.valid, batch.labels, 99),
        images=batch.images._replace(
            pixels=batch.images.pixels.at[:, :, WIDTH - 32 :].set(255),
            proposals=proposals,
        ),
    )
    clean, dirty = (case.loss(case.variables, b, KEY)[0] for b in (batch, dirty))
    assert float(clean) == float(dirty)


def test_draws_depend_on_the_place_in_the_run_not_in_the_batch(case):
    batch = case.batch()
    total, (metrics, _) = case.loss(case.variables, batch, KEY)
    turned = jax.tree.map(lambda x: jnp.roll(x, 3, axis=0), batch)
    rolled_total, (rolled, _) = case.loss(case.variables, turned, KEY)
    jax.tree.map(np.testing.assert_array_equal, metrics.counts, rolled.counts)
    np.testing.assert_allclose(total, rolled_total, rtol=1e-5)
    elsewhere = batch._replace(index=batch.index + IMAGES)
    other, _ = case.loss(case.variables, elsewhere, KEY)
    draws = case.name not in ("retinanet", "yolox")  # They train every anchor or point.
    assert (float(other) != float(total)) == draws


def test_more_object_slots_do_not_change_the_loss(case):
    skip_what_compiles_again(case)
    batch = case.batch()
    wide = batch._replace(
        **{
            name: jnp.pad(
                getattr(batch, name),
                ((0, 0), (0, 7), (0, 0))[: getattr(batch, name).ndim],
            )
            for name in ("boxes", "labels", "valid", "crowd")
        }
    )
    narrow, _ = case.loss(case.variables, batch, KEY)
    wide, _ = jax.jit(case.detector.loss)(case.variables, wide, KEY)
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)


def test_detections_are_sorted_inside_the_image_and_zero_where_invalid(case):
    images = case.batch().images
    images = images._replace(sizes=images.sizes.at[:, 0].set(40))
    found = case.predict(case.variables, images)
    assert found.labels.dtype == jnp.int32
    boxes, valid = np.asarray(found.boxes), np.asarray(found.valid)
    assert valid.any() and not boxes[~valid].any()
    assert (boxes >= 0).all() and (boxes[..., 3] <= 40).all() and (boxes[..., 2] <= WIDTH).all()
    assert (np.diff(np.asarray(found.scores), axis=1) <= 0).all()


def test_bfloat16_networks_give_a_finite_float32_loss_near_the_float32_one(case):
    skip_what_compiles_again(case)
    half = build(case.name, dtype="bfloat16")
    total, _ = jax.jit(half.loss)(case.variables, case.batch(), KEY)
    full, _ = case.loss(case.variables, case.batch(), KEY)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, full, rtol=0.05)


def test_one_and_eight_devices_give_the_same_loss_and_gradient(case):
    skip_what_compiles_again(case)
    detector, batch = build(case.name, backbone=dict(norm="sync")), draw_batch(case.name, 8)
    variables = drawn_variables(detector, batch)

    def step(variables, batch):
        def total(params):
            value, (metrics, stats) = detector.loss(
                variables | {"params": params}, batch, KEY, axis_name="batch"
            )
            return value, (metrics, stats)

        result = jax.value_and_grad(total, has_aux=True)(variables["params"])
        (value, (metrics, stats)), gradients = result
        counts = jax.lax.psum(metrics.counts, "batch")
        return jax.lax.pmean((value, metrics.means, stats, gradients), "batch"), counts

    results = []
    for count in (1, 8):
        split = jax.tree.map(lambda x, n=count: x.reshape(n, 8 // n, *x.shape[1:]), batch)
        mapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0), devices=jax.devices()[:count])
        results.append(jax.tree.map(lambda x: np.asarray(x[0]), mapped(variables, split)))
    (one, one_counts), (eight, eight_counts) = results
    jax.tree.map(np.testing.assert_array_equal, one_counts, eight_counts)
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one, eight)


def test_whatever_a_loss_divides_by_is_counted_over_the_parts_of_a_batch(case):
    axis = PartsAxis("batch", 2)
    # What asked the devices past `global_count` would find no axis of this name.
    jax.eval_shape(partial(case.detector.loss, axis_name=axis), case.variables, case.batch(), KEY)
    assert len(axis.counts) == {"rpn": 1, "retinanet": 1}.get(
        case.name, 2 + (case.name == "faster_rcnn")
    )


def test_what_is_computed_again_is_the_blocks_or_also_neck_and_heads(case):
    skip_stages(case)

    def computed_again(remat):
        loss = build(case.name, remat=remat).loss
        text = str(jax.make_jaxpr(loss)(case.variables, case.batch(), KEY))
        return len(re.findall(r"\b(?:remat2|remat|checkpoint)\[", text))

    none, blocks, everything = map(computed_again, ("none", "blocks", "all"))
    # The stages of a CSPDarknet, or the blocks of a ResNet-10; then the neck and each head.
    assert blocks - none == 4
    assert everything - blocks == {"faster_rcnn": 3}.get(case.name, 2)


def test_what_is_computed_again_changes_no_gradient(case):
    if case.name != "retinanet":
        pytest.skip("one is enough: what is computed again is counted for all")
    again = jax.jit(jax.value_and_grad(build(case.name, remat="all").loss, has_aux=True))
    found, expected = (f(case.variables, case.batch(), KEY) for f in (again, case.gradient))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def train(case, batch, *, num_steps, rate=4e-3):
    """Variables after steps of Adam on one batch; in NumPy, as it need not be compiled."""
    leaves, tree = jax.tree.flatten(jax.device_get(case.variables))
    first, second = ([np.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    for i in range(num_steps):
        batch = batch._replace(index=jnp.arange(IMAGES, dtype=jnp.uint32) + IMAGES * i)
        _, gradients = case.gradient(tree.unflatten(leaves), batch, KEY)
        for k, slope in enumerate(jax.device_get(jax.tree.leaves(gradients))):
            first[k] = 0.9 * first[k] + 0.1 * slope
            second[k] = 0.999 * second[k] + 0.001 * slope**2
            spread = np.sqrt(second[k] / (1 - 0.999 ** (i + 1))) + 1e-8
            leaves[k] = leaves[k] - rate * first[k] / (1 - 0.9 ** (i + 1)) / spread
    return tree.unflatten(leaves)


def test_a_trained_tiny_model_finds_the_boxes(case):
    skip_stages(case)
    batch = case.batch()
    # The scores of YOLOX's points, of which few learn an object, rise late.
    variables = train(case, batch, num_steps=360 if case.name == "yolox" else 80)
    found = case.predict(variables, batch.images)
    hits = total = 0
    for i in range(IMAGES):
        sure = np.asarray(found.valid[i] & (found.scores[i] > 0.5))
        real = np.asarray(batch.valid[i])
        overlaps = np.asarray(pairwise_iou(found.boxes[i], batch.boxes[i]))[sure][:, real]
        same = np.asarray(found.labels[i])[sure][:, None] == np.asarray(batch.labels[i])[real]
        hits += ((overlaps > 0.5) & same).any(0).sum()
        total += real.sum()
    assert hits >= 0.8 * total, (hits, total)


def test_an_rpn_alone_scores_every_object_with_label_0(case):
    if case.detector.tells_classes:
        pytest.skip("it tells classes apart")
    batch = case.batch()
    found = case.predict(case.variables, batch.images)
    assert found.boxes.shape == (IMAGES, SETTINGS["rpn"]["rpn"]["test"]["num_proposals"], 4)
    assert not found.labels.any() and (np.asarray(found.scores) <= 1).all()
    other = batch._replace(labels=1 - batch.labels)
    totals = [float(case.loss(case.variables, b, KEY)[0]) for b in (batch, other)]
    assert totals[0] == totals[1]  # Of which class an object is does not matter.


def test_unknown_settings_and_names_list_the_known_ones():
    with pytest.raises(UserError, match="'nekc'; did you mean 'neck'.* known: pixels, backbone, "):
        detectors.build("faster_rcnn", num_classes=2, nekc={"channels": 64})
    with pytest.raises(UserError, match="unknown detector 'yolo'; known: fast_rcnn, faster_rcnn"):
        detectors.build("yolo", num_classes=2)
