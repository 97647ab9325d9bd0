"""A data set as `jaxdet check` sees it."""

import json
import os
from types import SimpleNamespace

import pytest
from data.drawn_data import draw, encode, write_coco, write_voc
from ml_collections import ConfigDict

from jaxdet.commands import check

CONFIG = "tests/training/tiny_config.py"
YOLOX = "tests/training/tiny_yolox_config.py"
GOOD = ("circle", (3, 3, 30, 30))
FLAGS = (
    "--config.data.source=voc",
    "--config.data.train_split=train",
    "--config.data.eval_split=val",
)


@pytest.fixture
def run(capfd, tmp_path):
    """Runs the command on a folder; gives its status, outputs and page."""

    def run(root, *flags, config=CONFIG):
        page = tmp_path / "page.html"
        data = [*FLAGS, f"--config.data.root={root}"]
        arguments = ["check", f"--config={config}", *data, f"--out={page}"]
        with pytest.raises(SystemExit) as ended:
            check.main([*arguments, *flags])
        out, err = capfd.readouterr()
        text = page.read_text() if page.exists() else ""
        return SimpleNamespace(status=ended.value.code, out=out, err=err, page=text)

    return run


@pytest.fixture
def root(tmp_path):
    """Four images and two; one is in both splits, one broken, one swapped, one has a box twice."""
    names = "abcd"
    images = {
        name: ((48, 64), [GOOD, ("square", (5 + i, 9, 40, 40))]) for i, name in enumerate(names)
    }
    images["b"][1].append(GOOD)
    write_voc(
        tmp_path,
        {"e": ((48, 64), [GOOD]), "f": ((48, 64), [("circle", (3, 3, 70, 30))])},
        split="val",
    )
    root = write_voc(tmp_path, images)
    for i, name in enumerate("abcdef"):
        pixels = draw((48, 64), [(i, i, 20, 20)])
        (tmp_path / f"JPEGImages/{name}.jpg").write_bytes(encode(pixels))
    (tmp_path / "JPEGImages/c.jpg").write_bytes(b"no picture")
    (tmp_path / "JPEGImages/e.jpg").write_bytes((tmp_path / "JPEGImages/a.jpg").read_bytes())
    return root


def test_every_picture_and_object_is_looked_at(run, root):
    found = run(root, "--pictures")

    assert found.status == 0, found.err
    assert found.out.startswith("                    train  val\nimages                  4    2\n")
    for line in (
        "boxes annotated twice: 1 file\n  {}/JPEGImages/b.jpg: 1 of 3",
        "unreadable pictures: 1 file\n  {}/JPEGImages/c.jpg: c: not an image",
        "pictures in several splits: 1 file\n  {0}/JPEGImages/e.jpg: as {0}/JPEGImages/a.jpg of",
    ):
        assert line.format(root) in found.out
    assert "anchors: " in found.out and "of 9 objects of train" in found.out
    assert f"{root}/JPEGImages/c.jpg</th>" in found.page
    assert found.page.count("<figure><img") == 2, "of b and f, which have wrong boxes"
    assert found.page.count('class="ring"') == 15


def test_without_pictures_only_annotations_are_read(run, root):
    found = run(root, config=YOLOX)
    assert found.status == 0, found.err
    assert "yolox has no anchors: objects of any size and shape fit" in found.out
    assert "unreadable" not in found.out and "in several splits" not in found.out
    assert "ring" not in found.page.partition("</style>")[2]


def test_objects_that_the_settings_leave_out_are_named(run, tmp_path):
    small = ("circle", (3, 3, 10, 30))
    root = write_voc(tmp_path, {"a": ((48, 64), [GOOD, small]), "b": ((30, 64), [GOOD])})
    write_voc(tmp_path, {"c": ((48, 64), [GOOD])}, split="val")
    # Mosaics are zoomed in up to twice.
    found = run(root, "--config.data.min_side=20", "--config.data.keep_empty=False", config=YOLOX)
    assert found.status == 0, found.err
    for name, reason in (
        ("a.jpg: 1 of 2", "up to data.min_side"),
        ("b.jpg: 1 of 1", "in an image"),
    ):
        assert f"JPEGImages/{name}" in found.out.partition(f"objects: {reason}")[2]


def test_one_picture_in_both_splits_is_seen_by_its_name(run, tmp_path, monkeypatch):
    root = write_voc(tmp_path, {"a": ((48, 64), [GOOD])})
    write_voc(tmp_path, {"a": ((48, 64), [GOOD])}, split="val")
    monkeypatch.setattr(check.fitting, "measure", lambda *_: check.fitting.Fit([], {}))
    assert f"file names in several splits: 1 file\n  {root}/JPEGImages/a.jpg" in run(root).out


def test_the_name_of_a_picture_may_be_no_utf_8(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check.fitting, "measure", lambda *_: check.fitting.Fit([], {}))
    folders = {"train": "images/train", "val": "images/val"}
    (tmp_path / "data.yaml").write_text(json.dumps({**folders, "names": ["circle", "square"]}))
    for split, name in (("train", b"\xff"), ("val", b"a")):
        picture = tmp_path / f"images/{split}" / os.fsdecode(name + b".jpg")
        for file in (picture, tmp_path / f"labels/{split}" / os.fsdecode(name + b".txt")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("0 .5 .5 .5 .5\n1 .5 .5 0 0\n")
        picture.write_bytes(encode(draw((48, 64), [])))
    found = run(tmp_path, "--config.data.source=yolo")
    assert found.status == 0, found.err
    for said in (found.out, found.page):
        assert f"{tmp_path}/images/train/\\udcff.jpg" in said


@pytest.mark.parametrize("flags", [(), ("--pictures",)])
def test_nothing_to_learn_is_an_error(run, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(check.fitting, "measure", lambda *_: check.fitting.Fit([], {}))
    objects = [GOOD] if flags else []
    root = write_voc(tmp_path, {"a": ((48, 64), objects)})
    write_voc(tmp_path, {"b": ((48, 64), [GOOD])}, split="val")
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")
    found = run(root, *flags)
    assert found.status == 1 and found.page
    if not flags:
        assert "warning: train: there is no object on any of 1 images" in found.err


def test_training_data_without_an_object_names_no_class(run, tmp_path):
    root = write_voc(tmp_path, {"a": ((48, 64), []), "b": ((48, 64), [])})
    write_voc(tmp_path, {"c": ((48, 64), [GOOD])}, split="val")
    found = run(root, "--config.data.classes=()", config=YOLOX)
    assert found.status == 1 and not found.page
    line = f"error: {root} (train): there is no object on any of 2 images, so that no class is"
    assert found.err.splitlines()[-1].startswith(line)


def test_all_mistakes_of_a_data_set_are_said_at_once(run, tmp_path):
    root = write_voc(tmp_path, {name: ((48, 64), [GOOD]) for name in "abcd"})
    for name, text in (("b", "<annotation>"), ("d", "no xml")):
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    found = run(root)
    assert found.status == 1 and not found.page
    lines = found.err.splitlines()
    assert [line.partition(": not a VOC")[0] for line in lines[:2]] == [
        f"error: {root}/Annotations/{name}.xml" for name in "bd"
    ]
    assert lines[2].startswith(f"error: no split file {root}/ImageSets/Main/val.txt")


def test_all_broken_annotations_of_a_json_are_said_at_once(run, tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}
    wrong = [
        {**box, "id": 5},
        {**box, "id": 6, "bbox": [1, 2, 3, 4], "iscrowd": 7},
        {**box, "id": 8},
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "circle"}]}
    root = write_coco(tmp_path, content, split="val")
    write_coco(tmp_path, content)
    path = tmp_path / "annotations/instances_train.json"
    path.write_text(json.dumps({**content, "annotations": wrong}))
    found = run(root, "--config.data.source=coco")
    assert [line.partition(" wants")[0] for line in found.err.splitlines()] == [
        f"error: {path}: annotation {number}" for number in ("5: bbox", "6: iscrowd", "8: bbox")
    ]


def test_a_folder_is_recognised_and_the_lines_of_its_config_printed(tmp_path, capfd):
    root = write_voc(tmp_path, {"a": ((48, 64), [GOOD])})
    with pytest.raises(SystemExit) as ended:
        check.main(["check", f"--root={root}"])
    first, *lines = capfd.readouterr().out.splitlines()
    assert ended.value.code == 0 and first.startswith("# voc, by ")
    config = ConfigDict({"data": {}})
    exec("\n".join(lines), {"config": config, "ConfigDict": ConfigDict})
    assert config.data.source == "voc" and config.data.root == root


def test_a_folder_of_no_format_is_said_in_a_line(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        check.main(["check", "--root", str(tmp_path)])
    error = capfd.readouterr().err
    assert ended.value.code == 1
    assert error.startswith(f"error: {tmp_path}: looked for YOLO") and error.count("\n") == 1
