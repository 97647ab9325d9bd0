import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdet.detectors import faster_rcnn, retinanet
from jaxdet.interop import from_torch, to_torch
from jaxdet.models import (
    FPN,
    PAFPN,
    VGG,
    BoxHead,
    CSPDarknet,
    ResNet,
    RetinaHead,
    RPNHead,
    YOLOXHead,
)
from jaxdet.models.cspdarknet import focus
from jaxdet.types import UserError

GOLDENS = Path(__file__).parent.parent / "goldens"
FINITE = "finite float32 numbers"


def detector(*, num_classes=3, depth=18, width=4, channels=8, hidden=16, norm="frozen"):
    """The shapes of a Faster R-CNN's variables."""
    key = jax.random.key(0)
    backbone = ResNet(depth=depth, width=width, norm=norm)
    neck, rpn_head = FPN(channels=channels), RPNHead(num_anchors=3, channels=channels)
    box_head = BoxHead(num_classes=num_classes, hidden=hidden)

    def init(images, regions):
        maps, variables = backbone.init_with_output(key, images, train=False)
        pyramid, neck_variables = neck.init_with_output(key, maps)
        params = {
            "backbone": variables["params"],
            "neck": neck_variables["params"],
            "rpn_head": rpn_head.init(key, pyramid)["params"],
            "box_head": box_head.init(key, regions)["params"],
        }
        stats = variables.get("batch_stats")
        return {"params": params} | ({"batch_stats": {"backbone": stats}} if stats else {})

    return jax.eval_shape(init, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 7, 7, channels)))


def yolox(*, depth=0.33, width=0.125, num_classes=3, depthwise=False):
    """The shapes of a YOLOX's variables."""
    parts = {
        "backbone": CSPDarknet(depth=depth, width=width, depthwise=depthwise),
        "neck": PAFPN(depth=depth, depthwise=depthwise),
        "head": YOLOXHead(num_classes, width=width, depthwise=depthwise),
    }

    def init(x):
        params, batch_stats = {}, {}
        for name, module in parts.items():
            x, variables = module.init_with_output(jax.random.key(0), x, train=False)
            params[name], batch_stats[name] = variables["params"], variables["batch_stats"]
        return {"params": params, "batch_stats": batch_stats}

    return jax.eval_shape(init, jnp.zeros((1, 32, 32, 3)))


def numbered(shapes):
    """Arrays of these shapes; no two elements of one array are equal."""
    return {name: np.arange(np.prod(s), dtype=np.float32).reshape(s) for name, s in shapes.items()}


def assert_round_trip(tensors, variables, names):
    """Every tensor that has a place in the variables comes back as it was; gives the report."""
    filled, report = from_torch(tensors, variables)
    known = set(tensors) - set(report.unused)
    known = {name for name in known if not name.endswith("num_batches_tracked")}
    back = to_torch(filled, names=names)
    assert back.keys() == known
    for name in known:
        if ".box_predictor.bbox_pred." in name or "head.cls_loc." in name:
            back[name][:4] = tensors[name][:4]  # Background's box is not kept.
        np.testing.assert_array_equal(back[name], tensors[name], err_msg=name)
    return report


@pytest.mark.parametrize(
    "file, key, names, num_classes",
    [
        ("mmdet_keys", "faster_rcnn_r50_fpn_coco80", "mmdetection", 80),
        ("torchvision_keys", "fasterrcnn_resnet50_fpn", "torchvision", 90),
    ],
)
def test_the_names_of_a_whole_detector_map_one_to_one(file, key, names, num_classes):
    tensors = numbered(json.loads((GOLDENS / f"{file}.json").read_text())[key])
    variables = detector(num_classes=num_classes, depth=50, width=64, channels=256, hidden=1024)
    report = assert_round_trip(tensors, variables, names)
    assert not report.missing and not report.unused


def test_a_resnet_file_fills_only_the_backbone():
    keys = json.loads((GOLDENS / "torchvision_keys.json").read_text())["resnet50"]
    variables = detector(depth=50, width=64)
    report = assert_round_trip(numbered(keys), variables, "resnet")
    assert report.unused == ("fc.bias", "fc.weight")
    assert all("/backbone/" in path for path in report.loaded)
    assert report.missing and not any("/backbone/" in path for path in report.missing)


def test_a_vgg_file_fills_the_backbone_and_the_fully_connected_layers():
    keys = json.loads((GOLDENS / "torchvision_keys.json").read_text())["vgg16"]

    def init(images, regions):
        key = jax.random.key(0)
        backbone = VGG().init(key, images, train=False)["params"]
        box_head = BoxHead(num_classes=3, hidden=4096).init(key, regions)["params"]
        return {"params": {"backbone": backbone, "box_head": box_head}}

    variables = jax.eval_shape(init, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 7, 7, 512)))
    # Of the large matrices no more than their shapes and corners is worth the memory.
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in keys.items()}
    filled, report = from_torch(tensors, variables)
    assert report.unused == ("classifier.6.bias", "classifier.6.weight")
    assert len(report.loaded) == 2 * (13 + 2)
    assert all("box_head/logits" in p or "box_head/deltas" in p for p in report.missing)
    assert filled["params"]["box_head"]["fc0"]["kernel"].shape == (7, 7, 512, 4096)


def test_a_box_head_of_another_size_than_the_classifiers_starts_at_random():
    shapes = {"features.0.weight": (64, 3, 3, 3), "classifier.0.weight": (4096, 25088)}
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    leaf = jax.ShapeDtypeStruct((3, 3, 3, 64), np.float32)
    small = jax.ShapeDtypeStruct((7, 7, 512, 256), np.float32)
    params = {"backbone": {"layer1": {"conv1": {"kernel": leaf}}}}
    params["box_head"] = {"fc0": {"kernel": small}}
    filled, report = from_torch(tensors, {"params": params})
    assert report.missing == ("params/box_head/fc0/kernel",)
    assert filled["params"]["box_head"]["fc0"]["kernel"] is small


def test_a_vgg_round_trip_keeps_every_number():
    init = jax.eval_shape(
        lambda x: VGG(width=2).init(jax.random.key(0), x, train=False), jnp.zeros((1, 32, 32, 3))
    )
    variables = {"params": {"backbone": init["params"]}}
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    shapes = {name: value.shape for name, value in to_torch(zeros, names="vgg").items()}
    assert not assert_round_trip(numbered(shapes), variables, "vgg").missing


def test_retinanet_has_mmdetections_names():
    head = RetinaHead(num_classes=3, num_anchors=9, channels=4, num_convs=4)
    params = jax.eval_shape(head.init, jax.random.key(0), (jnp.zeros((1, 4, 4, 4)),))["params"]
    variables = {"params": {"retina_head": params}}
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    tensors = numbered({name: value.shape for name, value in to_torch(zeros).items()})
    assert tensors["bbox_head.retina_cls.weight"].shape == (27, 4, 3, 3)
    assert "bbox_head.cls_convs.3.conv.weight" in tensors
    assert not assert_round_trip(tensors, variables, "mmdetection").missing


@pytest.mark.parametrize("key, width, depthwise", [("s", 0.5, False), ("nano", 0.25, True)])
def test_yolox_names_map_one_to_one(key, width, depthwise):
    tensors = numbered(json.loads((GOLDENS / "yolox_s_keys.json").read_text())[f"yolox_{key}"])
    variables = yolox(width=width, num_classes=80, depthwise=depthwise)
    report = assert_round_trip(tensors, variables, "yolox")
    assert not report.missing and not report.unused


def test_yolox_stems_for_bgr_read_the_same_pixels():
    variables = yolox()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    tensors = numbered({k: v.shape for k, v in to_torch(zeros, names="yolox").items()})
    kernels = [
        from_torch(tensors, variables, bgr=bgr)[0]["params"]["backbone"]["stem"]["conv"]["kernel"]
        for bgr in (False, True, None)
    ]
    np.testing.assert_array_equal(kernels.pop(), kernels[1])  # They read BGR unless told otherwise.
    image = np.random.default_rng(0).normal(size=(1, 6, 6, 3)).astype(np.float32)
    plain, turned = (
        np.einsum("bhwc,hwco->o", focus(jnp.asarray(x)), kernel)
        for x, kernel in zip((image[..., ::-1], image), kernels, strict=True)
    )
    np.testing.assert_allclose(turned, plain, rtol=1e-4)
    assert not np.allclose(*kernels)
    back = to_torch(from_torch(tensors, variables)[0], names="yolox")
    name = "backbone.backbone.stem.conv.conv.weight"
    np.testing.assert_array_equal(back[name], tensors[name])


def test_weights_of_other_classes_fill_all_but_what_the_classes_are_many_of():
    whole = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), yolox(num_classes=80))
    tensors = numbered({k: v.shape for k, v in to_torch(whole, names="yolox").items()})
    variables = yolox(num_classes=3)
    filled, report = from_torch(tensors, variables)
    outputs = [
        f"params/head/logits{level}/{leaf}" for level in range(3) for leaf in ("bias", "kernel")
    ]
    assert sorted(report.missing) == sorted(outputs) and not report.unused
    assert filled["params"]["head"]["logits0"] == variables["params"]["head"]["logits0"]
    # Another width is another network.
    with pytest.raises(UserError, match="dark2.* does not fit "):
        from_torch(tensors, yolox(width=0.25))


def test_the_frozen_parameters_are_those_that_mmdetection_freezes():
    wanted = json.loads((GOLDENS / "mmdet_keys.json").read_text())["frozen_after_train_call"]
    backbone = {"params": detector(depth=50)["params"]["backbone"]}
    leaves = flatten_dict(backbone, sep="/")
    prefixes = tuple(f"{prefix}/" for prefix in ResNet(frozen_stages=1).frozen)
    frozen = {
        path: np.zeros(leaf.shape) for path, leaf in leaves.items() if path.startswith(prefixes)
    }
    params = unflatten_dict(frozen, sep="/")["params"]
    assert sorted(to_torch({"params": {"backbone": params}})) == sorted(wanted)


def small(names="mmdetection", **settings):
    """The tensors of a small detector, all different, and the shapes of its variables."""
    variables = detector(**settings)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    return numbered({k: v.shape for k, v in to_torch(zeros, names=names).items()}), variables


def test_the_first_fully_connected_layer_reads_regions_in_our_order():
    tensors, variables = small()
    filled, _ = from_torch(tensors, variables)
    region = np.random.default_rng(0).normal(size=(7, 7, 8))
    weight = tensors["roi_head.bbox_head.shared_fcs.0.weight"]
    wanted = weight @ region.transpose(2, 0, 1).reshape(-1)  # Torch flattens C, H, W.
    found = np.einsum("hwc,hwco->o", region, filled["params"]["box_head"]["fc0"]["kernel"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("convs, fcs", [((4, 0, 0), (1, 0, 0)), ((1, 2, 1), (0, 1, 0))])
def test_convolutions_of_the_box_head_have_mmdetections_names_and_layouts(convs, fcs):
    head = BoxHead(
        num_classes=2,
        hidden=6,
        shared_convs=convs[0],
        class_convs=convs[1],
        box_convs=convs[2],
        shared_fcs=fcs[0],
        class_fcs=fcs[1],
        box_fcs=fcs[2],
        conv_channels=8,
        norm="group",
    )
    params = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 7, 7, 4)))["params"]
    variables = {"params": {"box_head": params}}
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    tensors = numbered({name: value.shape for name, value in to_torch(zeros).items()})
    prefix = "roi_head.bbox_head"
    assert tensors[f"{prefix}.shared_convs.0.conv.weight"].shape == (8, 4, 3, 3)
    assert tensors[f"{prefix}.shared_convs.0.gn.weight"].shape == (8,)
    first = "shared_fcs.0" if fcs[0] else "cls_fcs.0"
    assert tensors[f"{prefix}.{first}.weight"].shape == (6, 8 * 7 * 7)
    if convs[1]:
        assert tensors[f"{prefix}.cls_convs.1.conv.weight"].shape == (8, 8, 3, 3)
        assert tensors[f"{prefix}.reg_convs.0.gn.bias"].shape == (8,)
        assert tensors[f"{prefix}.fc_reg.weight"].shape == (2 * 4, 8 * 7 * 7)
    assert not assert_round_trip(tensors, variables, "mmdetection").missing


def test_torchvisions_background_moves_to_the_end_and_loses_its_box():
    tensors, variables = small("torchvision", num_classes=3, hidden=2)
    tensors["roi_heads.box_predictor.cls_score.bias"] = np.float32([9, 0, 1, 2])
    tensors["roi_heads.box_predictor.bbox_pred.bias"] = np.arange(16, dtype=np.float32)
    filled, _ = from_torch(tensors, variables)
    head = filled["params"]["box_head"]
    np.testing.assert_array_equal(head["logits"]["bias"], [0, 1, 2, 9])
    np.testing.assert_array_equal(head["deltas"]["bias"], np.arange(4, 16))
    back = to_torch(filled, names="torchvision")
    deltas = back["roi_heads.box_predictor.bbox_pred.bias"]
    np.testing.assert_array_equal(deltas, [0, 0, 0, 0, *range(4, 16)])


def test_the_names_of_torchvisions_published_weights_are_known():
    tensors, variables = small("torchvision")
    old = {
        name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if "fpn" in name
        else name.replace("conv.0.0", "conv"): value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    _, report = from_torch(old, variables)
    assert not report.missing and not report.unused


def test_a_retinanet_has_torchvisions_names_old_and_new():
    tensors = json.loads((GOLDENS / "whole_tv_retinanet.json").read_text())["shapes"]
    tensors = numbered({k: v for k, v in tensors.items() if "num_batches" not in k})
    model = retinanet.RetinaNet(
        ResNet(),
        FPN(start_level=1, extra="on_output"),
        RetinaHead(num_classes=5),
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    report = assert_round_trip(tensors, variables, "torchvision")
    assert not report.missing and not report.unused
    conv = re.compile(r"(head\.\w+_head\.conv)\.(\d)\.0")
    blocks = re.compile(r"((?:inner|layer)_blocks\.\d)\.0")
    old = {
        conv.sub(lambda m: f"{m[1]}.{2 * int(m[2])}", blocks.sub(r"\1", name)): value
        for name, value in tensors.items()
    }
    assert "head.regression_head.conv.6.bias" in old
    filled, report = from_torch(old, variables)
    assert not report.missing and not report.unused
    back = to_torch(filled, names="torchvision")
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_simple_faster_rcnns_names_and_yxyx_deltas_with_background_first():
    model = faster_rcnn.FasterRCNN(
        VGG(width=1), None, RPNHead(num_anchors=2, softmax=True), BoxHead(2, hidden=6), bins=2
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    shapes = {k: v.shape for k, v in to_torch(zeros, names="simple_faster_rcnn").items()}
    golden = json.loads((GOLDENS / "whole_sfrcnn_vgg16.json").read_text())["shapes"]
    assert shapes.keys() == golden.keys()
    tensors = numbered(shapes)
    report = assert_round_trip(tensors, variables, "simple_faster_rcnn")
    assert not report.missing and not report.unused
    params = from_torch(tensors, variables)[0]["params"]
    np.testing.assert_array_equal(params["rpn_head"]["deltas"]["bias"], [1, 0, 3, 2, 5, 4, 7, 6])
    # Three boxes are background's and two classes'; its score is the first of three.
    np.testing.assert_array_equal(params["box_head"]["deltas"]["bias"], [5, 4, 7, 6, 9, 8, 11, 10])
    np.testing.assert_array_equal(params["box_head"]["logits"]["bias"], [1, 2, 0])


def test_group_norm_needs_no_statistics():
    tensors, variables = small(norm="group")
    filled, report = from_torch(tensors, variables)
    assert list(filled) == ["params"] and not report.missing


def test_batch_norm_weights_are_refused_for_group_norm():
    tensors, _ = small()
    with pytest.raises(UserError, match=r"r50.pth: backbone\S*\.running_mean has no place.*'sync'"):
        from_torch(tensors, detector(norm="group"), source="r50.pth")


@pytest.mark.parametrize("names", ["mmdetection", "torchvision", "resnet"])
def test_weights_for_bgr_get_the_stem_for_rgb_and_back(names):
    tensors, variables = small(names)
    plain, _ = from_torch(tensors, variables)
    filled, _ = from_torch(tensors, variables, bgr=True)
    kernel = plain["params"]["backbone"]["stem_conv"]["kernel"]
    image = np.random.default_rng(0).normal(size=kernel.shape[:3])
    found = np.einsum("hwc,hwco->o", image, filled["params"]["backbone"]["stem_conv"]["kernel"])
    np.testing.assert_allclose(found, np.einsum("hwc,hwco->o", image[..., ::-1], kernel))
    back = to_torch(filled, names=names, bgr=True)
    for name, value in tensors.items():
        if ".box_predictor.bbox_pred." not in name:  # Background's box is not kept.
            np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_a_report_is_one_line_of_numbers():
    tensors, variables = small()
    tensors["neck.other.weight"] = tensors.pop("neck.lateral_convs.0.conv.weight")
    tensors["neck.third.weight"] = tensors["neck.other.weight"]
    _, report = from_torch(tensors, variables)
    count = len(jax.tree.leaves(variables)) - 1
    assert f"{report}" == f"{count} arrays loaded, 1 drawn at random, 2 unused"


def test_what_does_not_match_is_reported_and_left_alone():
    tensors, variables = small()
    tensors["neck.other.weight"] = tensors.pop("neck.lateral_convs.0.conv.weight")
    tensors["backbone.bn1.num_batches_tracked"] = np.int64(7)
    filled, report = from_torch(tensors, variables)
    assert report.missing == ("params/neck/lateral0/kernel",)
    assert report.unused == ("neck.other.weight",)
    wanted = variables["params"]["neck"]["lateral0"]["kernel"]
    assert filled["params"]["neck"]["lateral0"]["kernel"] is wanted


def test_arrays_take_the_type_of_the_leaf():
    tensors, variables = small()
    halves = {name: value.astype(np.float16) for name, value in tensors.items()}
    filled, _ = from_torch(halves, variables)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(filled))


def with_first(value, dtype=np.float32):
    """Gives an array another type, and then another first value."""

    def change(array):
        array = array.astype(dtype)
        array.flat[0] = value
        return array

    return change


@pytest.mark.parametrize(
    "name, change, line",
    [
        ("conv1.weight", with_first(np.nan), rf"{FINITE}, found nan \(1 of 588\)"),
        ("conv1.weight", with_first(-np.inf, np.float16), rf"{FINITE}, found -inf \(1 of 588\)"),
        ("conv1.weight", with_first(1e300, np.float64), rf"{FINITE}, found 1e\+300 \(1 of 588\)"),
        ("conv1.weight", with_first(np.inf, jnp.bfloat16), rf"{FINITE}, found inf \(1 of 588\)"),
        ("conv1.weight", with_first(1, np.int8), "floating numbers, found int8"),
        ("conv1.weight", with_first(1, bool), "floating numbers, found bool"),
        ("bn1.running_var", with_first(-0.5), r"variances of at least 0, found -0.5 \(1 of 4\)"),
    ],
)
def test_numbers_that_no_detector_computes_with_are_refused(name, change, line):
    tensors, variables = small()
    tensors[f"backbone.{name}"] = change(tensors[f"backbone.{name}"])
    for strict in (True, False):
        with pytest.raises(UserError, match=f"^w.pth: backbone.{name} wants {line}$"):
            from_torch(tensors, variables, source="w.pth", strict=strict)


def test_the_background_box_that_is_left_out_may_have_any_numbers():
    tensors, variables = small("torchvision", num_classes=3)
    name = "roi_heads.box_predictor.bbox_pred.bias"
    tensors[name] = with_first(np.nan)(tensors[name])
    assert not from_torch(tensors, variables)[1].missing


def test_bfloat16_numbers_are_taken():
    tensors, variables = small()
    halves = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    assert not from_torch(halves, variables)[1].missing


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("neck.lateral_convs.1.conv.weight", (8, 9, 1, 1), r"\(8, 8, 1, 1\), found \(8, 9, 1, 1\)"),
        ("roi_head.bbox_head.shared_fcs.0.weight", (16, 99), r"\(16, 392\), found \(16, 99\)"),
        ("roi_head.bbox_head.fc_cls.weight", (81, 9), r"\(4, 16\), found \(81, 9\)"),
        ("backbone.bn1.running_var", (3,), r"\(4,\), found \(3,\)"),
    ],
)
def test_another_shape_names_the_leaf_wanted_and_found(name, shape, message):
    tensors, variables = small()
    tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=rf"weights.npz: {name} does not fit .*/.*{message}"):
        from_torch(tensors, variables, source="weights.npz")


def test_torchvisions_wanted_shape_counts_the_background_box():
    tensors, variables = small("torchvision", num_classes=3)
    assert not from_torch(tensors, variables)[1].missing
    tensors["roi_heads.box_predictor.bbox_pred.bias"] = np.zeros(12, np.float32)
    assert from_torch(tensors, variables)[1].missing == ("params/box_head/deltas/bias",)


@pytest.mark.parametrize("tensors, found", [({}, "nothing"), ({"a.weight": 0}, "a.weight")])
def test_a_file_without_a_known_name_is_refused(tensors, found):
    with pytest.raises(UserError, match=f"w.npz: no name is known.*backbone.*found {found}"):
        from_torch(tensors, detector(), source="w.npz")


def test_unknown_kinds_of_names_and_leaves_are_refused():
    leaf = {"params": {"other": {"kernel": np.zeros((2, 3))}}}
    with pytest.raises(UserError, match="found 'detectron'"):
        to_torch(leaf, names="detectron")
    with pytest.raises(UserError, match="no name for params/other/kernel"):
        to_torch(leaf)
