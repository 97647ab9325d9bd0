import dataclasses
import logging
import pathlib

import numpy as np
import pytest
from drawn_data import ListSource, make_example, write_coco, write_voc

from jaxdet.data.proposal_files import WithProposals, write
from jaxdet.data.sources.coco import read_coco
from jaxdet.data.sources.files import FileSource
from jaxdet.data.sources.parts import Joined, NonEmpty, Part, divide, hash_of
from jaxdet.data.sources.voc import read_voc
from jaxdet.types import UserError


@pytest.mark.parametrize(
    "image_id, number",
    [
        # python -c "import hashlib; print(hashlib.sha256(b'a').hexdigest()[:16])"
        ("a", 0xCA978112CA1BBDCA / 2**64),
        ("images/train/a", 0x6060AB80E0212B84 / 2**64),
        ("größe", 0xD353A2671B67AFFF / 2**64),
        (900, 0xBDC5D8A48C238979 / 2**64),
        ("900", 0xBDC5D8A48C238979 / 2**64),
        # A file's name that is no UTF-8: b"\xe9".
        ("\udce9", 0xDE2E331D891AE267 / 2**64),
    ],
)
def test_the_hash_of_an_id_stays_what_it_is(image_id, number):
    assert hash_of(image_id) == number


def _source(count=400):
    return ListSource([make_example([], id=number, size=(4, 4)) for number in range(count)])


def test_a_part_is_held_out_by_the_ids_and_the_rest_is_learnt():
    learnt, held = divide(_source(), fraction=0.2)
    ids = [example.id for example in held]
    assert ids == [number for number in range(400) if hash_of(number) < 0.2]
    assert 50 < len(held) < 110
    assert sorted(ids + [example.id for example in learnt]) == list(range(400))


def test_an_image_stays_on_its_side_when_others_come():
    before = {example.id for example in divide(_source(200), fraction=0.3)[1]}
    after = {example.id for example in divide(_source(400), fraction=0.3)[1]}
    assert before == {number for number in after if number < 200}


def test_every_third_image_or_those_of_a_list_are_held_out(tmp_path):
    assert [e.id for e in divide(_source(8), every=3)[1]] == [0, 3, 6]
    (tmp_path / "list.txt").write_text("5\r\n\n7\n")
    learnt, held = divide(_source(8), listed=str(tmp_path / "list.txt"))
    assert [e.id for e in held] == [5, 7] and [e.id for e in learnt] == [0, 1, 2, 3, 4, 6]
    (tmp_path / "list.txt").write_text("5\n9\n")
    with pytest.raises(UserError, match="wants ids of images, such as '0', '1', '2'; found '9'"):
        divide(_source(8), listed=str(tmp_path / "list.txt"))
    with pytest.raises(UserError, match="there is no file"):
        divide(_source(8), listed=str(tmp_path / "none.txt"))


def test_a_part_without_an_image_is_refused():
    with pytest.raises(UserError, match="no image is held out of 3"):
        divide(_source(3), fraction=1e-9)
    with pytest.raises(UserError, match="no image is learnt of 3"):
        divide(_source(3), every=1)


def test_a_source_with_one_id_twice_is_not_divided():
    source = ListSource([make_example([], id=number, size=(4, 4)) for number in (1, 2, "1")])
    with pytest.raises(UserError, match="2 images have the id '1': which is held out"):
        divide(source, every=2)


@pytest.fixture
def voc(tmp_path):
    objects = [("cat", (1, 1, 10, 10))]
    images = {f"p{n}": ((40, 60), objects[: n % 2]) for n in range(6)}
    return read_voc(root=write_voc(tmp_path / "voc", images), split="train", classes=("cat",))


def test_a_part_knows_without_reading_what_its_source_knows(voc, tmp_path):
    for path in voc.paths:
        path.unlink()
    learnt, held = divide(voc, every=2)
    assert learnt.ids() == ["p1", "p3", "p5"] and held.ids() == ["p0", "p2", "p4"]
    assert [len(each.labels) for each in learnt.annotations()] == [1, 1, 1]
    assert learnt.has_object(0) and not held.has_object(0)
    assert learnt.annotated and learnt.category_ids is None
    write(tmp_path / "p.npz", held.ids(), [np.zeros((0, 4))] * 3, [np.zeros(0)] * 3)
    assert WithProposals(held, tmp_path / "p.npz").ids() == held.ids()
    with pytest.raises(UserError, match="no proposals for 3 of 3 images"):
        WithProposals(learnt, tmp_path / "p.npz")


def test_sources_are_joined_one_behind_the_other(voc, tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9]}
    cats = [{"id": 7, "name": "cat"}]
    content = {"images": [image], "annotations": [box], "categories": cats}
    root = write_coco(tmp_path / "coco", content)
    coco = read_coco(root=root, split="train", classes=("cat",))
    both = Joined([voc, coco])
    assert len(both) == 7 and both.class_names == ("cat",)
    assert both.ids() == [*(f"0/p{n}" for n in range(6)), "1/1"]
    assert [example.id for example in both] == both.ids()
    assert [each.id for each in both.annotations()] == both.ids()
    assert both[6].labels.tolist() == [0] and both.has_object(6) and not both.has_object(0)
    with pytest.raises(UserError, match="want the same classes: cat of the first, found red"):
        Joined([voc, ListSource([])])


@pytest.fixture
def known():
    """A source of files that knows all that a source may, and whose files are not there."""
    examples = [make_example([[2, 2, 9, 9]], id=f"p{n}")._replace(image=b"") for n in range(3)]
    paths = [pathlib.Path(f"p{n}.jpg") for n in range(3)]
    return FileSource(("cat",), examples, paths, (7,), dropped={1: [0], 2: [0, 0]})


def _with_proposals(source, folder):
    write(folder / "p.npz", source.ids(), [np.zeros((0, 4))] * 3, [np.zeros(0)] * 3)
    return WithProposals(source, folder / "p.npz")


@pytest.mark.parametrize(
    "wrap, ids, places",
    [
        (lambda source, _: Part(source, [2, 1]), ["p2", "p1"], [2, 1]),
        (lambda source, _: NonEmpty(source), ["p0", "p1", "p2"], [0, 1, 2]),
        (_with_proposals, ["p0", "p1", "p2"], [0, 1, 2]),
        (lambda source, _: Joined([Part(source, [0]), source]), None, [0, 0, 1, 2]),
        (lambda source, folder: NonEmpty(_with_proposals(source, folder)), None, [0, 1, 2]),
    ],
)
def test_what_a_source_knows_is_known_behind_all_that_is_laid_around_it(
    known, tmp_path, wrap, ids, places
):
    found = wrap(known, tmp_path)
    assert found.class_names == ("cat",) and found.category_ids == (7,) and found.annotated
    assert found.ids() == ids if ids else len(found.ids()) == len(places)
    assert [each.id for each in found.annotations()] == found.ids()
    assert found.paths == [known.paths[place] for place in places]
    lost = [known.dropped.get(place) for place in places]
    assert [found.dropped.get(place) for place in range(len(found))] == lost
    assert found.has_object(0)


def test_joined_sources_have_no_numbers_of_classes_where_these_differ(known):
    other = dataclasses.replace(known, category_ids=(8,), paths=[])
    assert Joined([known, other]).category_ids is None and Joined([known, other]).paths == []
    with pytest.raises(UserError, match="want one at least, found none"):
        Joined([])


def test_a_source_that_lists_too_few_ids_loses_no_image(known):
    short = _source(4)
    short.ids = lambda: [0, 1, 2]
    with pytest.raises(UserError, match="one of its ids for each image, found 3 for 4 images"):
        divide(short, every=2)
    with pytest.raises(UserError, match="one of its paths for each image, found 2 for 3 images"):
        Part(dataclasses.replace(known, paths=known.paths[:2]), [0])


def test_the_name_of_a_file_may_be_no_utf_8():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    # python -c "import hashlib; print(hashlib.sha256(b'caf\xe9').hexdigest()[:16])"
    assert hash_of(name) == 0xDAFD66C0B98965E6 / 2**64


def test_pictures_without_xml_are_counted_where_there_are_no_lists(tmp_path, caplog):
    root = write_voc(tmp_path, {"a": ((40, 60), [("cat", (1, 1, 9, 9))]), "b": ((40, 60), [])})
    (tmp_path / "Annotations/b.xml").unlink()
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_voc(root=root, split="train", list_folder="")
    assert source.ids() == ["a"]
    assert "1 of 2 pictures have no xml, such as 'b': they are left out" in caplog.text
    with pytest.raises(UserError, match="there is no split 'val'"):
        read_voc(root=root, split="val", list_folder="")
