"""The command `report`, and the page that a training leaves."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from prediction.tiny_model import IDS, NAMES, SIZES, draw_contents, draw_photograph

from jaxdet import model_file
from jaxdet.commands import finding, report
from jaxdet.types import Detections, Detector


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photographs with an object each, the last of which cannot be read, in COCO's form."""
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    images, objects = [], []
    for i, (height, width) in enumerate(SIZES):
        name = f"photo{i}.png"
        images.append({"id": 10 + i, "file_name": name, "height": height, "width": width})
        objects.append(
            {"id": i + 1, "image_id": 10 + i, "category_id": IDS[i % 2], "bbox": [4, 4, 20, 30]}
        )
        cv2.imwrite(str(root / "val" / name), draw_photograph((height, width), i))
    (root / "val" / name).write_bytes(b"not a picture")
    categories = [{"id": n, "name": name} for n, name in zip(IDS, NAMES, strict=True)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def run(capfd):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            report.main(["jaxdet report", *map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=exit.value.code, out=out, err=err)

    return run


@pytest.fixture
def finds_one_box(monkeypatch):
    """Nothing is compiled: each image has one box of class 1 at the top left."""

    def predict(variables, images):
        count = len(images.sizes)
        boxes = np.tile(np.array([[[4.0, 4, 24, 34]]], np.float32), (count, 1, 1))
        ones = np.ones((count, 1))
        return Detections(boxes, 0.75 * ones, ones.astype(int), ones.astype(bool))

    monkeypatch.setattr(report.steps, "pmap_predict_step", lambda detector: predict)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    model_file.write(file, draw_contents("yolox"))
    return file


def test_a_model_file_is_measured_on_the_data_that_is_named(run, data, model, tmp_path):
    out = tmp_path / "page.html"
    named = "--data.source=coco", f"--data.root={data}", "--split=val", f"--out={out}"
    result = run(model, *named)
    text = out.read_text()

    assert result.status == 0, result.err
    assert "on 5 images, best --score=" in result.out and str(out) in result.out
    assert "images that could not be read</th><td>1</td>" in text
    assert "1 of 5 images cannot be read" in result.err
    assert all(f">{name}</th>" in text for name in NAMES)


def test_settings_of_the_model_are_those_that_the_page_is_about(
    run, data, model, tmp_path, monkeypatch
):
    asked, detect = [], finding.detect

    def spy(*arguments):
        asked.append(pairs := detect(*arguments))
        return pairs

    monkeypatch.setattr(report.finding, "detect", spy)
    named = "--data.source=coco", f"--data.root={data}", "--split=val", f"--out={tmp_path / 'a'}"
    result = run(model, *named, "--config.model.suppress.max_detections=1")
    assert result.status == 0, result.err
    assert max(len(found.scores) for _, found in asked[0]) == 1

    refused = run(model, *named, "--config.model.blocks.width=0.5")
    assert refused.status == 1 and refused.err.count("\n") == 1
    assert f"{model} does not fit the config: params/" in refused.err


def test_a_split_is_the_data_s_own_and_what_is_held_out_is_said(
    run, data, model, tmp_path, finds_one_box
):
    out = tmp_path / "page.html"
    named = "--data.source=coco", f"--data.root={data}", f"--out={out}", "--data.val_every=2"
    named += "--data.train_split=val", "--data.eval_split=held"
    assert "on 3 images" in run(model, *named).out
    assert "split held (held out of val by data.val_every)" in out.read_text()
    assert "on 2 images" in run(model, *named, "--split=val").out
    assert "split val ·" in out.read_text()


def test_worst_images_are_those_with_most_mistakes(run, data, model, tmp_path, finds_one_box):
    out = tmp_path / "page.html"
    run(model, "--data.source=coco", f"--data.root={data}", "--split=val", f"--out={out}")
    text = out.read_text()

    # The box is right on the one image that is not resized.
    assert text.count("<img ") == 3
    assert "10: 1 false, 1 missed" in text and "11: 1 false" not in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "does not know its data: name it"),
        (("--data.source=coco",), "does not know its data"),
        (("--data.source=coco", "--data.root=/nowhere"), "/nowhere"),
        (("--data.source=coc", "--data.root=/nowhere"), "coc"),
        (("--data.sorce=coco",), "does not know its data"),
        (("--splt=val",), "did you mean --split?"),
    ],
)
def test_what_is_missing_is_said_in_a_line(run, model, arguments, said):
    result = run(model, *arguments)

    assert result.status == 1
    assert said in result.err and result.err.count("\n") == 1


def test_other_classes_than_the_model_s_are_refused(run, data, model, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    file = root / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("square", "cat"))
    result = run(model, "--data.source=coco", f"--data.root={root}", "--split=val")

    assert result.status == 1
    assert "unknown class 'cat'" in result.err and result.err.count("\n") == 1


def test_a_detector_that_tells_no_classes_apart_is_refused(run, data, model, monkeypatch):
    blind = Detector(init=None, loss=None, predict=None, tells_classes=False)
    assert report.can_report(blind, ("object",)) and not report.can_report(blind, NAMES)

    contents, _ = model_file.read(model)
    monkeypatch.setattr(report.model_file, "read", lambda path: (contents, blind))
    result = run(model, "--data.source=coco", f"--data.root={data}")

    assert result.status == 1
    assert "tells no classes apart" in result.err and result.err.count("\n") == 1


def test_a_model_that_is_not_there_is_said_in_a_line(run):
    result = run("nothing.safetensors")

    assert result.status == 1
    assert "nothing.safetensors" in result.err and result.err.count("\n") == 1


def test_a_training_leaves_a_report(trained):
    text = (trained.workdir / "report.html").read_text()

    assert "8 images, 2 classes" in text
    assert str(trained.workdir / "report.html") in trained.out


def test_a_run_is_measured_on_its_own_data(run, trained, tmp_path, finds_one_box):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained.workdir / name, folder / name)

    assert run(folder).status == 0
    assert run(folder, "--split=train", "--config.eval_images=5").status == 0
    assert "split test · 8 images" in (folder / "report.html").read_text()
    assert "split train · 5 images" in (folder / "report_train.html").read_text()
