"""Configs of jaxdet 0.1, by the table of renamed keys."""

import json
import math

import pytest
from commands.conftest import ROOT

from jaxdet.commands import command_line, config_files, renamed, schema
from jaxdet.detectors import DETECTORS

OLD = ROOT / "tests" / "commands" / "configs_of_0.1.json"
# What a recipe says otherwise since then.
CHANGED = {
    "quickstart": {
        "eval_every",
        "model.backbone.depth",
        "model.neck.channels",
        "model.roi.head.class_agnostic",
        "num_steps",
        "optimizer.learning_rate",
    },
    "fast_rcnn_r50_fpn_1x_coco": {"data.canvas", "data.more_canvases"},
}


@pytest.fixture(scope="module")
def old():
    """Name of a recipe -> its config as version 0.1 saved it."""
    return json.loads(OLD.read_text())


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_new_name_exists(detector):
    tree = schema.describe({"detector": detector, "data": {"source": "voc"}})["model"]
    known = {path for path, _ in schema.leaves(tree)}
    places = {place for places in renamed.RENAMED[detector].values() for place in places}
    assert places - known == set()


def test_every_old_key_has_a_place(old):
    for config in old.values():
        table = renamed.RENAMED[config["detector"]]
        same = {"dtype", "pre_nms"}
        unused = {"l1_from_step", "scales_per_octave"}
        unused |= {"size_divisor"} if config["detector"] == "fast_rcnn" else set()
        assert config["model"].keys() - table.keys() == (same | unused) & config["model"].keys()


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        "quickstart_yolox",
        "faster_rcnn_bccd",
        "faster_rcnn_vgg16_voc07",
        "retinanet_bccd",
        "rpn_vgg16",
        "yolox_nano_coco",
        "fast_rcnn_r50_fpn_1x_coco",
    ],
)
def test_an_old_config_is_that_of_todays_recipe(old, tmp_path, name):
    """Every setting of the model, and all others but lengths, which recipes say in epochs now."""
    (tmp_path / "config.json").write_text(json.dumps(old[name]))
    before = command_line.read(["eval.py", f"--workdir={tmp_path}"]).config.to_dict()
    now = command_line.read(["eval.py", f"--config={ROOT / 'configs' / name}.py"]).config.to_dict()
    lengths = {key for key, found in schema.leaves(now) if "epoch" in str(found)}
    different = config_files.differences(before, now)
    if name == "retinanet_bccd":
        was, found = different.pop("model.anchors.scales", ((), ()))
        assert was == pytest.approx(found, rel=1e-15)
    changed = CHANGED.get(name, set())
    assert changed <= different.keys() <= lengths | changed | {"evaluation.limits"}


def test_todays_settings_stay(old):
    model = {"backbone": {"depth": 18}, "dtype": "bfloat16"}
    assert renamed.upgrade("faster_rcnn", model) == model
    assert renamed.upgrade("nothing", {"depth": 3}) == {"depth": 3}


def test_what_a_backbone_computed_again_the_detector_says_now():
    for old, new in ((True, "blocks"), (False, "none")):
        model = {"backbone": {"depth": 18, "remat": old}, "dtype": "float32"}
        found = renamed.upgrade("faster_rcnn", model)
        assert found == {"backbone": {"depth": 18}, "dtype": "float32", "remat": new}


def test_no_limit_was_a_ratio_of_0(old):
    model = renamed.upgrade("faster_rcnn", old["faster_rcnn_vgg16_voc07"]["model"])
    assert model["rpn"]["coder"]["max_ratio"] == model["roi"]["coder"]["max_ratio"] == math.inf
    assert model["neck"] == {"name": "none"}
