"""`jaxdet convert`: to model files and back, and what it says of what does not work."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from detectors import tiny
from interop import whole
from interop.test_pretrained import Tensor, put_torch
from interop.test_recognise import blank
from interop.test_whole_yolox import assert_found
from prediction import tiny_model
from safetensors.numpy import save_file

import jaxdet
from jaxdet import detectors, interop, model_file
from jaxdet.commands import convert, foreign_model
from jaxdet.detectors import nested

NAMES = "('a','b','c','d','e')"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs the command in an empty folder; gives its status and the lines that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            convert.main(["jaxdet convert", *arguments])
        out, err = capfd.readouterr()
        return exit.value.code, out + err

    return run


@pytest.fixture(scope="module")
def nano():
    return whole.torch_weights("yolox_nano")


def assert_fails(ended, *said):
    """One line, and a status that says so."""
    status, line = ended
    assert status not in (0, None) or isinstance(status, str)
    assert line.count("\n") == 1 and "Traceback" not in line, line
    for words in said:
        assert words in line, line


def test_a_converted_yolox_finds_what_the_reference_finds(run, nano, golden):
    np.savez("nano.npz", **nano)
    status, said = run(
        "nano.npz",
        "nano.safetensors",
        "--names=yolox",
        f"--classes={NAMES}",
        "--canvas=128x160",
        "--bgr=false",
        "--model.suppress.score_threshold=0.05",
    )
    assert status == 0
    assert said.startswith(
        "nano.npz: yolox of 5 classes with the names of yolox, which read RGB images"
    )
    assert f"+ {len(nano)} arrays taken, - 0 left, ! 0 of another shape, ? 0 parts" in said
    assert "written to nano.safetensors: yolox of 5 classes, canvas (128, 160)" in said
    data, model = golden("whole_yolox_nano"), jaxdet.load("nano.safetensors", cache=False)
    assert model.class_names == tuple("abcde")
    for i, found in enumerate(model(list(data["images_uint8_nhwc"]), batch_size=2)):
        found = jaxdet.Detections(
            found.boxes, found.scores, found.labels, np.ones(len(found.boxes), bool)
        )
        assert_found(found, data[f"post/conf0.05_nms0.65/{i}"])


@pytest.mark.parametrize("system", ["mmdetection", "mmdetection_caffe"])
def test_weights_return_as_they_were_bit_for_bit(run, system):
    settings = interop.merged(tiny.SETTINGS["faster_rcnn"], {"backbone": {"norm": "frozen"}})
    contents = tiny_model.draw_contents("faster_rcnn", settings=settings)
    model_file.write("own.safetensors", contents)
    status, said = run("own.safetensors", "theirs.npz", f"--to={system}")
    assert status == 0 and f"arrays under the names of {system}, which read" in said
    stem = contents.variables["params"]["backbone"]["stem_conv"]["kernel"].transpose(3, 2, 0, 1)
    assert ("read BGR images" in said) == (system == "mmdetection_caffe")
    with np.load("theirs.npz") as theirs:
        turned = stem[:, ::-1] if system == "mmdetection_caffe" else stem
        np.testing.assert_array_equal(theirs["backbone.conv1.weight"], turned)
    classes = "--classes=('circle', 'square')"
    status, said = run("theirs.npz", "again.safetensors", f"--names={system}", classes)
    assert status == 0, said
    again, _ = model_file.read("again.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, contents.variables)


def test_classes_are_those_that_mmdetections_file_names_unless_others_are_said(run, monkeypatch):
    settings = interop.merged(tiny.SETTINGS["fast_rcnn"], {"backbone": {"norm": "frozen"}})
    fields = {"settings": settings, "max_proposals": tiny.GIVEN}
    contents = tiny_model.draw_contents("fast_rcnn", **fields)
    model_file.write("own.safetensors", contents)
    run("own.safetensors", "theirs.npz", "--to=mmdetection")
    tensors = {name: Tensor(value) for name, value in np.load("theirs.npz").items()}

    def convert_named(*names, flags=()):
        put_torch(monkeypatch, {"meta": {"CLASSES": names}, "state_dict": tensors})
        Path("theirs.pth").touch()
        return run("theirs.pth", "again.safetensors", "--names=mmdetection", *flags)

    assert_fails(convert_named("cat"), "its meta names 1 classes, its weights are of 2 classes")
    for names, flags in ((("cat", "dog"), []), (("a", "b"), ["--classes=('a','b')"])):
        status, said = convert_named("cat", "dog", flags=flags)
        assert status == 0, said
        again, _ = model_file.read("again.safetensors")
        assert (again.detector, again.class_names, again.category_ids) == ("fast_rcnn", names, None)
        jax.tree.map(np.testing.assert_array_equal, again.variables, contents.variables)


def test_only_settings_that_the_file_does_not_say_and_are_others_are_listed(run):
    contents = tiny_model.draw_contents()
    settings = nested.complete(detectors.find_builder("yolox"), contents.settings)
    model_file.write("own.safetensors", contents._replace(settings=settings))
    _, said = run("own.safetensors", "theirs.npz", "--to=yolox")
    listed = re.findall(r"^~ (\S+) is", said, re.MULTILINE)
    assert listed == [
        "blocks.activation",
        "blocks.norm",
        "suppress.max_candidates",
        "suppress.max_detections",
    ]
    _, said = run(
        "own.safetensors", "theirs.npz", "--to=yolox", "--model.suppress.iou_threshold=0.5"
    )
    changed = "~ suppress.iou_threshold is 0.5, of the published one 0.65"
    assert changed in said.splitlines()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--classes=coco"], ["nano.npz: ", "say --names=yolox or --names=yolox_legacy"]),
        (["--names=yolox"], ["yolox of 5 classes", "say --classes=coco"]),
        (["--names=yolox", "--classes=('a','b')"], ["names 2 classes", "of 5 classes"]),
        (["--names=yolox", "--classes=coco"], ["wants weights of 80 classes", "found 5"]),
        (["--names=mmdetection", "--classes=voc"], ["found --names=mmdetection"]),
        (
            ["--names=yolox", f"--classes={NAMES}", "--model.suppress.iou_treshold=1"],
            ["iou_treshold", "did you mean 'iou_threshold'"],
        ),
        (
            ["--names=yolox", f"--classes={NAMES}", "--model.suppress={[]: 1}"],
            ["suppress wants Suppress, found '{[]: 1}'"],
        ),
        (
            ["--names=yolox", f"--classes={NAMES}", "--model.suppress={1: 2}"],
            ["no setting 1 of suppress; known: "],
        ),
    ],
)
def test_what_is_not_said_or_does_not_fit_is_one_line(run, arguments, said, tmp_path):
    shapes = json.loads((whole.GOLDENS / "whole_yolox_nano.json").read_text())["shapes"]
    np.savez("nano.npz", **{name: np.zeros(shape, "f4") for name, shape in shapes.items()})
    assert_fails(run("nano.npz", "nano.safetensors", *arguments), *said)
    assert [path.name for path in tmp_path.iterdir()] == ["nano.npz"]


def test_what_is_no_model_stays_unwritten(run, nano, tmp_path):
    arguments = ("a.safetensors", "--names=yolox", f"--classes={NAMES}")
    partly = {name: value for name, value in nano.items() if "dark4.0" not in name}
    np.savez("partly.npz", **partly)
    status, said = run("partly.npz", *arguments)
    last = said.splitlines()[-1]
    assert status != 0 and "nothing in it fills" in last and "dark4/down" in last
    np.savez("odd.npz", **nano | {"head.obj_preds.0.bias": np.zeros(3, "f4")})
    status, said = run("odd.npz", *arguments)
    last = said.splitlines()[-1]
    assert status != 0 and "head.obj_preds.0.bias does not fit" in last
    save_file({"a": np.zeros(3, "f4")}, "foreign.safetensors")
    assert_fails(run("foreign.safetensors", *arguments), "no detector is known by these names")
    np.savez("classifier.npz", **{"fc.weight": np.zeros((10, 8), "f4")})
    assert_fails(run("classifier.npz", *arguments), "weights of a classifier", "init_from")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_part_that_has_no_place_is_no_conversion(run, nano, tmp_path):
    """Without a layer that its network computes with, a detector finds something else."""
    np.savez("more.npz", **nano, **{"backbone.backbone.dark2.9.weight": np.zeros(3, np.float32)})
    ended = run("more.npz", "new.safetensors", "--names=yolox", f"--classes={NAMES}")
    assert ended[0] == 1
    assert "dark2.9.weight, one of 1 such arrays, has no place in the detector" in ended[1]
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + b"\0" * 99, b"", b"\x93NUMPY\x01\x00\x10\x00{" + b" " * 15]
)
def test_a_damaged_archive_is_one_line(run, data, tmp_path):
    (tmp_path / "damaged.npz").write_bytes(data)
    assert_fails(run("damaged.npz", "new.safetensors"), "damaged.npz: cannot be read as a NumPy")


def test_arrays_of_text_are_no_weights(run):
    np.savez("text.npz", **{"head.stems.0.conv.weight": np.array(["a", "b"])})
    assert_fails(run("text.npz", "new.safetensors"), "head.stems.0.conv.weight wants numbers")


@pytest.mark.parametrize(
    "name, system, rule",
    [
        ("tv_retinanet", "torchvision", "torchvision"),
        ("mmdet_retinanet", "mmdetection", "rounded"),
        ("yolox_nano", "yolox", "rounded"),
    ],
)
def test_images_are_resized_as_the_system_does_it(name, system, rule):
    said = foreign_model.Said(names=system, classes=NAMES)
    contents, names = foreign_model.describe(interop.Weights(blank(name)), said, "weights")
    assert (names, contents.resize_rule) == (system, rule)


def test_a_fast_rcnn_has_room_for_the_proposals_of_its_recipe():
    tensors = blank("mmdet_faster_rcnn")
    weights = interop.Weights({k: v for k, v in tensors.items() if not k.startswith("rpn_head.")})
    said = foreign_model.Said(names="mmdetection", classes=NAMES)
    contents, _ = foreign_model.describe(weights, said, "weights")
    assert (contents.detector, contents.max_proposals) == ("fast_rcnn", 1000)


def test_a_long_list_of_classes_is_no_file():
    names = tuple(f"class number {i}" for i in range(80))
    assert interop.read_classes(str(names), 80)[0] == names


def test_a_file_is_not_written_over_itself(run):
    model_file.write("own.safetensors", tiny_model.draw_contents())
    before = Path("own.safetensors").read_bytes()
    assert_fails(run("own.safetensors", "./own.safetensors"), "DST wants another name than SRC")
    assert Path("own.safetensors").read_bytes() == before
    assert_fails(run("own.safetensors", "own.txt"), "DST wants to end in .safetensors")


def test_what_is_said_of_a_model_of_ones_own_takes_the_place_of_what_it_said(run):
    model_file.write("own.safetensors", tiny_model.draw_contents(more_canvases=((96, 64),)))
    said = ("--canvas=80x64", "--classes=('disc', 'box')")
    assert run("own.safetensors", "new.safetensors", *said)[0] == 0
    new, _ = model_file.read("new.safetensors")
    assert (new.canvases, new.resize) == (((80, 64),), (64, 80))
    assert (new.class_names, new.category_ids) == (("disc", "box"), tiny_model.IDS)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return exec, ("open('trapped', 'w').close()",)


def test_nothing_in_a_file_is_executed(run, tmp_path, monkeypatch):
    np.savez("trap.npz", **{"a": np.array([Trap()], dtype=object)})
    assert_fails(run("trap.npz", "a.safetensors"), "trap.npz: cannot be read as a NumPy .npz")
    put_torch(monkeypatch, ValueError("Unsupported global"))
    (tmp_path / "trap.pth").touch()
    assert_fails(run("trap.pth", "a.safetensors"), "trap.pth: cannot be read as torch tensors")
    assert not (tmp_path / "trapped").exists()


def test_torch_itself_does_not_execute_what_is_in_a_file(run, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": Trap()}, "trap.pth")
    assert_fails(run("trap.pth", "a.safetensors"), "trap.pth: cannot be read as torch tensors")
    assert not (tmp_path / "trapped").exists()
