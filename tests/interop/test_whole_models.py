"""Whole detectors with the weights of a reference, against what that computes of two images.

The weights are drawn, not stored: `whole.torch_weights` says how.
"""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from interop.whole import (
    INPUTS,
    LOSSES,
    MAPS,
    NAMES,
    OUTPUTS,
    assert_gradients,
    assert_same_boxes,
    assert_sampled,
    metrics_of,
    trained_once,
    variables_of,
)

import jaxdet
from jaxdet import model_file
from jaxdet.detectors import rpn
from jaxdet.interop import resize_rule_for, settings_for, to_torch
from jaxdet.prediction import Predictor

YXYX = [1, 0, 3, 2]  # There and back, also of deltas.
FROZEN = {"backbone": {"frozen_stages": 1}}  # As mmdetection trains.
PARTS = ("backbone", "neck", "rpn_head", "retina_head")


def write_model(path, detector, name, fields):
    """A model file of a reference with five classes; `fields` are those of its contents."""
    built = jaxdet.build(detector, num_classes=5, **fields["settings"])
    images = model_file.blank_images(1, fields["canvas"])
    variables = variables_of(built, name, images)
    contents = model_file.Contents(
        detector=detector, class_names=NAMES, variables=variables, **fields
    )
    model_file.write(path, contents)


def originals(data):
    return [data[f"image_rgb_uint8/{i}"] for i in range(2)]


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


def merged(settings, more):
    """Nested settings with others in their places."""
    both = settings.keys() & more.keys()
    inner = {key: merged(settings[key], more[key]) for key in both if isinstance(more[key], dict)}
    return settings | more | inner


@pytest.fixture
def look(monkeypatch):
    """`look(model, images)` gives what a loaded model finds, and what is in between.

    That leaves the model's own program while it runs: there is no other one.
    """
    seen = {}

    def leave(name, values):
        jax.debug.callback(partial(seen.__setitem__, name), values)
        return values

    def see_parts(call, args, keywords, context):
        name, found = context.module.name, call(*args, **keywords)
        if name not in PARTS or context.method_name != "__call__":
            return found
        if name == "backbone":
            leave("input", args[0])
        return leave(name, found)

    def look(model, images):
        propose = rpn.propose
        with nn.intercept_methods(see_parts), monkeypatch.context() as patch:
            patch.setattr(rpn, "propose", lambda *args: leave("proposals", propose(*args)))
            found = model(images, batch_size=len(images))
        jax.effects_barrier()
        found = [
            jaxdet.Detections(f.boxes, f.scores, f.labels, np.ones(len(f), bool)) for f in found
        ]
        return found, jax.tree.map(np.asarray, dict(seen))

    return look


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


def of_image(structs, i):
    return jax.tree.map(lambda leaf: leaf[i], structs)


def assert_detections(data, found, background_first=False):
    """Compares what is found on both images with all that the reference finds."""
    for i in range(2):
        wanted, labels = data[f"dets_all/{i}"], data[f"dets_all_labels/{i}"] - background_first
        assert_same_boxes(found[i], wanted[:, :4], wanted[:, 4], labels)


def mmdetections(detector, data, name, settings, look, path):
    """What a model file finds on either image, what is in between on both, and its losses.

    Each image is alone in its batch, on the canvas of both, and keeps its size: the
    reference was given resized ones.
    """
    canvas = tuple(data["batch_hw"].tolist())
    write_model(path, detector, name, {"settings": settings, "canvas": canvas, "resize": canvas})
    contents, built = model_file.read(path)  # Once, and so both have one program.
    results = []
    for image in originals(data):
        model = Predictor(contents._replace(resize=tuple(sorted(image.shape[:2]))), built)
        results.append(look(model, [image]))
    found, seen = zip(*results, strict=True)
    seen = jax.tree.map(lambda *each: np.concatenate(each), *seen)
    batch = batch_of(data, images_of(data))
    if detector == "retinanet":
        metrics, gradient, _ = trained_once(built, contents.variables, batch)
        assert_learnt(data, built, gradient)
    else:  # Its gradients take long, and have been compared, too.
        metrics = metrics_of(built, contents.variables, batch)
    return [each[0] for each in found], seen, metrics


def assert_learnt(data, detector, gradient):
    """Compares gradients; what the reference does not learn is frozen or stays as it is here."""
    assert_gradients(gradient, data["train/grad_names"], data["train/grad_l2"], "mmdetection")
    arrays = to_torch({"params": gradient}, bgr=False)
    for name in data["train/params_without_grad"]:
        assert not arrays.pop(name).any(), name
    assert all(leaf.any() for leaf in arrays.values())
    frozen = [path for path in detector.frozen if path.startswith("params/")]
    assert len(frozen) == 3


def assert_rescaled(data, found):
    """Compares the best 100 with those that the reference takes back to the first sizes."""
    for i in range(2):
        best = jaxdet.Detections(*(field[:100] for field in found[i]))
        best = best._replace(boxes=best.boxes / data["scale_factor"][i])
        wanted, labels = data[f"rescaled/{i}"], data[f"rescaled_labels/{i}"]
        assert_same_boxes(best, wanted[:, :4], wanted[:, 4], labels)


def test_mmdetections_faster_rcnn(golden, look, tmp_path):
    data = golden("whole_mmdet_faster_rcnn")
    everything = {"num_samples": len(data["train/labels"][0])}
    counts = {
        "rpn": {
            "sample": everything,
            "train": {"pre_nms": 300, "num_proposals": 150},
            "test": {"pre_nms": 300, "num_proposals": 100},
        },
        "roi": {"sample": {"num_samples": 160}, "suppress": {"max_detections": 2000}},
    }
    settings = merged(settings_for("mmdetection", "faster_rcnn"), counts)
    name, path = "mmdet_faster_rcnn", tmp_path / "a.safetensors"
    found, seen, metrics = mmdetections("faster_rcnn", data, name, settings, look, path)
    for level in range(5):
        assert_sampled(data, f"fpn/{level}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["rpn_head"][0])
    assert_outputs(data, "head_reg", seen["rpn_head"][1])
    for i in range(2):
        wanted = data[f"proposals/{i}"]
        assert_same_boxes(of_image(seen["proposals"], i), wanted[:, :4], wanted[:, 4])
    assert_detections(data, found)
    assert_rescaled(data, found)
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


def test_mmdetections_retinanet(golden, look, tmp_path):
    data = golden("whole_mmdet_retinanet")
    more = {"suppress": {"max_detections": 2000}}
    settings = merged(settings_for("mmdetection", "retinanet"), FROZEN | more)
    name, path = "mmdet_retinanet", tmp_path / "a.safetensors"
    found, seen, metrics = mmdetections("retinanet", data, name, settings, look, path)
    for level in range(5):
        assert_sampled(data, f"fpn/{level}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["retina_head"][0])
    assert_outputs(data, "head_reg", seen["retina_head"][1])
    assert_detections(data, found)
    assert_rescaled(data, found)
    assert metrics["positives"] == data["train/num_total_pos"]
    losses = {
        "class_loss": data["train/loss_cls"].sum(),
        "box_loss": data["train/loss_bbox"].sum(),
        "total": data["train/loss_total"],
    }
    for name, wanted in losses.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=LOSSES, err_msg=name)


def torchvisions(detector, data, name, more, path):
    """A loaded detector with the settings of the published one, but for these and its epsilon.

    The reference was made without published weights, which alone make its epsilon 0.
    """
    more = merged(more, {"backbone": {"norm_epsilon": 1e-5}})
    fields = {
        "settings": merged(settings_for("torchvision", detector), more),
        "resize_rule": resize_rule_for("torchvision"),
        "canvas": tuple(data["batch_hw"].tolist()),
        "resize": (160, 224),
    }
    write_model(path, detector, name, fields)
    return jaxdet.load(path, cache=False)


def test_torchvisions_retinanet(golden, look, tmp_path):
    data = golden("whole_tv_retinanet")
    more = {"suppress": {"max_detections": 2000}}
    model = torchvisions("retinanet", data, "tv_retinanet", more, tmp_path / "a.safetensors")
    found, seen = look(model, originals(data))
    assert_sampled(data, "transformed", seen["input"], INPUTS)
    for level, name in enumerate(("0", "1", "2", "p6", "p7")):
        assert_sampled(data, f"fpn/{name}", seen["neck"][level], MAPS)
    assert_sampled(data, "head_cls", seen["retina_head"][0], OUTPUTS)
    assert_sampled(data, "head_reg", seen["retina_head"][1], OUTPUTS)
    assert_detections(data, found)


def test_torchvisions_faster_rcnn(golden, look, tmp_path):
    data = golden("whole_tv_faster_rcnn")
    more = {
        "rpn": {"test": {"pre_nms": 300, "num_proposals": 100}},
        "roi": {"suppress": {"max_detections": 2000}},
    }
    model = torchvisions("faster_rcnn", data, "tv_faster_rcnn", more, tmp_path / "a.safetensors")
    found, seen = look(model, originals(data))
    assert_sampled(data, "transformed", seen["input"], INPUTS)
    for level, name in enumerate(("0", "1", "2", "3", "pool")):
        assert_sampled(data, f"fpn/{name}", seen["neck"][level], MAPS)
    assert_outputs(data, "head_cls", seen["rpn_head"][0])
    assert_outputs(data, "head_reg", seen["rpn_head"][1])
    for i in range(2):
        assert_same_boxes(of_image(seen["proposals"], i), data[f"proposals/{i}"])
    assert_detections(data, found, background_first=True)


def test_simple_faster_rcnn(golden, look):
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
    metrics = metrics_of(detector, variables, batch)
    # The reference was told that its image is an enlarged one, of which boxes of 16 pixels are
    # small enough to be dropped; a predictor takes what it is given for the original.
    told = {"rpn": {"test": counts | {"min_size": float(small["min_size"] * scale)}}}
    sides = pixels.shape[1:3]
    contents = model_file.Contents(
        "faster_rcnn",
        merged(settings, told),
        NAMES,
        canvas=sides,
        resize=sides,
        variables=variables,
    )
    # Not by a file, as the others: it would have half a gigabyte.
    built = jaxdet.build("faster_rcnn", num_classes=5, **contents.settings)
    (found,), seen = look(Predictor(contents, built), [data["image_rgb_uint8"]])
    assert_sampled(data, "feat", seen["backbone"][0], MAPS)
    logits, deltas = seen["rpn_head"]
    scores = data["rpn_scores/sample"].reshape(-1, 2)
    apart = scores[:, 1] - scores[:, 0]
    np.testing.assert_allclose(logits[0], apart, rtol=0, atol=OUTPUTS * apart.std())
    assert_sampled(data, "rpn_locs", deltas[..., YXYX], OUTPUTS)
    assert_same_boxes(of_image(seen["proposals"], 0), data["rois"][:, YXYX])
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
