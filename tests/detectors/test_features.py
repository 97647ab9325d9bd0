"""Parts of one's own, and what a detector says of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import own_backbones
import pytest
from flax.traverse_util import flatten_dict
from tiny import CLASSES, RPN, SETTINGS, build, draw_batch, drawn_variables

from jaxdet import detectors
from jaxdet.detectors import features
from jaxdet.models import FPN
from jaxdet.types import Detector

KEY, NO_NECK = jax.random.key(1), {"name": "none"}


def train(detector, name, *, num_steps, rate):
    """The losses of steps on one batch, and the last gradient."""
    batch = draw_batch(name, 5)
    params = jax.device_get(drawn_variables(detector, batch)["params"])
    slope = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    totals = []
    for _ in range(num_steps):
        (total, _), gradients = slope({"params": params}, batch, KEY)
        gradients = jax.device_get(gradients["params"])
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
        totals.append(float(total))
    return totals, gradients


CONV_NET, VIT = ({"name": f"own_backbones:{name}"} for name in ("ConvNet", "ViT"))
# Anchors of the objects' size, on a map of stride 16.
ONE_MAP = dict(backbone=VIT, neck=NO_NECK, rpn=RPN | dict(anchors=dict(scales=(1.0,))))
LEARNERS = {
    "faster_rcnn": ("faster_rcnn", dict(backbone=CONV_NET | dict(width=6))),
    "retinanet": ("retinanet", dict(backbone=CONV_NET)),
    "faster_rcnn without a neck": ("faster_rcnn", ONE_MAP),
}


@pytest.mark.parametrize("name, parts", LEARNERS.values(), ids=LEARNERS.keys())
def test_detectors_learn_on_backbones_of_ones_own(name, parts):
    detector = detectors.build(name, num_classes=CLASSES, **(SETTINGS[name] | parts))
    totals, gradients = train(detector, name, num_steps=10, rate=0.02)
    assert totals[-1] < 0.85 * totals[0]
    assert detector.frozen == (() if parts is ONE_MAP else ("params/backbone/stem",))
    for path, gradient in flatten_dict({"params": gradients}, sep="/").items():
        if path.endswith("kernel"):
            assert np.any(gradient) != detector.is_frozen(path), path


@pytest.mark.parametrize("name", SETTINGS)
def test_a_backbone_that_does_not_say_its_strides_is_refused(name):
    message = "the backbone Silent wants an attribute `strides`, .* finest first; found None"
    with pytest.raises(ValueError, match=message):
        detectors.build(name, num_classes=2, backbone=own_backbones.Silent())


def shapes(detector, name="rpn"):
    return jax.eval_shape(detector.init, KEY, draw_batch(name, 1).images)


@pytest.mark.parametrize(
    "cells, strides, found",
    [
        ((8, 16), (8,), "strides (8,); found maps of 8 x 12, 4 x 6 cells on a canvas of 64 x 96"),
        ((8,), (8, 16), "strides (8, 16); found maps of 8 x 12 cells on a canvas of 64 x 96"),
        ((8,), (16,), "strides (16,); found maps of 8 x 12 cells on a canvas of 64 x 96"),
        ((), (16,), "strides (16,); found maps of none cells"),
    ],
)
def test_maps_that_do_not_fit_the_strides_are_refused(cells, strides, found):
    backbone = own_backbones.Pooled(cells=cells, strides=strides)
    detector = detectors.build("rpn", num_classes=2, backbone=backbone, neck=None)
    with pytest.raises(ValueError, match="Pooled promises maps of ") as error:
        shapes(detector)
    assert found in str(error.value)


def test_maps_for_heads_that_levels_share_have_the_same_channels():
    detector = detectors.build(
        "rpn", num_classes=2, backbone=own_backbones.ConvNet(width=6), neck=None
    )
    with pytest.raises(ValueError, match=r"same number of channels.* found \[6, 12, 12, 12\]"):
        shapes(detector)


def test_what_a_detector_sets_reaches_the_parts_that_have_it():
    network = features.Network(own_backbones.Varied(), FPN())
    network = features.configure_parts(network, dtype=jnp.bfloat16, axis_name="batch")
    assert network.backbone == own_backbones.Varied(axis_name="batch")
    assert network.neck == FPN(dtype=jnp.bfloat16)


def test_a_canvas_may_end_within_a_cell():
    backbone = own_backbones.Pooled(cells=(20,), strides=(20,))  # 64 / 20 is 3 and a bit.
    detector = detectors.build("rpn", num_classes=2, backbone=backbone, neck=None, rpn=RPN)
    variables = shapes(detector)
    found = jax.eval_shape(detector.predict, variables, draw_batch("rpn", 1).images)
    assert found.boxes.shape == (1, RPN["test"]["num_proposals"], 4)


def test_a_neck_is_held_to_its_strides_too():
    class Thin(FPN):
        def strides(self, inputs):
            return tuple(2 * stride for stride in super().strides(inputs))

    backbone = own_backbones.Pooled()
    detector = detectors.build("rpn", num_classes=2, backbone=backbone, neck=Thin(num_levels=1))
    with pytest.raises(ValueError, match=r"Thin promises maps of strides \(16,\); found .* 8 x 12"):
        shapes(detector)


def frozen_leaves(name, **settings):
    """The paths of a detector's variables, and of those that never move."""
    detector = build(name, **settings)
    paths = list(flatten_dict(shapes(detector, name), sep="/"))
    return paths, [path for path in paths if detector.is_frozen(path)]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "yolox"])
def test_frozen_stages_and_norms_are_paths_of_the_detectors_variables(name):
    stages = [f"backbone/{part}/" for part in ("stem_conv", "stem_norm", "layer1", "layer2")]
    parameters = [f"params/{stage}" for stage in stages]
    statistics = {
        "frozen": ["batch_stats/backbone/"],
        "batch": [f"batch_stats/{stage}" for stage in stages],
    }
    for norm, kept in statistics.items():
        paths, frozen = frozen_leaves(name, backbone=dict(norm=norm, frozen_stages=2))
        assert frozen == [path for path in paths if path.startswith((*parameters, *kept))]
    assert frozen_leaves(name)[1] == []


def test_yoloxs_frozen_norm_keeps_the_statistics_of_all_three_parts():
    paths, frozen = frozen_leaves("yolox", blocks=dict(norm="frozen"))
    assert frozen == [path for path in paths if path.startswith("batch_stats/")]
    assert {path.split("/")[1] for path in frozen} == {"backbone", "neck", "head"}
    assert frozen_leaves("yolox")[1] == []


def test_a_path_is_frozen_with_all_below_it_and_nothing_beside_it():
    frozen = ("params/backbone/layer1", "batch_stats/backbone")
    detector = Detector(None, None, None, frozen=frozen)
    for path in ("params/backbone/layer1", "params/backbone/layer1/conv/kernel"):
        assert detector.is_frozen(path)
    assert detector.is_frozen("batch_stats/backbone/layer4/norm/mean")
    for path in ("params/backbone/layer10/kernel", "params/backbone", "params/neck/layer1", ""):
        assert not detector.is_frozen(path)
    assert not Detector(None, None, None).is_frozen("params/backbone/layer1/kernel")


def test_only_an_rpn_does_not_tell_classes_apart():
    told = {name: build(name).tells_classes for name in SETTINGS}
    assert told == {name: name != "rpn" for name in SETTINGS}


def test_a_detector_says_what_weights_of_its_backbone_read():
    assert build("rpn", backbone=dict(style="caffe")).bgr_weights is True
    assert build("rpn").bgr_weights is None and build("yolox").bgr_weights is None
