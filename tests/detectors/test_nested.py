import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import own_backbones
import pytest

from jaxdet import detectors
from jaxdet.detectors import nested
from jaxdet.detectors.fast_rcnn import RoIStage
from jaxdet.detectors.nested import Leaf, describe, fill
from jaxdet.detectors.settings import Assign, Coder, Sample, Suppress
from jaxdet.models import FPN, VGG, BoxHead, CSPDarknet, ResNet
from jaxdet.types import UserError

BUILDERS = detectors.DETECTORS
RCNN, RETINANET, YOLOX = BUILDERS["faster_rcnn"], BUILDERS["retinanet"], BUILDERS["yolox"]


def as_given(described):
    """Described settings as dictionaries of their defaults."""
    return {
        name: leaf.default if isinstance(leaf, Leaf) else as_given(leaf)
        for name, leaf in described.items()
    }


def put(path, value):
    """{"a": {"b": value}} of "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
def test_described_settings_fill_a_builder_with_its_defaults(builder):
    parameters = inspect.signature(builder).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "num_classes"}
    assert fill(builder, as_given(describe(builder, {}))) == defaults


@pytest.mark.parametrize(
    "builder, path",
    [
        (RCNN, "num_classes"),  # Of the data.
        (RCNN, "roi.head.num_classes"),
        (RCNN, "rpn.head.num_anchors"),  # Of the anchors.
        (RCNN, "backbone.dtype"),  # One for all parts, as the next.
        (RCNN, "backbone.axis_name"),
        (RCNN, "backbone.parent"),  # Of Linen.
        (YOLOX, "backbone.depth"),  # One for all parts, in `blocks`.
        (YOLOX, "neck.norm"),
        (YOLOX, "head.width"),
    ],
)
def test_what_the_detector_sets_is_neither_described_nor_taken(builder, path):
    section, _, name = path.rpartition(".")
    described = describe(builder, {})
    for part in filter(None, section.split(".")):
        described = described[part]
    assert described and name not in described
    with pytest.raises(UserError, match=f"no setting '{name}'"):
        fill(builder, put(path, 1))


def test_what_yoloxs_parts_share_can_be_set_of_other_modules():
    given = {"backbone": {"name": "resnet", "depth": 18, "norm": "batch"}}
    assert {"depth", "width", "norm"} <= describe(YOLOX, given)["backbone"].keys()
    assert fill(YOLOX, given)["backbone"] == ResNet(depth=18, norm="batch")


def test_leaves_know_their_default_their_type_and_who_explains_them():
    described = describe(RCNN, {})
    assert described["dtype"] == Leaf("float32", str, RCNN)
    assert described["backbone"]["depth"] == Leaf(50, int, ResNet)
    assert described["roi"]["sample"]["num_samples"] == Leaf(512, int, Sample)
    negative_iou = Leaf((0.0, 0.5), float | tuple[float, float], Assign)
    assert described["roi"]["assign"]["negative_iou"] == negative_iou
    assert described["roi"]["head"]["name"].default == "box_head"


def test_settings_that_are_left_out_stay_what_they_were():
    filled = fill(RCNN, {"roi": {"sample": {"num_samples": 64}, "head": {"hidden": 32}}})
    default = RoIStage()
    sample = dataclasses.replace(default.sample, num_samples=64)
    wanted = dataclasses.replace(default, sample=sample, head=BoxHead(hidden=32))
    assert filled == {"roi": wanted}
    assert fill(RCNN, {"roi": {}, "neck": {}}) == {"roi": default, "neck": FPN()}


def test_a_setting_may_be_as_the_builder_takes_it():
    given = dict(backbone=VGG(), neck=None, roi=RoIStage(confusion=True))
    assert fill(RCNN, given) == given


@pytest.mark.parametrize(
    "given, message",
    [
        ({"bakcbone": {}}, "no setting 'bakcbone'; did you mean 'backbone'. known: pixels, backbo"),
        ({"backbone": {"detph": 18}}, "'detph' of backbone; did you mean 'depth'. known: name, de"),
        ({"backbone": {"nmae": "vgg"}}, "no setting 'nmae' of backbone; did you mean 'name'"),
        ({"rpn": {"samples": {}}}, "no setting 'samples' of rpn; did you mean 'sample'"),
        ({"roi": {"sample": {"number": 1}}}, "'number' of roi.sample; .*known: num_samples, pos"),
        ({"roi": {"head": {"hiden": 1}}}, "'hiden' of roi.head; did you mean 'hidden'"),
        ({"roi": {"head": {"x": 1}}}, "no setting 'x' of roi.head; known: name, hidden, shared_c"),
        ({"roi": {"sample": {"num_samples": {"a": 1}}}}, "'a' of roi.sample.num_samples; .* none"),
        ({"roi": {"sample": {1: 2}}}, "no setting 1 of roi.sample; known: num_samples, "),
        ({"neck": {"name": "none", "channels": 1}}, "no setting 'channels' of neck; known: name$"),
    ],
)
def test_unknown_settings_name_the_nearest_and_the_known_ones(given, message):
    with pytest.raises(UserError, match=message):
        fill(RCNN, given)


@pytest.mark.parametrize(
    "path, value, wanted",
    [
        ("roi.sample.num_samples", 64.0, "int"),
        ("roi.sample.num_samples", True, "int"),
        ("roi.sample.positive_fraction", True, "float"),
        ("roi.sample.positive_fraction", "0.5", "float"),
        ("roi.add_ground_truth", 1, "bool"),
        ("roi.coder.stds", 0.1, "tuple of float"),
        ("roi.coder.stds", [0.1, "0.1"], "tuple of float"),
        ("roi.assign.negative_iou", [0.1, 0.2, 0.3], r"float or \(float, float\)"),
        ("pixels.padding", "114", "float or None"),
        ("backbone.norm", None, "str"),
        ("backbone.name", 18, "str"),
        ("backbone", 18, "Module"),
        ("backbone", None, "Module"),
        ("backbone.name", "none", "Module"),
        ("rpn.head.name", "none", "Module"),
        ("neck", "fpn", "Module or None"),
        ("roi", [("confusion", True)], "RoIStage"),
        ("dtype", 32, "str"),
    ],
)
def test_values_of_another_type_are_refused_with_what_is_wanted(path, value, wanted):
    with pytest.raises(UserError, match=rf"^{path.removesuffix('.name')}\S* wants {wanted}, found"):
        fill(RCNN, put(path, value))


@pytest.mark.parametrize(
    "path, value, kept",
    [
        ("roi.sample.positive_fraction", 1, 1),  # A whole number is a float, too.
        ("roi.coder.max_ratio", math.inf, math.inf),
        ("roi.assign.negative_iou", 0.4, 0.4),
        ("roi.assign.negative_iou", [0.1, 0.5], (0.1, 0.5)),  # As a file of JSON has it.
        ("rpn.anchors.scales", [2, 4.0], (2, 4.0)),
        ("pixels.padding", 114, 114),
        ("pixels.padding", None, None),
    ],
)
def test_values_that_fit_are_taken_and_lists_become_tuples(path, value, kept):
    found = fill(RCNN, put(path, value))
    first, *rest = path.split(".")
    found = found[first]
    for name in rest:
        found = getattr(found, name)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    "value, annotation, expected",
    [
        ((), tuple[int, ...], True),
        ((1, 2), tuple[int, int], True),
        ((1,), tuple[int, int], False),
        (((1, 2), (3, 4)), tuple[tuple[int, int], ...], True),
        ([1], tuple[int, ...], False),
        ("wide", Literal["plain", "wide"], True),
        ("tall", Literal["plain", "wide"], False),
        (True, int | bool, True),
        (None, Any, True),
        ("text", "an annotation in quotes", True),  # Not known, not checked.
    ],
)
def test_fits_by_hand(value, annotation, expected):
    assert nested.fits(value, annotation) == expected


def test_types_are_written_in_words():
    assert nested.written(tuple[tuple[int, int], ...] | None) == "tuple of (int, int) or None"
    assert nested.written(Literal["plain", "wide"]) == "'plain' or 'wide'"


def test_a_module_of_another_name_starts_from_its_own_defaults():
    assert fill(RCNN, {"backbone": {"name": "vgg", "width": 8}}) == {"backbone": VGG(width=8)}
    # The same name changes nothing: this FPN is RetinaNet's.
    kept = FPN(start_level=1, extra="on_input", channels=64)
    assert fill(RETINANET, {"neck": {"name": "fpn", "channels": 64}}) == {"neck": kept}
    assert fill(RETINANET, {"neck": {"channels": 64}}) == {"neck": kept}
    assert fill(YOLOX, {"neck": {"name": "fpn", "num_levels": 3}}) == {"neck": FPN(num_levels=3)}


def test_a_neck_may_be_none():
    given = {"neck": {"name": "none"}}
    assert fill(RCNN, given) == {"neck": None}
    assert as_given(describe(RCNN, given)["neck"]) == {"name": "none"}


def test_a_part_whose_default_is_none_may_be_named():
    def builder(*, num_classes: int, neck: nn.Module | None = None):
        """As `neck` of a detector of one's own."""

    assert as_given(describe(builder, {})) == {"neck": {"name": "none"}}
    given = {"neck": {"name": "fpn", "channels": 8}}
    assert fill(builder, given) == {"neck": FPN(channels=8)}
    assert describe(builder, given)["neck"]["channels"].default == 256


def test_modules_of_ones_own_have_settings_like_all_others():
    given = {"backbone": {"name": "own_backbones:Varied", "style": "wide", "anything": [1, "a"]}}
    wanted = own_backbones.Varied(style="wide", anything=(1, "a"))
    assert fill(RCNN, given) == {"backbone": wanted}
    described = describe(RCNN, given)["backbone"]
    assert described.keys() == {"name", "style", "anything", "stem"}
    assert as_given(described["stem"]) == {"name": "own_backbones:ConvNet", "width": 8}
    assert as_given(described)["style"] == "plain"  # At its default.
    with pytest.raises(UserError, match="backbone.style wants 'plain' or 'wide', found 'tall'"):
        fill(RCNN, {"backbone": {"name": "own_backbones:Varied", "style": "tall"}})
    inner = {"backbone": {"name": "own_backbones:Varied", "stem": {"width": 2}}}
    assert fill(RCNN, inner)["backbone"].stem == own_backbones.ConvNet(width=2)


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnt", "unknown module 'resnt'; known: resnet, vgg, .*none, and package.module:Class"),
        ("no_such_package:Net", "module 'no_such_package:Net': No module named 'no_such_package'"),
        ("own_backbones:Net", "module 'own_backbones:Net': .* no attribute 'Net'"),
        ("own_backbones:NOT_A_MODULE", "wants to be a flax.linen.Module, found <class 'dict'>"),
        ("own_backbones:Demanding", "backbone: all attributes of .* want defaults: .* 'width'"),
    ],
)
def test_names_that_are_no_module_are_refused(name, message):
    for function in (fill, describe):
        with pytest.raises(UserError, match=message):
            function(RCNN, {"backbone": {"name": name}})


def test_groups_and_modules_are_written_as_the_calls_that_make_them():
    assert repr(Suppress()) == "Suppress()"
    sample = Sample(num_samples=64, positive_fraction=0.5)
    assert repr(sample) == "Sample(num_samples=64, positive_fraction=0.5)"
    assert repr(ResNet(depth=18, norm="batch")) == "ResNet(depth=18, norm='batch')"
    stage = RoIStage(head=BoxHead(hidden=32), coder=Coder())
    assert repr(stage) == "RoIStage(head=BoxHead(hidden=32), coder=Coder())"
    assert eval(repr(stage)) == stage
    assert repr(CSPDarknet()) == "CSPDarknet()"


class WithFunction(nn.Module):
    width: int = 4
    activation: Callable = nn.relu

    strides = (8,)


def test_an_attribute_that_no_file_can_hold_is_no_setting():
    given = {"backbone": {"name": f"{__name__}:WithFunction"}}
    described = describe(RCNN, given)["backbone"]
    assert described.keys() == {"name", "width"}
