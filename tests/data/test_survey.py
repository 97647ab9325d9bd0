"""What is found in a whole data set."""

import dataclasses

import numpy as np
import pytest
from drawn_data import ListSource, make_example, write_voc

from jaxdet.data import inventory, sources, survey
from jaxdet.data.survey import Note

SETTINGS = {"canvas": (40, 60), "resize": (40, 60), "max_boxes": 3, "use_difficult": False}
GOOD = (2, 2, 12, 12)


def split(examples, source=None, pictures=()):
    judged = inventory.judge(examples, **SETTINGS)
    files = [f"{i}.png" for i in range(len(examples))]
    return survey.Split("train", source, files, pictures, judged, inventory.add_up(judged, 3))


@pytest.mark.parametrize(
    "boxes, kind",
    [
        ([GOOD, (2, 2, 12, 2)], "objects: no area"),
        ([GOOD, (70, 2, 80, 12)], "objects: outside the image"),
        ([GOOD, (50, 2, 61, 12)], "boxes over an edge"),
        ([GOOD, GOOD], "boxes annotated twice"),
        ([GOOD, (3, 3, 14, 14), (4, 4, 15, 15), (5, 5, 11, 11)], "objects: no slot"),
    ],
)
def test_a_wrong_object_is_named_with_its_file(boxes, kind):
    found = list(survey.find_faults(split([make_example([GOOD]), make_example(boxes)])))
    assert Note(kind, "train", "1.png", f"1 of {len(boxes)}") in found
    assert {note.file for note in found} == {"1.png"}


def test_equal_boxes_of_two_classes_or_images_are_not_there_twice():
    examples = [make_example([GOOD, GOOD], labels=[0, 1]), make_example([GOOD])]
    assert not survey.find_twice(inventory.judge(examples, **SETTINGS)).any()
    assert not survey.find_twice(inventory.judge([], **SETTINGS)).any()


def test_of_equal_boxes_all_but_the_first_are_there_twice():
    examples = [make_example([GOOD, (1, 1, 9, 9), GOOD, GOOD])]
    found = survey.find_twice(inventory.judge(examples, **SETTINGS))
    assert found.tolist() == [False, False, True, True]


def test_boxes_that_voc_drops_are_counted_and_named(tmp_path):
    images = {"a": ((40, 60), [("cat", (3, 3, 3, 9)), ("dog", (3, 3, 9, 9))])}
    source = sources.build("voc", root=write_voc(tmp_path, images), split="train")
    found = inventory.count(source.annotations(), 2, dropped=source.dropped, **SETTINGS)
    assert found.left_out[:, 0].tolist() == [1, 0] and found.objects.tolist() == [0, 1]
    note = next(survey.find_faults(split(source.annotations(), source)))
    assert note == Note("objects: no area", "train", "0.png", "1 of 2")


def look(source):
    return survey.look(source, exif="boxes", threads=2, name="train")


def test_pixels_that_were_turned_from_another_order_have_a_digest():
    """A slice of every third number backwards is no block of memory."""
    bgr = np.arange(40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    pair = [make_example([GOOD])._replace(image=each) for each in (bgr[..., ::-1], bgr)]
    first, second = look(ListSource(pair))
    assert first.digest and not first.trouble and first.digest != second.digest


def test_every_picture_is_looked_at():
    good, other = make_example([GOOD], id=1), make_example([], id=2)
    broken = good._replace(image=good.image[:60])
    swapped = good._replace(size=(60, 40))
    found = look(ListSource([good, other, broken, swapped, good, OSError("no disk")]))
    assert [bool(picture.trouble) for picture in found] == [False, False, True, False, False, True]
    assert [picture.example.size for picture in found[:4]] == [(40, 60), (40, 60), (0, 0), (40, 60)]
    assert found[3].done == ("annotated with a wrong size: its own is taken",)
    assert found[0].digest == found[4].digest != found[1].digest
    assert found[5].trouble == "no disk" and found[5].digest == b""
    assert all(picture.example.image == b"" for picture in found)
    kinds = [note.kind for note in survey.find_troubles(split([good] * 6, pictures=found))]
    assert kinds == [survey.UNREADABLE, survey.PUT_RIGHT, survey.UNREADABLE]


def test_what_is_known_of_unreadable_pictures_stays(tmp_path):
    images = {"a": ((40, 60), [("cat", (3, 3, 9, 9))])}
    source = sources.build("voc", root=write_voc(tmp_path, images), split="train")
    source.paths[0].write_bytes(b"nothing")
    (found,) = look(source)
    assert "not an image" in found.trouble and len(found.example.labels) == 1


def test_equal_pictures_are_found_within_a_split_and_across():
    keys = {"train": ["a", "b", "a", ""], "val": ["c", "b", "", "b"]}
    files = {name: [f"{name}{i}" for i in range(4)] for name in keys}
    assert list(survey.find_same(keys, files, survey.SHARED)) == [
        Note(survey.SAME, "train", "train2", "as train0"),
        Note(survey.SHARED, "val", "val1", "as train1 of train"),
        Note(survey.SAME, "val", "val3", "as val1"),
    ]


def test_images_are_called_by_their_files_or_else_by_their_ids(tmp_path):
    root = write_voc(tmp_path, {"a": ((40, 60), [])})
    source = sources.build("voc", root=root, split="train", classes=("cat",))
    assert survey.name_files(source, source.annotations()) == [f"{root}/JPEGImages/a.jpg"]
    bare = dataclasses.replace(source, paths=())
    assert survey.name_files(bare, source.annotations()) == ["a"]
