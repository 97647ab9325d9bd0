import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet import detectors
from jaxdet.ops.boxes import pairwise_iou
from jaxdet.types import Batch, Images, Proposals, UserError

# The package's attribute of this name is the function.
method = importlib.import_module("jaxdet.detectors.faster_rcnn")

HEIGHT, WIDTH, SLOTS, CLASSES = 64, 96, 5, 2
TINY = dict(
    depth=10,
    width=8,
    norm="group",
    fpn_channels=16,
    hidden=32,
    anchor_scales=(4.0,),
    rpn_num_samples=32,
    rpn_pre_nms=60,
    rpn_pre_nms_test=40,
    num_proposals=40,
    num_proposals_test=30,
    roi_num_samples=16,
    max_sampling=2,
    max_detections=10,
    max_candidates=60,
)


def draw_batch(count=8, seed=0, first=0):
    """Bright and dark rectangles (two classes) on noise, 0 to 4 an image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
    boxes = np.zeros((count, SLOTS, 4), np.float32)
    labels, valid = np.zeros((count, SLOTS), np.int32), np.zeros((count, SLOTS), bool)
    for i in range(count):
        for slot in range(i % SLOTS):
            x, y = rng.integers(0, WIDTH - 24), rng.integers(0, HEIGHT - 24)
            width, height = rng.integers(12, 24, 2)
            labels[i, slot] = rng.integers(CLASSES)
            pixels[i, y : y + height, x : x + width] = 240 if labels[i, slot] else 10
            boxes[i, slot], valid[i, slot] = (x, y, x + width, y + height), True
    images = Images(pixels, np.tile([[HEIGHT, WIDTH]], (count, 1)), np.ones(count, np.float32))
    index = np.arange(first, first + count, dtype=np.uint32)
    batch = Batch(images, boxes, labels, valid, np.zeros_like(valid), index)
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def detector():
    return detectors.build("faster_rcnn", num_classes=CLASSES, **TINY)


@pytest.fixture(scope="module")
def variables(detector):
    return drawn_variables(detector)


@pytest.fixture(scope="module")
def loss(detector):
    return jax.jit(detector.loss)


def drawn_variables(detector):
    """Variables without compiling `init`: kernels of He's size, scales 1, biases 0."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(1 / fan_in), jnp.float32)
        return jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0)

    shapes = jax.eval_shape(detector.init, jax.random.key(0), draw_batch(1).images)
    return jax.tree.map_with_path(draw, shapes)


def targets_of(data, variant):
    """Anchor targets of the reference's two images; nothing is subsampled there."""
    sizes = [tuple(size) for size in data["feat_sizes"].tolist()]
    anchors = method.anchor_ops.pyramid_anchors(
        sizes, method.STRIDES, scales=data["scales"].tolist(), ratios=data["ratios"].tolist()
    )
    settings = {
        "border0": dict(allowed_border=0),
        "ignore.5": dict(ignore_iof_threshold=0.5),
        "smoothl1_b1_9": dict(rpn_beta=1 / 9),
    }.get(variant, {})
    s = method.Settings(num_classes=1, rpn_num_samples=len(anchors), **settings)
    boxes = np.full((2, 10, 4), np.nan, np.float32)
    valid, crowd = np.zeros((2, 2, 10), bool)
    for i in range(2):
        objects, ignored = data[f"gts/{i}"], data[f"gts_ignore/{i}"]
        if variant == "zero_gt_img1" and i == 1:
            objects = objects[:0]
        count, total = len(objects), len(objects) + len(ignored)
        boxes[i, :count], boxes[i, count:total] = objects, ignored
        valid[i, :count], crowd[i, count:total] = True, True
    covered = method.anchor_ops.pyramid_valid(
        sizes, method.STRIDES, jnp.asarray(data["pad_hw"]), num_base=3
    )
    targets = jax.vmap(
        lambda key, size, *objects: method.anchor_targets(
            s, key, jnp.asarray(anchors), covered, size, objects
        )
    )(
        jax.random.split(jax.random.key(0), 2),
        jnp.asarray(data["img_hw"]),
        jnp.asarray(boxes),
        jnp.zeros((2, 10), jnp.int32),
        jnp.asarray(valid),
        jnp.asarray(crowd),
    )
    return s, targets


def rpn_outputs(data, name, tail):
    maps = [data[f"{name}/{i}"].transpose(0, 2, 3, 1).reshape(2, -1, *tail) for i in range(5)]
    return jnp.asarray(np.concatenate(maps, axis=1))


@pytest.mark.parametrize("variant", "border-1 border0 ignore.5 smoothl1_b1_9 zero_gt_img1".split())
def test_rpn_targets_and_losses_equal_the_reference(golden, variant):
    data = golden("mmdet_rpn_head")
    s, targets = targets_of(data, variant)
    reference = {key: data[f"loss/{variant}/{key}"] for key in (
        "loss_rpn_cls", "loss_rpn_bbox", "tgt/label_weights", "tgt/bbox_targets", "tgt/bbox_weights"
    )}  # fmt: skip
    for i in range(2):
        valid, positive = np.asarray(targets.valid[i]), np.asarray(targets.positive[i])
        index = np.asarray(targets.index[i])
        weighted = np.flatnonzero(reference["tgt/label_weights"][i])
        np.testing.assert_array_equal(np.sort(index[valid]), weighted)
        learning = np.flatnonzero(reference["tgt/bbox_weights"][i].any(-1))
        np.testing.assert_array_equal(np.sort(index[positive]), learning)
        expected = reference["tgt/bbox_targets"][i][index[positive]]
        np.testing.assert_allclose(targets.deltas[i][positive], expected, rtol=1e-4, atol=1e-5)
    logits, deltas = rpn_outputs(data, "cls", ()), rpn_outputs(data, "reg", (4,))
    terms, gradients = jax.value_and_grad(
        lambda *outputs: (lambda t: (sum(t.values()), t))(method.rpn_losses(s, *outputs, targets)),
        argnums=(0, 1),
        has_aux=True,
    )(logits, deltas)
    found = terms[1]
    np.testing.assert_allclose(found["rpn_class_loss"], reference["loss_rpn_cls"].sum(), rtol=1e-5)
    np.testing.assert_allclose(found["rpn_box_loss"], reference["loss_rpn_bbox"].sum(), rtol=1e-5)
    for gradient, name in zip(gradients, ("cls", "reg"), strict=True):
        expected = data[f"loss/{variant}/grad_abs_sum_{name}"].sum()
        np.testing.assert_allclose(jnp.abs(gradient).sum(), expected, rtol=1e-4)


def region_inputs(data):
    """The reference's two images: proposals and ground truth in padded slots."""
    count = max(len(data[f"proposals/{i}"]) for i in range(2)) + 3
    proposals = Proposals(
        np.full((2, count, 4), 7.0, np.float32), np.zeros((2, count)), np.zeros((2, count), bool)
    )
    boxes, labels = np.full((2, 9, 4), np.nan, np.float32), np.zeros((2, 9), np.int32)
    valid = np.zeros((2, 9), bool)
    for i in range(2):
        given, objects = data[f"proposals/{i}"][:, :4], data[f"gts/{i}"]
        proposals.boxes[i, : len(given)], proposals.valid[i, : len(given)] = given, True
        boxes[i, : len(objects)], valid[i, : len(objects)] = objects, True
        labels[i, : len(objects)] = data[f"gt_labels/{i}"]
    return jax.tree.map(jnp.asarray, (proposals, (boxes, labels, valid, np.zeros_like(valid))))


def test_region_targets_equal_the_reference(golden):
    data = golden("mmdet_bbox_head")
    s = method.Settings(num_classes=5, roi_num_samples=512, roi_positive_fraction=1.0)
    proposals, objects = region_inputs(data)
    targets = jax.vmap(lambda *a: method.region_targets(s, *a))(
        jax.random.split(jax.random.key(0), 2), proposals, objects
    )
    first = 0
    for i in range(2):
        number = len(data[f"sampling/{i}/pos_inds"]) + len(data[f"sampling/{i}/neg_inds"])
        rows = slice(first, first + number)
        first += number
        valid = np.asarray(targets.valid[i])
        assert valid.sum() == number
        # Both are positives, then negatives; within them the order is drawn.
        boxes, labels = np.asarray(targets.boxes[i])[valid], np.asarray(targets.labels[i])[valid]
        mine = np.lexsort((*boxes.T, labels))
        theirs = np.lexsort((*data["rois"][rows, 1:].T, data["targets/labels"][rows]))
        np.testing.assert_allclose(boxes[mine], data["rois"][rows, 1:][theirs], rtol=1e-6)
        np.testing.assert_array_equal(labels[mine], data["targets/labels"][rows][theirs])
        deltas = np.asarray(targets.deltas[i])[valid]
        expected = data["targets/bbox_targets"][rows]
        np.testing.assert_allclose(deltas[mine], expected[theirs], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, agnostic", [("specific", False), ("agnostic", True)])
@pytest.mark.parametrize("variant, beta", [("l1", 0.0), ("smoothl1", 1.0), ("no_pos", 1.0)])
def test_box_losses_equal_the_reference(golden, kind, agnostic, variant, beta):
    data = golden("mmdet_bbox_head")
    num_classes = int(data["num_classes"])
    labels = data["targets/labels"]
    if variant == "no_pos":
        labels = np.full_like(labels, num_classes)
    s = method.Settings(num_classes=num_classes, class_agnostic=agnostic, box_beta=beta)
    padding = ((0, 0), (0, 3))  # Padded regions carry no weight.

    def pad(values):
        return jnp.asarray(np.pad(values[None], padding + ((0, 0),) * (values.ndim - 1)))

    targets = method.RegionTargets(
        boxes=pad(data["rois"][:, 1:]),
        labels=pad(labels.astype(np.int32)),
        positive=pad(labels < num_classes),
        valid=pad(np.ones(len(labels), bool)),
        deltas=pad(data["targets/bbox_targets"]),
    )
    logits = pad(data["cls_score"])
    deltas = pad(data[f"{kind}/bbox_pred"].reshape(len(labels), -1, 4))
    found = method.box_losses(s, logits, deltas, targets)
    np.testing.assert_allclose(found["class_loss"], data[f"{kind}/{variant}/loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(
        found["box_loss"], data[f"{kind}/{variant}/loss_bbox"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind, agnostic", [("specific", False), ("agnostic", True)])
@pytest.mark.parametrize("maximum", [100, 15])
def test_detections_equal_the_reference(golden, kind, agnostic, maximum):
    data = golden("mmdet_bbox_head")
    s = method.Settings(
        num_classes=int(data["num_classes"]),
        class_agnostic=agnostic,
        max_detections=maximum,
        score_threshold=0.05,
    )
    suffix = "_max15/img{}" if maximum == 15 else "/img{}/rescale0"
    for i in range(2):
        rows = data["rois"][:, 0] == i
        boxes = jnp.asarray(data["rois"][rows, 1:])
        proposals = Proposals(boxes, jnp.zeros(len(boxes)), jnp.ones(len(boxes), bool))
        found = method.detections(
            s,
            jnp.asarray(data["cls_score"][rows]),
            jnp.asarray(data[f"{kind}/bbox_pred"][rows].reshape(len(boxes), -1, 4)),
            proposals,
            jnp.asarray(data["img_hw"][i]),
        )
        expected = data[f"{kind}/dets{suffix.format(i)}"]
        labels = data[f"{kind}/det_labels{suffix.format(i)}"]
        valid = np.asarray(found.valid)
        assert valid.sum() == len(expected)
        np.testing.assert_array_equal(found.labels[valid], labels)
        np.testing.assert_allclose(found.boxes[valid], expected[:, :4], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.scores[valid], expected[:, 4], rtol=1e-5)


def test_one_compile_serves_every_object_count(loss, variables):
    before = loss._cache_size()
    for seed in range(3):
        batch = draw_batch(8, seed=seed, first=8 * seed)
        batch = batch._replace(valid=batch.valid & (seed != 1))  # Once without any object.
        total, (metrics, _) = loss(variables, batch, jax.random.key(1))
        assert np.isfinite(total)
        assert float(total) == pytest.approx(
            sum(float(v) for k, v in metrics.means.items() if k.endswith("loss")), rel=1e-5
        )
    assert loss._cache_size() == before + 1


def test_gradients_are_finite_without_objects_and_with_garbage_in_the_slots(detector, variables):
    gradient = jax.jit(jax.grad(lambda v, b: detector.loss(v, b, jax.random.key(1))[0]))
    batch = draw_batch(8)
    slots = jnp.where(batch.valid[..., None], batch.boxes, jnp.nan)
    for garbage in (
        batch._replace(boxes=slots),
        batch._replace(boxes=jnp.full_like(batch.boxes, jnp.nan), valid=batch.valid & False),
    ):
        leaves = jax.tree.leaves(gradient(variables, garbage))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_garbage_in_slots_and_canvas_padding_does_not_change_the_loss(loss, variables):
    batch = draw_batch(8)
    sizes = batch.images.sizes.at[:, 1].set(WIDTH - 32)
    boxes = jnp.minimum(batch.boxes, jnp.array([WIDTH - 60, HEIGHT, WIDTH - 32, HEIGHT]))
    batch = batch._replace(boxes=boxes, images=batch.images._replace(sizes=sizes))
    dirty = batch._replace(
        boxes=jnp.where(batch.valid[..., None], batch.boxes, jnp.inf),
        labels=jnp.where(batch.valid, batch.labels, 99),
        images=batch.images._replace(pixels=batch.images.pixels.at[:, :, WIDTH - 32 :].set(255)),
    )
    clean, dirty = (loss(variables, b, jax.random.key(1))[0] for b in (batch, dirty))
    assert float(clean) == float(dirty)


def test_one_and_eight_devices_give_the_same_loss_and_gradient():
    detector = detectors.build("faster_rcnn", num_classes=CLASSES, **(TINY | dict(norm="sync")))
    batch = draw_batch(8)
    variables = drawn_variables(detector)

    def step(variables, batch):
        def total(params):
            value, (metrics, stats) = detector.loss(
                variables | {"params": params}, batch, jax.random.key(1), axis_name="batch"
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
    assert one_counts == eight_counts
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one, eight)


def test_draws_depend_on_the_place_in_the_run_not_in_the_batch(loss, variables):
    batch = draw_batch(8)
    total, (metrics, _) = loss(variables, batch, jax.random.key(1))
    turned = jax.tree.map(lambda x: jnp.roll(x, 3, axis=0), batch)
    rolled_total, (rolled, _) = loss(variables, turned, jax.random.key(1))
    assert jax.device_get(metrics.counts) == jax.device_get(rolled.counts)
    np.testing.assert_allclose(total, rolled_total, rtol=1e-5)
    elsewhere = batch._replace(index=batch.index + 8)
    other, _ = loss(variables, elsewhere, jax.random.key(1))
    assert float(other) != float(total)


def test_more_object_slots_do_not_change_the_loss(loss, variables):
    batch = draw_batch(8)
    wide = batch._replace(
        **{
            name: jnp.pad(
                getattr(batch, name), ((0, 0), (0, 7), (0, 0))[: getattr(batch, name).ndim]
            )
            for name in ("boxes", "labels", "valid", "crowd")
        }
    )
    narrow, wide = (loss(variables, b, jax.random.key(1))[0] for b in (batch, wide))
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


def test_a_trained_tiny_model_finds_the_boxes(detector, variables):
    batch = draw_batch(5)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(variables, opt_state, batch):
        gradients, _ = jax.grad(lambda v: detector.loss(v, batch, jax.random.key(1)), has_aux=True)(
            variables
        )
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(variables, updates), opt_state

    opt_state = tx.init(variables)
    for i in range(120):
        batch = batch._replace(index=jnp.arange(5, dtype=jnp.uint32) + 5 * i)
        variables, opt_state = step(variables, opt_state, batch)
    found = jax.jit(detector.predict)(variables, batch.images)
    hits = total = 0
    for i in range(5):
        sure = np.asarray(found.valid[i] & (found.scores[i] > 0.5))
        real = np.asarray(batch.valid[i])
        overlaps = np.asarray(pairwise_iou(found.boxes[i], batch.boxes[i]))[sure][:, real]
        same = np.asarray(found.labels[i])[sure][:, None] == np.asarray(batch.labels[i])[real]
        hits += ((overlaps > 0.5) & same).any(0).sum()
        total += real.sum()
    assert hits >= 0.8 * total, (hits, total)


def test_detections_are_sorted_inside_the_image_and_zero_where_invalid(detector, variables):
    images = draw_batch(8).images
    images = images._replace(sizes=images.sizes.at[:, 0].set(40))
    found = jax.jit(detector.predict)(variables, images)
    assert found.boxes.shape == (8, 10, 4) and found.labels.dtype == jnp.int32
    boxes, valid = np.asarray(found.boxes), np.asarray(found.valid)
    assert valid.any() and not boxes[~valid].any()
    assert (boxes >= 0).all() and (boxes[..., 3] <= 40).all() and (boxes[..., 2] <= WIDTH).all()
    assert (np.diff(np.asarray(found.scores), axis=1) <= 0).all()


def test_bfloat16_networks_give_a_finite_float32_loss_near_the_float32_one(loss, variables):
    half = detectors.build("faster_rcnn", num_classes=CLASSES, **TINY, dtype="bfloat16")
    total, _ = jax.jit(half.loss)(variables, draw_batch(8), jax.random.key(1))
    full, _ = loss(variables, draw_batch(8), jax.random.key(1))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, full, rtol=0.05)


def test_unknown_settings_and_names_list_the_known_ones():
    with pytest.raises(UserError, match="no setting 'detph'; known: depth, width"):
        detectors.build("faster_rcnn", num_classes=2, detph=18)
    with pytest.raises(UserError, match="unknown detector 'yolo'; known: faster_rcnn"):
        detectors.build("yolo", num_classes=2)
