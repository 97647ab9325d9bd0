"""What names and shapes say of a file of weights, and what they do not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxdet.interop import number_classes, read_classes, recognise, settings_for
from jaxdet.types import UserError

GOLDENS = Path(__file__).parent.parent / "goldens"


def blank(name):
    """Arrays of the shapes of a whole detector that take no memory."""
    shapes = json.loads((GOLDENS / f"whole_{name}.json").read_text())["shapes"]
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "name, system, detector, part, wanted",
    [
        ("mmdet_faster_rcnn", "mmdetection", "faster_rcnn", "roi", {"hidden": 1024}),
        ("mmdet_retinanet", "mmdetection", "retinanet", "head", 4),
        ("tv_faster_rcnn", "torchvision", "faster_rcnn", "roi", {"hidden": 1024}),
        ("tv_retinanet", "torchvision", "retinanet", "head", 4),
        ("sfrcnn_vgg16", "simple_faster_rcnn", "faster_rcnn", "roi", {"hidden": 4096}),
        ("yolox_s", "yolox", "yolox", "blocks", (0.33, 0.5, False)),
        ("yolox_nano", "yolox", "yolox", "blocks", (0.33, 0.25, True)),
        ("yolox_tiny_train", "yolox", "yolox", "blocks", (0.33, 0.375, False)),
    ],
)
def test_system_detector_size_and_classes_are_found(name, system, detector, part, wanted):
    found = recognise(blank(name))
    assert (found.systems[0], found.detector, found.num_classes) == (system, detector, 5)
    settings = found.settings[part]
    if part == "blocks":
        assert tuple(settings.values()) == wanted
    elif part == "head":
        assert settings["num_convs"] == wanted
    else:
        assert settings["head"]["hidden"] == wanted["hidden"]
    assert found.settings.get("backbone", {}).get("depth", 50) == 50


def test_norms_that_count_steps_have_torchs_epsilon():
    tensors = blank("tv_retinanet")
    assert recognise(tensors).settings["backbone"]["norm_epsilon"] == 1e-5
    published = {k: v for k, v in tensors.items() if "num_batches" not in k}
    assert "norm_epsilon" not in recognise(published).settings["backbone"]


def test_a_faster_rcnn_without_an_rpn_is_a_fast_rcnn():
    tensors = blank("mmdet_faster_rcnn")
    found = recognise({k: v for k, v in tensors.items() if not k.startswith("rpn_head.")})
    assert (found.systems[0], found.detector, found.num_classes) == ("mmdetection", "fast_rcnn", 5)
    assert "rpn" not in found.settings and found.settings["roi"]["head"]["hidden"] == 1024


@pytest.mark.parametrize(
    "names, message",
    [
        (["fc.weight", "conv1.weight"], "w.pth: these are weights of a classifier"),
        (["a.weight"], "w.pth: no detector is known by these names; found a.weight"),
        ([], "found nothing"),
        (["extractor.0.weight"], "w.pth: these look like weights of simple_faster_rcnn's"),
    ],
)
def test_what_is_no_detector_is_one_line(names, message):
    with pytest.raises(UserError, match=message):
        recognise(dict.fromkeys(names, np.zeros((3, 3))), source="w.pth")


@pytest.mark.parametrize(
    "name, array",
    [
        ("yolox_nano", "backbone.backbone.stem.conv.conv.weight"),
        ("sfrcnn_vgg16", "head.score.weight"),
        ("tv_retinanet", "backbone.fpn.extra_blocks.p6.weight"),
        ("mmdet_faster_rcnn", "roi_head.bbox_head.fc_cls.weight"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_array_of_another_form_is_named(name, array, shape):
    with pytest.raises(UserError, match=f"but {array} is missing or has another form"):
        recognise(blank(name) | {array: np.zeros(shape)})


def test_the_sizes_of_yolox_are_settings():
    assert settings_for("yolox", "yolox", size="m")["blocks"] == {"depth": 0.67, "width": 0.75}
    with pytest.raises(UserError, match="size wants one of yolox's, nano, .*found 'xl'"):
        settings_for("yolox", "yolox", size="xl")


@pytest.mark.parametrize("count, first, last", [(80, 1, 90), (90, 1, 90), (91, 0, 90)])
def test_cocos_classes_have_their_ids(count, first, last):
    names, numbers = read_classes("coco", count)
    assert len(set(names)) == count and (numbers[0], numbers[-1]) == (first, last)
    assert names[numbers.index(1)] == "person" and names[-1] == "toothbrush"


def test_cocos_classes_are_known_by_their_names():
    names, numbers = read_classes("coco", 80)
    assert number_classes(names) == numbers
    assert number_classes(tuple(name.replace(" ", "_") for name in names)) == numbers
    assert number_classes(names[::-1]) is None and number_classes(("cat",)) is None


def test_class_names_are_said_or_read(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("cat\n\ndog\n")
    assert read_classes(str(file), 2) == (("cat", "dog"), None)
    assert len(read_classes("voc", 20)[0]) == 20
    for said, count, message in (
        ("('a',)", 2, "names 1 classes, the weights are of 2 classes"),
        ("coco", 3, "wants weights of 80 classes .* found 3"),
        ("cats", 2, "or a text file with a name a line, found cats"),
        ("{[]: 1}", 2, "or a text file with a name a line, found {"),
        (9000 * "-" + "1", 2, "or a text file with a name a line, found -"),
    ):
        with pytest.raises(UserError, match=message):
            read_classes(said, count)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_classes_is_read_in_the_encodings_of_other_lists(tmp_path, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes("cat\r\n\r\n dög\r\n".encode(encoding))
    assert read_classes(str(path), 2) == (("cat", "dög"), None)


@pytest.mark.parametrize(
    "said, line",
    [
        ("('a','')", "--classes=('a','') wants a name for each class, found ''"),
        ("('a','a')", "--classes=('a','a') wants different names, found 'a' twice"),
    ],
)
def test_names_that_tell_no_classes_apart_are_refused(said, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        read_classes(said, 2)


def test_a_list_of_classes_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="names.txt: wanted text in UTF-8 or UTF-16, found"):
        read_classes(str(tmp_path / "names.txt"), 1)
