"""The numbers of YOLOX, from images to gradients and detections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import CLASSES, HEIGHT, WIDTH, build, draw_batch

from jaxdet import interop
from jaxdet.detectors import yolox
from jaxdet.detectors.settings import Suppress
from jaxdet.detectors.yolox import Blocks, PointLoss, SimOTA
from jaxdet.models import PAFPN, CSPDarknet, YOLOXHead
from jaxdet.models.cspdarknet import NORM_MOMENTUM
from jaxdet.ops import box_losses
from jaxdet.ops.anchors import grid_points
from jaxdet.ops.box_coder import decode_grid
from jaxdet.ops.boxes import cxcywh_to_xyxy
from jaxdet.types import Objects

USUAL, LOSS = SimOTA(), PointLoss()
# The rule of the code that the golden numbers are of.
RULE = SimOTA(centre_radius=1.5, inside_boxes=False, penalty=1e6)
TERMS = dict(box="iou", objectness="conf", class_="cls", l1="l1")

STRIDES = CSPDarknet.strides
# Pixels a cell of the map that each layer gives.
LAYER_STRIDES = {
    **dict(stem=2, dark2=4, dark3=8, dark4=16, dark5=32),
    **dict(reduce5=32, top_down4=16, reduce4=16, top_down3=8),
    **dict(down3=16, bottom_up4=16, down4=32, bottom_up5=32),
    **{
        name.format(level): stride
        for level, stride in enumerate(STRIDES)
        for name in ("stem{}", "class_conv{}_0", "class_conv{}_1", "box_conv{}_0", "box_conv{}_1")
    },
}


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def flat(arrays, kind):
    """A golden output of three levels as (B, N, channels)."""
    maps = [nhwc(arrays[f"{kind}{level}"]) for level in range(3)]
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def below(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def model(golden):
    """The golden network, its variables and its input."""
    data = golden("yolox_model")
    blocks = Blocks(depth=float(data["depth"]), width=float(data["width"]))
    parts = CSPDarknet(), PAFPN(), YOLOXHead()
    network = yolox.make_network(int(data["num_classes"]), blocks, *parts, "float32")
    x = jnp.asarray(nhwc(data["input_net"]))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    variables, report = interop.from_torch(below(data, "param/"), shapes, bgr=False)
    assert not report.missing and not report.unused
    return network, variables, x, data


def points_of(x):
    return grid_points([(x.shape[1] // n, x.shape[2] // n) for n in STRIDES], STRIDES)


def test_boxes_and_scores_of_every_point_equal_the_reference(model):
    network, variables, x, data = model
    raw, _ = jax.jit(network.apply)(variables, x)
    outputs = yolox.Outputs(*raw, points_of(x))
    boxes, scores = yolox.decode(outputs)
    wanted = data["decoded"]
    np.testing.assert_allclose(
        boxes, cxcywh_to_xyxy(jnp.asarray(wanted[..., :4])), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(scores, wanted[..., 4:5] * wanted[..., 5:], rtol=1e-4)
    np.testing.assert_allclose(
        outputs.offsets, data["undecoded_sigmoid"][..., :4], rtol=1e-4, atol=1e-4
    )


@pytest.fixture(scope="module")
def trained(model, golden):
    """Outputs, targets, losses, statistics and gradients of the golden training step."""
    network, variables, x, _ = model
    labels = golden("yolox_train")["labels"]
    valid = labels.any(axis=-1)
    # Garbage stands where the reference has zeros.
    boxes = np.where(valid[..., None], cxcywh_to_xyxy(jnp.asarray(labels[..., 1:])), np.nan)
    classes = np.where(valid, labels[..., 0], 99).astype(np.int32)
    objects = Objects(jnp.asarray(boxes), jnp.asarray(classes), jnp.asarray(valid), ~valid & False)
    points = points_of(x)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params):
        (raw, _), updates = network.apply(
            variables | {"params": params}, x, train=True, mutable="batch_stats"
        )
        outputs = yolox.Outputs(*raw, points)
        targets = jax.vmap(functools.partial(yolox.point_targets, RULE, points))(*raw, objects)
        terms = yolox.point_losses(LOSS, outputs, targets, final=True)
        return sum(terms.values()), (outputs, targets, terms, updates["batch_stats"])

    return step(variables["params"]), objects


def test_training_outputs_and_the_assignment_equal_the_reference(trained, golden):
    data = golden("yolox_train")
    ((_, (outputs, targets, _, _)), _), objects = trained
    raw = below(data, "head_raw_train/")
    for found, kind in ((outputs.logits, "cls"), (outputs.offsets, "reg")):
        wanted = flat(raw, kind)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.std(wanted))
    wanted = flat(raw, "obj")[..., 0]
    np.testing.assert_allclose(outputs.objectness, wanted, rtol=1e-4, atol=1e-4 * np.std(wanted))
    for i in range(len(targets.positive)):
        positive = np.asarray(targets.positive[i])
        np.testing.assert_array_equal(positive, data[f"img{i}/fg_mask"])
        slots = data[f"img{i}/matched_gt_inds"]
        np.testing.assert_array_equal(targets.boxes[i][positive], objects.boxes[i][slots])
        assert not np.asarray(targets.boxes[i])[~positive].any()
        np.testing.assert_array_equal(targets.labels[i][positive], data[f"img{i}/matched_classes"])
        np.testing.assert_allclose(
            targets.overlaps[i][positive], data[f"img{i}/pred_ious"], rtol=1e-4
        )


def test_losses_with_and_without_l1_equal_the_reference(trained, golden):
    data = golden("yolox_train")
    ((total, (outputs, targets, terms, _)), _), objects = trained
    np.testing.assert_allclose(total, data["l11/total_loss"], rtol=1e-5)
    for ours, theirs in TERMS.items():
        name = f"{ours.strip('_')}_loss"
        np.testing.assert_allclose(terms[name], data[f"l11/{theirs}_loss"], rtol=1e-4)
    before, after = (
        yolox.point_losses(LOSS, outputs, targets, final=jnp.asarray(final))
        for final in (False, True)
    )
    assert float(before["l1_loss"]) == data["l10/l1_loss"] == 0
    np.testing.assert_allclose(sum(before.values()), data["l10/total_loss"], rtol=1e-5)
    np.testing.assert_allclose(after["l1_loss"], terms["l1_loss"], rtol=1e-6)
    ratio = targets.positive.sum() / objects.valid.sum()
    assert float(ratio) == data["l11/num_fg"]


def test_gradients_equal_the_reference(trained, model, golden):
    wanted = below(golden("yolox_train"), "grad_l11/")
    (_, gradients), _ = trained
    found = interop.to_torch({"params": gradients}, names="yolox", bgr=False)
    assert len(wanted) == 24
    for name, value in wanted.items():
        np.testing.assert_allclose(
            found[name], value, rtol=1e-3, atol=2e-4 * np.abs(value).max(), err_msg=name
        )


def test_running_statistics_equal_the_reference_up_to_the_unbiased_variance(trained, model, golden):
    """Torch's running variance has n - 1 in the denominator, flax's n."""
    ((_, (*_, batch_stats)), _), _ = trained
    _, variables, x, _ = model
    before, unbiased = flatten_dict(variables["batch_stats"]), {}
    for path, value in flatten_dict(batch_stats).items():
        if path[-1] == "var":
            n = len(x) * x.shape[1] * x.shape[2] // LAYER_STRIDES[path[1]] ** 2
            kept = NORM_MOMENTUM * before[path]
            value = kept + (value - kept) * n / (n - 1)
        unbiased[path] = value
    after = {"params": variables["params"], "batch_stats": unflatten_dict(unbiased)}
    found = interop.to_torch(after, names="yolox", bgr=False)
    wanted = below(golden("yolox_train"), "after_train/")
    assert len(wanted) == 148
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@functools.cache
def loss_of_outputs(devices, assign=USUAL, loss=LOSS):
    """Loss, metrics and gradient of given outputs, on so many devices, jitted."""
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    points = grid_points(sizes, STRIDES)

    def step(raw, objects):
        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(raw):
            one = functools.partial(yolox.point_targets, assign, points)
            targets = jax.vmap(one)(*raw, objects)
            outputs = yolox.Outputs(*raw, points)
            terms = yolox.point_losses(loss, outputs, targets, final=True, axis_name="batch")
            return sum(terms.values()), (terms, targets)

        (value, (terms, targets)), gradient = total(raw)
        return jax.lax.pmean((value, terms), "batch"), targets, gradient

    return jax.pmap(step, axis_name="batch", devices=jax.devices()[:devices])


def run_on(devices, raw, objects, **settings):
    """The same on one device or several; the images' own results in one row again."""
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), (raw, objects))
    (total, terms), targets, gradient = loss_of_outputs(devices, **settings)(*split)
    joined = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), (targets, gradient))
    return float(total[0]), jax.tree.map(lambda x: float(x[0]), terms), *joined


def drawn_outputs(batch, seed=0):
    """Logits, offsets and objectness at random, larger boxes among them."""
    rng = np.random.default_rng(seed)
    count = sum((HEIGHT // stride) * (WIDTH // stride) for stride in STRIDES)
    shapes = [(len(batch.index), count, *last) for last in ((CLASSES,), (4,), ())]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def test_one_and_eight_devices_divide_by_the_positives_of_all():
    batch = draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    one, eight = (run_on(n, raw, batch.objects) for n in (1, 8))
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    np.testing.assert_allclose(list(one[1].values()), list(eight[1].values()), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, one[2], eight[2])
    # Each device's gradient is of its share; the steps average them.
    for whole, shares in zip(one[3], eight[3], strict=True):
        np.testing.assert_allclose(whole, shares / 8, rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_point_knows_neither_padding_nor_other_images():
    batch = draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    total, terms, targets, gradient = run_on(1, raw, batch.objects)
    # Garbage in more slots.
    objects = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)], axis=1), batch.objects)
    boxes = jnp.where(objects.valid[..., None], objects.boxes, jnp.nan)
    labels = jnp.where(objects.valid, objects.labels, 10**6)
    wide = run_on(1, raw, objects._replace(boxes=boxes, labels=labels))
    assert wide[0] == total and wide[1] == terms
    jax.tree.map(np.testing.assert_array_equal, (targets, gradient), wide[2:])
    alone = run_on(1, *jax.tree.map(lambda x: x[4:5], (raw, batch.objects)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[4:5], b), targets, alone[2])


def test_crowd_regions_play_no_part():
    batch = draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    # A crowd on the points that learn an object, and on all others.
    everywhere = jnp.array([0.0, 0, WIDTH, HEIGHT])
    boxes = jnp.where(batch.valid[..., None], batch.boxes, everywhere)
    crowded = batch.objects._replace(crowd=~batch.valid, boxes=boxes)
    assert run_on(1, raw, crowded)[:2] == run_on(1, raw, batch.objects)[:2]


def test_without_objects_only_the_objectness_is_learnt():
    batch = draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    nothing = batch.objects._replace(valid=batch.valid & False)
    total, terms, targets, gradient = run_on(1, raw, nothing)
    assert not targets.positive.any()
    wanted = float(jnp.sum(jax.nn.softplus(raw[2])))  # Divided by 1.
    np.testing.assert_allclose([total, terms["objectness_loss"]], wanted, rtol=1e-5)
    assert terms["box_loss"] == terms["class_loss"] == terms["l1_loss"] == 0
    assert not gradient[0].any() and not gradient[1].any() and gradient[2].all()


def test_the_rule_and_the_box_loss_are_settings():
    batch = draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    usual = run_on(1, raw, batch.objects)
    master = run_on(1, raw, batch.objects, assign=RULE)
    assert (usual[2].positive != master[2].positive).any()
    giou = run_on(1, raw, batch.objects, loss=PointLoss(box_kind="giou"))
    positive = usual[2].positive
    points = grid_points([(HEIGHT // n, WIDTH // n) for n in STRIDES], STRIDES)
    boxes = jax.vmap(functools.partial(decode_grid, points))(raw[1])
    wanted = box_losses.giou_loss(boxes, jnp.asarray(usual[2].boxes))[positive]
    wanted = wanted.sum() / positive.sum()
    np.testing.assert_allclose(giou[1]["box_loss"], 5 * wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="box_kind must be one of iou_square, giou; found 'diou'"):
        yolox.yolox(num_classes=2, loss=PointLoss(box_kind="diou"))


def test_metrics_count_positives_and_objects(monkeypatch):
    """The reference logs as num_fg how many points an object learns by."""
    detector, batch = build("yolox"), draw_batch("yolox", 8)
    raw = drawn_outputs(batch)
    sizes = [(HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    outputs = yolox.Outputs(*raw, grid_points(sizes, STRIDES))
    monkeypatch.setattr(yolox, "forward", lambda *args, **settings: (outputs, {}))
    total, (metrics, _) = detector.loss({}, batch, jax.random.key(0))
    positives = run_on(1, raw, batch.objects)[2].positive.sum()
    assert metrics.counts == {"positives": positives, "objects": batch.valid.sum()}
    ratio = metrics.means.pop("positives_per_object")
    np.testing.assert_allclose(ratio, positives / batch.valid.sum(), rtol=1e-6)
    assert metrics.means.keys() == {"box_loss", "objectness_loss", "class_loss"}
    np.testing.assert_allclose(total, sum(metrics.means.values()), rtol=1e-6)


def test_boxes_of_which_clipping_leaves_nothing_are_no_detections():
    boxes = jnp.array([[50, 5, 70, 20], [10, 10, 30, 25], [5, -9, 20, 0], [30, 5, 60, 20]], float)
    scores = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.1], [0.6, 0.1]])
    settings = Suppress(
        score_threshold=0.01, iou_threshold=0.65, max_detections=5, max_candidates=5
    )
    found = yolox.detections(settings, boxes, scores, jnp.array([40, 50]))
    assert found.valid.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(found.boxes[:2], [[10, 10, 30, 25], [30, 5, 50, 20]])
    np.testing.assert_allclose(found.scores, [0.8, 0.6, 0, 0, 0], rtol=1e-6)
    assert found.labels.tolist() == [1, 0, 0, 0, 0] and not found.boxes[2:].any()


def test_a_part_that_says_another_size_than_the_blocks_is_refused():
    with pytest.raises(ValueError, match=r"width of CSPDarknet\(width=0.25\) is blocks.width"):
        yolox.yolox(num_classes=2, backbone=CSPDarknet(width=0.25))
    blocks = Blocks(width=0.25)
    assert yolox.yolox(num_classes=2, blocks=blocks, backbone=CSPDarknet(width=0.25))
