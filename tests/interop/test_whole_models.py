"""Whole detectors with the weights of a reference, against what that computes of two images.

The weights are drawn, not stored: `torch_weights` says how. Maps are compared at
every few numbers of theirs, in the order of torch.
"""

import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxdet
from jaxdet.detectors import features, rpn
from jaxdet.detectors.settings import Pixels
from jaxdet.interop import from_torch, settings_for

GOLDENS = Path(__file__).parent.parent / "goldens"
# Float32 noise is a tenth of these: of maps and outputs in their deviations, of boxes in pixels.
MAPS, OUTPUTS, BOXES, SCORES, LOSSES = 1e-3, 2e-3, 2e-2, 2e-3, 1e-3
YXYX = [1, 0, 3, 2]  # There and back, also of deltas.
PARTS = ("backbone", "neck", "rpn_head", "retina_head")


def torch_weights(name):
    """What the reference was run with: normal numbers, drawn from the place of each name.

    Rows of matrices have mean 0, which takes away what a ReLU gives all features.
    """
    spec = json.loads((GOLDENS / f"whole_{name}.json").read_text())
    weights = {}
    for i, (key, shape) in enumerate(sorted(spec["shapes"].items())):
        if key.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng([1, i])
        if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            value = rng.random(shape, dtype=np.float32) + np.float32(0.5)
        elif len(shape) == 1:
            value = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        else:
            value = rng.standard_normal(shape, dtype=np.float32)
            value -= value.mean(axis=tuple(range(1, len(shape))), dtype=np.float64, keepdims=True)
            value *= np.float32(np.sqrt(2 / value[0].size))
        for scale, shift in [rule[1:] for rule in spec["rules"] if re.search(rule[0], key)][-1:]:
            value *= np.float32(scale)
            value += np.float32(shift)
        weights[key] = value
    return weights


def variables_of(detector, name, images):
    """The weights as variables; every one has its place."""
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    variables, report = from_torch(torch_weights(name), shapes)
    assert not report.missing and not report.unused
    return variables


def images_of(data):
    """Both images on a canvas with garbage beside them."""
    pixels = np.full((2, *data["batch_hw"], 3), 77, np.uint8)
    for i, (height, width) in enumerate(data["img_hw"]):
        pixels[i, :height, :width] = data[f"image_rgb_uint8/{i}"]
    return jaxdet.Images(pixels, data["img_hw"].astype(np.int32), np.ones(2, np.float32))


def batch_of(data, images, slots=6):
    """The images with their objects."""
    boxes, labels = np.zeros((2, slots, 4), np.float32), np.zeros((2, slots), np.int32)
    valid = np.zeros((2, slots), bool)
    for i in range(2):
        count = len(data[f"train/gts/{i}"])
        boxes[i, :count], labels[i, :count] = data[f"train/gts/{i}"], data[f"train/gt_labels/{i}"]
        valid[i, :count] = True
    return jaxdet.Batch(
        images, boxes, labels, valid, np.zeros_like(valid), np.arange(2, dtype="u4")
    )


def torchvision_input(data):
    """Images as torchvision gives them to its networks: resized after normalising."""
    pixels = Pixels()
    found = np.zeros((2, *data["batch_hw"], 3), np.float32)
    for i, (height, width) in enumerate(data["resized_hw"]):
        image = (data[f"image_rgb_uint8/{i}"] - np.float64(pixels.mean)) / pixels.std
        for axis, count in enumerate((height, width)):
            image = resize(image, count, axis)
        found[i, :height, :width] = image
    assert_sampled(data, "transformed", found, 1e-5)
    return found


def resize(image, count, axis):
    """Bilinear along an axis, as torch does it with corners not aligned, places in float32."""
    last = image.shape[axis] - 1
    scale = np.float32(image.shape[axis] / count)
    place = np.clip((np.arange(count, dtype=np.float32) + 0.5) * scale - 0.5, 0, last)
    before = np.floor(place).astype(int)
    weight = (place - before).reshape([-1 if i == axis else 1 for i in range(3)])
    after = np.minimum(before + 1, last)
    return image.take(before, axis) * (1 - weight) + image.take(after, axis) * weight


def to_originals(data, found):
    """Boxes in pixels of the images, each side by its own ratio."""
    sizes = np.stack([data[f"image_rgb_uint8/{i}"].shape[:2] for i in range(2)])
    ratios = np.tile((sizes / data["resized_hw"])[:, ::-1], 2)
    return found._replace(boxes=found.boxes * ratios[:, None])


def merged(settings, more):
    """Nested settings with others in their places."""
    both = settings.keys() & more.keys()
    inner = {key: merged(settings[key], more[key]) for key in both if isinstance(more[key], dict)}
    return settings | more | inner


@pytest.fixture
def run(monkeypatch):
    """`run(detector, variables, images, batch)` gives detections, metrics and what is in between.

    One compilation: what prediction and loss share is computed once.
    """
    seen = {}

    def record(name, function):
        def recording(*args, **keywords):
            seen[name] = function(*args, **keywords)
            return seen[name]

        return recording

    def see_parts(call, args, keywords, context):
        name = context.module.name
        return (record(name, call) if name in PARTS else call)(*args, **keywords)

    def run(detector, variables, images, batch=None):
        def both(variables, images, batch):
            with nn.intercept_methods(see_parts), monkeypatch.context() as patch:
                patch.setattr(rpn, "propose", record("proposals", rpn.propose))
                found = detector.predict(variables, images)
            if batch is None:
                return found, {}, dict(seen)
            total, (metrics, _) = detector.loss(variables, batch, jax.random.key(0))
            return found, {**metrics.means, **metrics.counts, "total": total}, dict(seen)

        return jax.tree.map(np.asarray, jax.jit(both)(variables, images, batch))

    return run


def assert_sampled(data, name, found, tolerance):
    """Compares a map (B, H, W, C) or another array with the numbers of a file."""
    found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
    np.testing.assert_array_equal(found.shape, data[f"{name}/shape"], err_msg=name)
    deviation = data[f"{name}/mean_std_absmax"][1]
    sample = found.reshape(-1)[:: int(data[f"{name}/step"])]
    np.testing.assert_allclose(
        sample, data[f"{name}/sample"], rtol=0, atol=tolerance * deviation, err_msg=name
    )


def assert_outputs(data, name, found):
    """Compares the outputs of all anchors with the maps of a file, level by level."""
    start, found = 0, found.reshape(*found.shape[:2], -1)
    for level in range(5):
        batch, channels, height, width = data[f"{name}/{level}/shape"]
        count = channels * height * width // found.shape[-1]
        maps = found[:, start : start + count].reshape(batch, height, width, channels)
        assert_sampled(data, f"{name}/{level}", maps, OUTPUTS)
        start += count
    assert start == found.shape[1]


def assert_same_boxes(found, boxes, scores=None, labels=None):
    """Compares the boxes of one image in whatever order; equal scores may come in any."""
    assert found.valid.sum() == len(boxes)
    distance = np.abs(found.boxes[found.valid][:, None] - boxes).max(axis=-1) / BOXES
    if scores is not None:
        apart = np.abs(found.scores[found.valid][:, None] - scores) / SCORES
        distance = np.maximum(distance, apart)
    if labels is not None:
        distance[found.labels[found.valid][:, None] != labels] = np.inf
    pairs = linear_sum_assignment(np.minimum(distance, 1e6))
    assert distance[pairs].max() < 1


def of_image(structs, i):
    return jax.tree.map(lambda leaf: leaf[i], structs)


def assert_detections(data, found, background_first=False):
    for i in range(2):
        wanted, labels = data[f"dets_all/{i}"], data[f"dets_all_labels/{i}"] - background_first
        assert_same_boxes(of_image(found, i), wanted[:, :4], wanted[:, 4], labels)


def test_mmdetections_faster_rcnn(golden, run):
    data = golden("whole_mmdet_faster_rcnn")
    everything = {"num_samples": len(data["train/labels"][0])}
    detector = jaxdet.build(
        "faster_rcnn",
        num_classes=int(data["num_classes"]),
        rpn={
            "sample": everything,
            "train": {"pre_nms": 300, "num_proposals": 150},
            "test": {"pre_nms": 300, "num_proposals": 100},
        },
        roi={"sample": {"num_samples": 160}, "suppress": {"max_detections": 2000}},
    )
    images = images_of(data)
    variables = variables_of(detector, "mmdet_faster_rcnn", images)
    found, metrics, seen = run(detector, variables, images, batch_of(data, images))
    for level in range(5):
        assert_sampled(data, f"fpn/{level}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["rpn_head"][0])
    assert_outputs(data, "head_reg", seen["rpn_head"][1])
    for i in range(2):
        wanted = data[f"proposals/{i}"]
        assert_same_boxes(of_image(seen["proposals"], i), wanted[:, :4], wanted[:, 4])
    assert_detections(data, found)
    assert metrics["rpn_positives"] == data["train/num_total_pos"]
    assert metrics["roi_positives"] == sum(data[f"train/n_pos_neg/{i}"][0] for i in range(2))
    losses = {
        "rpn_class_loss": data["train/loss_rpn_cls"].sum(),
        "rpn_box_loss": data["train/loss_rpn_bbox"].sum(),
        "class_loss": data["train/loss_cls"],
        "box_loss": data["train/loss_bbox"],
        "accuracy": data["train/acc"][0] / 100,
        "total": data["train/loss_total"],
    }
    for name, wanted in losses.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=LOSSES, err_msg=name)


def test_mmdetections_retinanet(golden, run):
    data = golden("whole_mmdet_retinanet")
    detector = jaxdet.build(
        "retinanet", num_classes=int(data["num_classes"]), suppress={"max_detections": 2000}
    )
    images = images_of(data)
    variables = variables_of(detector, "mmdet_retinanet", images)
    found, metrics, seen = run(detector, variables, images, batch_of(data, images))
    for level in range(5):
        assert_sampled(data, f"fpn/{level}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["retina_head"][0])
    assert_outputs(data, "head_reg", seen["retina_head"][1])
    assert_detections(data, found)
    assert metrics["positives"] == data["train/num_total_pos"]
    losses = {
        "class_loss": data["train/loss_cls"].sum(),
        "box_loss": data["train/loss_bbox"].sum(),
        "total": data["train/loss_total"],
    }
    for name, wanted in losses.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=LOSSES, err_msg=name)


def torchvisions(detector, data, num_classes, more):
    """A detector with the settings of the published one, but for these and its epsilon.

    The reference was made without published weights, which alone make its epsilon 0.
    """
    more = merged(more, {"backbone": {"norm_epsilon": 1e-5}})
    settings = merged(settings_for("torchvision", detector), more)
    pixels = np.zeros((2, *data["batch_hw"], 3), np.uint8)
    images = jaxdet.Images(pixels, data["resized_hw"].astype(np.int32), np.ones(2, np.float32))
    return jaxdet.build(detector, num_classes=num_classes, **settings), images


def test_torchvisions_retinanet(golden, run, monkeypatch):
    data = golden("whole_tv_retinanet")
    x = jnp.asarray(torchvision_input(data))
    more = {"suppress": {"max_detections": 2000}}
    detector, images = torchvisions("retinanet", data, 5, more)
    variables = variables_of(detector, "tv_retinanet", images)
    monkeypatch.setattr(features, "normalize", lambda pixels, images: x)
    found, _, seen = run(detector, variables, images)
    for level, name in enumerate(("0", "1", "2", "p6", "p7")):
        assert_sampled(data, f"fpn/{name}", seen["neck"][level], MAPS)
    assert_sampled(data, "head_cls", seen["retina_head"][0], OUTPUTS)
    assert_sampled(data, "head_reg", seen["retina_head"][1], OUTPUTS)
    assert_detections(data, to_originals(data, found))


def test_torchvisions_faster_rcnn(golden, run, monkeypatch):
    data = golden("whole_tv_faster_rcnn")
    x = jnp.asarray(torchvision_input(data))
    more = {
        "rpn": {"test": {"pre_nms": 300, "num_proposals": 100}},
        "roi": {"suppress": {"max_detections": 2000}},
    }
    detector, images = torchvisions("faster_rcnn", data, 5, more)
    variables = variables_of(detector, "tv_faster_rcnn", images)
    monkeypatch.setattr(features, "normalize", lambda pixels, images: x)
    found, _, seen = run(detector, variables, images)
    for level, name in enumerate(("0", "1", "2", "3", "pool")):
        assert_sampled(data, f"fpn/{name}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["rpn_head"][0])
    assert_outputs(data, "head_reg", seen["rpn_head"][1])
    for i in range(2):
        assert_same_boxes(of_image(seen["proposals"], i), data[f"proposals/{i}"])
    assert_detections(data, to_originals(data, found), background_first=True)


def test_simple_faster_rcnn(golden, run):
    data = golden("whole_sfrcnn_vgg16")
    counts = {"pre_nms": 600, "num_proposals": 80}
    settings = settings_for("simple_faster_rcnn", "faster_rcnn")
    small = settings["rpn"]["test"]
    # How it trains, with every anchor and region of either kind.
    train = {
        "rpn": {
            "inside": {"allowed_border": 0.0, "count_touching": True},
            "assign": {"min_positive_iou": 0.0, "reassign_low_quality": False},
            "sample": {"num_samples": 2000, "positive_fraction": 1.0},
            "loss": {"least_samples": 0, "box": {"kind": "smooth_l1", "beta": 1 / 9}},
            "train": small | counts,
            "test": counts,
        },
        "roi": {"sample": {"num_samples": 168, "positive_fraction": 0.5}},
    }
    train["roi"]["loss"] = {"box": {"kind": "smooth_l1"}}
    detector = jaxdet.build("faster_rcnn", num_classes=5, **merged(settings, train))
    pixels = data["image_rgb_uint8"][None]
    scale = data["scale"].astype(np.float32)
    images = jaxdet.Images(pixels, np.array([pixels.shape[1:3]], np.int32), scale[None])
    variables = variables_of(detector, "sfrcnn_vgg16", images)
    boxes, labels = data["train/gt_bbox_yxyx"][:, YXYX], data["train/gt_label"].astype(np.int32)
    valid = np.ones((1, len(labels)), bool)
    batch = jaxdet.Batch(images, boxes[None], labels[None], valid, ~valid, np.arange(1, dtype="u4"))
    found, metrics, seen = run(detector, variables, images, batch)
    assert_sampled(data, "feat", seen["backbone"][0], MAPS)
    logits, deltas = seen["rpn_head"]
    scores = data["rpn_scores/sample"].reshape(-1, 2)
    apart = scores[:, 1] - scores[:, 0]
    np.testing.assert_allclose(logits[0], apart, rtol=0, atol=OUTPUTS * apart.std())
    assert_sampled(data, "rpn_locs", deltas[..., YXYX], OUTPUTS)
    assert_same_boxes(of_image(seen["proposals"], 0), data["rois"][:, YXYX])
    found = of_image(found, 0)
    found = found._replace(boxes=found.boxes / scale)
    wanted = data["pred_bbox_yxyx"][:, YXYX], data["pred_score"], data["pred_label"]
    assert_same_boxes(found, *wanted)
    losses = {
        "rpn_class_loss": data["train/rpn_cls_loss"],
        "rpn_box_loss": data["train/rpn_loc_loss"],
        "class_loss": data["train/roi_cls_loss"],
        "box_loss": data["train/roi_loc_loss"],
        "total": data["train/total_loss"],
    }
    for name, wanted in losses.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=LOSSES, err_msg=name)
