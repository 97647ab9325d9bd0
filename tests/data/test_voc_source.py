import logging

import numpy as np
import pytest
from drawn_data import write_voc

from jaxdet.data import transforms
from jaxdet.data.sources.voc import read_voc
from jaxdet.types import UserError


def test_one_based_inclusive_pixels_become_exclusive_boxes(tmp_path):
    objects = [("cat", (1, 1, 60, 40)), ("dog", (11, 21, 20, 30), "difficult")]
    source = read_voc(root=write_voc(tmp_path, {"a": ((40, 60), objects)}), split="train")
    example = source[0]
    np.testing.assert_array_equal(example.boxes, [[0, 0, 60, 40], [10, 20, 20, 30]])
    assert source.class_names == ("cat", "dog")
    assert example.labels.tolist() == [0, 1]
    assert example.difficult.tolist() == [False, True]
    assert example.crowd.tolist() == [False, False]
    assert example.area.tolist() == [2400, 100]
    assert (example.id, example.size) == ("a", (40, 60))
    assert example.image == (tmp_path / "JPEGImages/a.jpg").read_bytes()


def test_empty_boxes_are_dropped_and_with_outside_ones_reported_once(tmp_path, caplog):
    objects = [
        ("cat", (181, 29, 181, 29)),
        ("cat", (5, 5, 5, 20)),
        ("cat", (61, 5, 80, 20)),
        ("dog", (50.5, 30, 80, 60)),
    ]
    root = write_voc(tmp_path, {"a": ((40, 60), objects), "b": ((40, 60), [])})
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_voc(root=root, split="train")
    np.testing.assert_array_equal(source[0].boxes, [[60, 4, 80, 20], [49.5, 29, 80, 60]])
    assert source[0].labels.tolist() == [0, 1]
    assert source[0].area.tolist() == [320, 30.5 * 31]
    assert source[1].boxes.shape == (0, 4)
    assert [record.message for record in caplog.records] == [
        f"{root} (train): training leaves out 3 of 4 boxes, which are empty or outside their image"
    ]


def test_objects_that_labelme_keeps_as_deleted_are_reported(tmp_path, caplog):
    root = write_voc(tmp_path, {"a": ((40, 60), [("cat", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))])})
    path = tmp_path / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<name>dog", "<deleted>1</deleted><name>dog"))
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_voc(root=root, split="train")
    assert source.class_names == ("cat",) and len(source[0].labels) == 1
    assert [record.message for record in caplog.records] == [
        f"{root} (train): 1 of 2 objects are marked as deleted: they are left out"
    ]


def test_splits_are_joined_in_order_and_may_lie_in_folders(tmp_path):
    cat = [("cat", (1, 1, 9, 9))]
    write_voc(tmp_path / "VOC2007", {"x": ((40, 60), cat), "y": ((30, 20), cat)}, split="trainval")
    write_voc(tmp_path / "VOC2012", {"x": ((10, 10), cat)}, split="train")
    source = read_voc(root=str(tmp_path), split="VOC2007/trainval+VOC2012/train")
    assert [e.id for e in source] == ["VOC2007/x", "VOC2007/y", "VOC2012/x"]
    assert [e.size for e in source] == [(40, 60), (30, 20), (10, 10)]


def test_an_image_of_two_joined_lists_is_taken_once(tmp_path, caplog):
    cat = {name: ((40, 60), [("cat", (1, 1, 9, 9))]) for name in "xyz"}
    write_voc(tmp_path, cat, split="trainval")
    (tmp_path / "ImageSets/Main/train.txt").write_text("y\n")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_voc(root=str(tmp_path), split="train+trainval")
    assert source.ids() == ["y", "x", "z"]
    assert "1 of 4 names are listed more than once, such as 'y': each is taken" in caplog.text
    with pytest.raises(UserError, match=r"trainval\): y and ./y are one picture, "):
        read_voc(root=str(tmp_path), split="train+./trainval")


def test_what_macos_writes_beside_a_file_is_none_of_the_data(tmp_path):
    write_voc(tmp_path, {"a": ((40, 60), [("cat", (1, 1, 9, 9))])})
    for name in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "JPEGImages/._b.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert read_voc(root=str(tmp_path), split="train", list_folder="").ids() == ["a"]


def test_a_missing_size_is_taken_from_the_image(tmp_path):
    images = {"a": ((40, 60), [("cat", (50, 30, 90, 90))])}
    source = read_voc(root=write_voc(tmp_path, images, xml_size=(0, 0)), split="train")
    assert source[0].size == (40, 60)
    np.testing.assert_array_equal(source[0].boxes, [[49, 29, 90, 90]])


def _tree(root):
    return write_voc(root, {"a": ((40, 60), [("cat", (1, 1, 9, 9))])})


@pytest.mark.parametrize(
    "change, split, message",
    [
        (lambda root: None, "val", "no split file {root}/ImageSets/Main/val.txt; found: train"),
        (lambda root: None, "VOC2007/train", "no folder {root}/VOC2007"),
        (lambda root: (root / "Annotations/a.xml").unlink(), "train", "{root}/Annotations/a.xml"),
        (lambda root: (root / "JPEGImages/a.jpg").unlink(), "train", "no image 'a'"),
        (
            lambda root: (root / "Annotations/a.xml").write_text("<annotation>"),
            "train",
            "{root}/Annotations/a.xml: not a VOC annotation",
        ),
        (
            lambda root: (root / "Annotations/a.xml").write_text(
                "<annotation><object><name>cat</name></object></annotation>"
            ),
            "train",
            "{root}/Annotations/a.xml: object 1: wants a bndbox",
        ),
    ],
)
def test_missing_and_broken_files_are_named(tmp_path, change, split, message):
    _tree(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        read_voc(root=str(tmp_path), split=split)
    assert message.format(root=tmp_path) in str(error.value)


def test_an_unknown_class_is_named_with_its_file_and_the_known_ones(tmp_path):
    root = _tree(tmp_path)
    with pytest.raises(UserError) as error:
        read_voc(root=root, split="train", classes=("dog", "Cat"))
    assert str(error.value) == (
        f"{root}/Annotations/a.xml: unknown class 'cat'; data.classes has 'dog', 'Cat'"
    )


def test_all_unknown_classes_and_missing_images_are_known_at_once(tmp_path):
    names = {"a": ("emu", "cat", "emu", "dog"), "b": ("cat",), "c": ("elk",)}
    images = {key: ((40, 60), [(n, (1, 1, 9, 9)) for n in own]) for key, own in names.items()}
    root = write_voc(tmp_path, images)
    with pytest.raises(UserError, match="and 2 more mistakes") as error:
        read_voc(root=root, split="train", classes=("cat",))
    assert [line.partition(";")[0] for line in error.value.lines] == [
        f"{root}/Annotations/{name}.xml: unknown class '{known}'"
        for name, known in (("a", "emu"), ("a", "dog"), ("c", "elk"))
    ]
    lists = tmp_path / "ImageSets/Main"
    (lists / "val.txt").write_text("z")
    (lists / "train.txt").write_text("a\nx\ny")
    with pytest.raises(UserError) as error:
        read_voc(root=root, split="val+train")
    assert [line.partition(" in ")[0] for line in error.value.lines] == [
        f"{lists}/{split}.txt: no image '{name}'"
        for split, name in (("val", "z"), ("train", "x"), ("train", "y"))
    ]


def test_blood_cells_have_the_known_counts(bccd):
    classes = ("RBC", "WBC", "Platelets")
    train = read_voc(root=bccd, split="trainval", classes=classes)
    test = read_voc(root=bccd, split="test", classes=classes)
    assert (len(train), len(test)) == (292, 72)
    trained = [transforms.clean(example) for example in train.examples]
    counts = np.bincount(np.concatenate([example.labels for example in trained]))
    assert counts.tolist() == [3348, 301, 292]
