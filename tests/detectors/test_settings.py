"""Groups of settings against the functions that they are the keyword arguments of."""

import inspect

import pytest

from jaxdet.detectors import anchor_grid, fast_rcnn, retinanet, rpn, settings, yolox
from jaxdet.models import PAFPN, CSPDarknet, YOLOXHead
from jaxdet.ops import (
    anchors,
    assignment,
    box_coder,
    box_losses,
    pixels,
    proposals,
    roi_pooling,
    sampling,
    simota,
    suppression,
)

# The groups that are passed on whole, and what they are passed to, with what stands beside them.
CASES = [
    (pixels.normalize, [settings.Pixels], ()),
    (anchor_grid.make_anchors, [settings.AnchorGrid], ["strides"]),
    (anchors.inside_image, [settings.Inside], ()),
    (assignment.assign_by_iou, [settings.Assign], ()),
    (sampling.sample_labels, [settings.Sample], ()),
    (box_coder.decode, [settings.Coder], ["size"]),
    (box_losses.box_regression, [settings.BoxLoss, settings.Coder], ()),
    (suppression.nms_per_class, [settings.Suppress], ()),
    (suppression.nms_best_class, [settings.Suppress], ()),
    (simota.assign_simota, [yolox.SimOTA], ()),
    (proposals.generate_proposals, [rpn.Propose, settings.Coder], ["level_sizes"]),
    (roi_pooling.pyramid_roi_align, [fast_rcnn.Pool], ["strides"]),
]
NAMES = [function.__name__ for function, *_ in CASES]
# Settings that the detector itself reads.
OWN = {rpn.Propose: {"min_size_of_original"}, fast_rcnn.Pool: {"kind", "scale"}}
# Those of no op: losses of several terms, stages of several groups, what three modules share.
OTHERS = {
    rpn.RPNLoss,
    fast_rcnn.RoILoss,
    retinanet.RetinaLoss,
    yolox.PointLoss,
    rpn.RPNStage,
    fast_rcnn.RoIStage,
    yolox.Blocks,
}
# What a coder does to deltas alone.
LIMITS = {"max_ratio", "limit_shrinking"}
# Anchors that leave the image train, as in mmdetection's recipes.
OTHER_DEFAULTS = {(settings.Inside, "allowed_border")}


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def fields(group):
    return {name: p.default for name, p in inspect.signature(group).parameters.items()}


@pytest.mark.parametrize("function, groups, beside", CASES, ids=NAMES)
def test_groups_are_the_keyword_arguments_of_what_they_are_passed_to(function, groups, beside):
    passed = [name for group in groups for name in fields(group).keys() - OWN.get(group, set())]
    assert sorted([*passed, *beside]) == sorted(keywords(function))


@pytest.mark.parametrize("function, groups, beside", CASES, ids=NAMES)
def test_defaults_of_groups_are_those_of_the_functions_but_where_they_differ_on_purpose(
    function, groups, beside
):
    defaults = keywords(function)
    differing = {
        (group, name)
        for group in groups
        for name, default in fields(group).items()
        if defaults.get(name, inspect.Parameter.empty) not in (inspect.Parameter.empty, default)
    }
    assert differing == {pair for pair in OTHER_DEFAULTS if pair[0] in groups}


def test_encoding_takes_the_part_of_a_coder_that_does_not_limit():
    assert keywords(box_coder.encode).keys() == fields(settings.Coder).keys() - LIMITS


def test_max_pooling_takes_the_part_of_a_pool_that_does_not_sample():
    unsampled = fields(fast_rcnn.Pool).keys() - OWN[fast_rcnn.Pool]
    unsampled -= set(fast_rcnn.OF_ALIGN)
    assert keywords(roi_pooling.pyramid_roi_pool).keys() == unsampled | {"strides"}


def test_what_yoloxs_parts_share_are_attributes_of_theirs_with_the_same_defaults():
    for name, default in fields(yolox.Blocks).items():
        having = [part for part in (CSPDarknet, PAFPN, YOLOXHead) if name in fields(part)]
        assert len(having) >= 2
        assert {fields(part)[name] for part in having} == {default}


def test_every_group_is_compared_here():
    compared = {group for _, groups, _ in CASES for group in groups}
    assert compared.isdisjoint(OTHERS)
    assert compared | OTHERS == set(settings.Group.__subclasses__())
