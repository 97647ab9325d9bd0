"""Small data sets after other people's bug reports; each folder's README says what is wanted."""

import logging
import pathlib
import shutil

import numpy as np
import pytest

from jaxdet.data import inventory, pipeline, sources, transforms
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.sources import selection, sizes
from jaxdet.types import UserError

BUGS = pathlib.Path(__file__).with_name("bugs")
# What the four pictures of all of them show.
LABELS = [[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
BOXES = [[51, 22, 76, 42], [18, 1, 35, 17], [10, 29, 37, 61]]


def read(name, split="train", classes=()):
    """All examples of a folder."""
    source = sources.build(name[:4].strip("-"), root=str(BUGS / name), split=split, classes=classes)
    return source, [source[i] for i in range(len(source))]


def assert_as_drawn(examples):
    assert [each.labels.tolist() for each in examples] == LABELS
    assert {each.size for each in examples} == {(72, 96)}
    assert not any(each.crowd.any() for each in examples)


@pytest.mark.parametrize("name", ["coco-area-null", "coco-iscrowd-text", "coco-via-size"])
def test_what_coco_files_leave_open_is_filled_in(name):
    _, examples = read(name)
    assert_as_drawn(examples)
    np.testing.assert_array_equal(examples[0].boxes, BOXES)
    assert examples[0].area[0] == 500


def test_a_polygon_stands_for_a_box():
    _, examples = read("coco-no-bbox")
    assert_as_drawn(examples)
    np.testing.assert_array_equal(examples[0].boxes, [[5, 5, 30, 40], *BOXES[1:]])


def test_category_names_that_are_numbers_are_text():
    source, examples = read("coco-number-names")
    assert source.class_names == ("1", "2")
    assert_as_drawn(examples)


def test_several_boxes_of_an_object_are_objects():
    _, examples = read("voc-many-bndbox")
    assert [sorted(each.labels.tolist()) for each in examples] == [[0, 0, 1]] * 4


@pytest.mark.parametrize("split, count", [("train", 4), ("bom", 2)])
def test_lists_may_have_a_byte_order_mark(split, count):
    _, examples = read("voc-utf16-list", split)
    assert [each.id for each in examples] == ["p0", "p1", "p2", "p3"][:count]


@pytest.mark.parametrize(
    "name, message",
    [
        ("coco-list", "found `array`: a list, as results files are"),
        ("coco-merged-ids", "images want an id of their own each, found 1 2 times"),
    ],
)
def test_what_can_mean_two_things_is_refused_in_a_line(name, message):
    with pytest.raises(UserError, match="instances_train.json") as error:
        read(name)
    assert message in str(error.value)


def test_two_pictures_of_one_name_are_refused_where_a_list_names_them(tmp_path):
    root = shutil.copytree(BUGS / "voc-many-bndbox", tmp_path / "voc")
    shutil.copy(root / "JPEGImages/p1.png", root / "JPEGImages/p1.jpg")
    with pytest.raises(UserError, match=r"2 images, p1.jpg, p1.png, of 'p1' in "):
        sources.build("voc", root=str(root), split="train")


def test_a_picture_knows_its_size_better(caplog):
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source, examples = read("voc-swapped-size")
    assert "are annotated with a wrong size, which boxes reach over" in caplog.text
    assert "training leaves out" not in caplog.text
    assert [each.size for each in examples] == [(72, 96), (96, 72), (72, 96), (72, 96)]
    assert {transforms.decode(each).size for each in examples} == {(72, 96)}
    assert all(map(selection.shows_object, examples))
    settings = {"canvas": (72, 96), "resize": (72, 96), "max_boxes": 8, "use_difficult": False}
    found = inventory.count(source.annotations(), len(source.class_names), **settings)
    assert (found.objects.sum(), found.left_out.sum(), found.over_edge) == (12, 0, 0)


def test_a_wrong_size_that_takes_nothing_is_put_right_when_the_picture_is_read():
    example = read("voc-swapped-size")[1][3]
    small = transforms.select(example, np.array([0]))._replace(size=(96, 80))
    put_right = PutRight()
    assert sizes.put_sizes_right([small], [pathlib.Path("not looked at")], "here") == [small]
    assert transforms.decode(small, put_right=put_right).size == (72, 96) and put_right.counts


@pytest.mark.parametrize("size", [(144, 192), (36, 48)])
def test_a_picture_that_was_resized_behind_its_boxes_is_unreadable(size):
    example = read("voc-swapped-size")[1][3]._replace(size=size)
    with pytest.raises(UnreadableImage, match="annotated as .* but the image is 72 x 96"):
        transforms.decode(example)


def test_training_sees_all_boxes_of_a_picture_of_another_size():
    source, _ = read("voc-swapped-size")
    batches = pipeline.train_batches(
        source, batch_size=4, seed=0, canvas=(72, 96), resize=(72, 96), max_boxes=8, start_step=0
    )
    assert next(batches).valid.sum() == 12
    batches.close()


def test_sizes_that_are_missing_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "jaxdet"):
        read("coco-via-size")
    assert "3 of 4 images have no width or height there" in caplog.messages[0]
