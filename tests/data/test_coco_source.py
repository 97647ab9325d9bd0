import json
import logging
import tracemalloc

import numpy as np
import pytest
from drawn_data import write_coco

from jaxdet.data import transforms
from jaxdet.data.sources import coco_json, is_annotated
from jaxdet.data.sources.coco import read_coco
from jaxdet.types import UserError


def _annotation(number, image_id, category_id, bbox, **rest):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": bbox[2] * bbox[3] / 2,
        "iscrowd": 0,
    } | rest


@pytest.fixture
def content():
    return {
        "images": [
            {"id": 900, "file_name": "b.jpg", "height": 40, "width": 60},
            {"id": 7, "file_name": "a.jpg", "height": 30, "width": 20},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            _annotation(1, 900, 18, [10, 5, 20, 30]),
            _annotation(2, 900, 3, [50.5, 30, 20, 20], iscrowd=1),
        ],
    }


def test_labels_follow_the_names_and_not_the_numbers(tmp_path, content):
    root = write_coco(tmp_path, content)
    source = read_coco(root=root, split="train", classes=("dog", "cat", "car"))
    first, second = source
    assert first.labels.tolist() == [0, 2]
    np.testing.assert_array_equal(first.boxes, [[10, 5, 30, 35], [50.5, 30, 70.5, 50]])
    assert first.crowd.tolist() == [False, True]
    assert first.area.tolist() == [300, 200]
    assert (first.id, first.size) == (900, (40, 60))
    assert (second.id, second.size, len(second.labels)) == (7, (30, 20), 0)
    assert first.image == (tmp_path / "train/b.jpg").read_bytes()


def test_without_classes_all_categories_come_in_the_order_of_their_numbers(tmp_path, content):
    source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert source.class_names == ("car", "dog")
    assert source[0].labels.tolist() == [1, 0]


def test_a_category_that_labels_nothing_may_be_left_out(tmp_path, content):
    content["categories"].append({"id": 0, "name": "none"})
    source = read_coco(root=write_coco(tmp_path, content), split="train", classes=("car", "dog"))
    assert source[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "more, classes, numbers",
    [
        ([], (), (3, 18)),
        ([], ("dog", "car"), (18, 3)),
        ([], ("dog", "cat", "car"), None),  # The json has no number for a cat.
        ([{"id": 4, "name": "car"}], ("dog", "car"), None),  # And two for a car.
    ],
)
def test_the_numbers_of_the_classes_are_kept(tmp_path, content, more, classes, numbers):
    content["categories"] += more
    source = read_coco(root=write_coco(tmp_path, content), split="train", classes=classes)
    assert source.category_ids == numbers


def test_degenerate_boxes_are_kept_for_evaluation_and_reported_for_training(
    tmp_path, content, caplog
):
    content["annotations"] += [
        _annotation(3, 7, 3, [5, 5, 10, 0]),
        _annotation(4, 7, 3, [5, 5, 0.5, 10]),
        _annotation(5, 7, 3, [25, 5, 10, 10]),
        _annotation(6, 7, 3, [5, 5, 10, 10], area=0),
        _annotation(7, 7, 3, [5, 5, 10, 10]),
        _annotation(8, 7, 3, [5, 5, 10, 10], area=-60.5),
    ]
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_coco(root=write_coco(tmp_path, content), split="train")
    kept = [[5, 5, 15, 5], [5, 5, 5.5, 15], [25, 5, 35, 15], *[[5, 5, 15, 15]] * 3]
    np.testing.assert_array_equal(source[1].boxes, kept)
    assert source[1].area.tolist() == [0, 2.5, 50, 100, 50, 100]
    np.testing.assert_array_equal(transforms.clean(source[1]).boxes, [[5, 5, 15, 15]] * 3)
    assert len(caplog.records) == 1
    assert "training leaves out 3 of 8 boxes" in caplog.records[0].message


def test_area_and_crowd_may_be_missing(tmp_path, content):
    for item in content["annotations"]:
        del item["area"], item["iscrowd"]
    example = read_coco(root=write_coco(tmp_path, content), split="train")[0]
    assert example.area.tolist() == [600, 400]
    assert not example.crowd.any()


@pytest.mark.parametrize(
    "categories, names",
    [
        ([("things", "none"), ("cat", "things"), ("dog", "things")], ("cat", "dog")),
        ([("things", None), ("cat", "things"), ("dog", "things")], ("cat", "dog")),
        ([("cat", "none"), ("dog", "none")], ("cat", "dog")),
        ([("cat", "animal"), ("dog", "animal")], ("cat", "dog")),
        ([("animal", "none"), ("cat", "animal"), ("car", "thing")], ("animal", "cat", "car")),
        ([("person", "person"), ("cat", "animal")], ("person", "cat")),
        ([("cat", "none")], ("cat",)),
    ],
)
def test_a_category_that_only_names_the_group_of_all_others_is_no_class(
    tmp_path, content, categories, names
):
    content["annotations"] = []
    content["categories"] = [
        {"id": k, "name": name, "supercategory": group}
        for k, (name, group) in enumerate(categories)
    ]
    root = write_coco(tmp_path, content)
    assert read_coco(root=root, split="train").class_names == names


def test_a_class_of_the_group_s_name_has_its_own_number(tmp_path, content):
    names = [(0, "dog", "none"), (5, "dog", "dog"), (6, "car", "dog")]
    keys = ("id", "name", "supercategory")
    content["categories"] = [dict(zip(keys, each, strict=True)) for each in names]
    for annotation in content["annotations"]:
        annotation["category_id"] = 5
    source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert (source.class_names, source.category_ids) == (("dog", "car"), (5, 6))


def test_the_name_of_the_group_is_a_class_where_it_labels_an_object(tmp_path, content):
    content["categories"] = [
        {"id": 3, "name": "pet", "supercategory": "none"},
        {"id": 18, "name": "dog", "supercategory": "pet"},
    ]
    root = write_coco(tmp_path, content)
    assert read_coco(root=root, split="train").class_names == ("pet", "dog")


def test_paths_are_templates(tmp_path, content):
    write_coco(tmp_path, content, split="val")
    (tmp_path / "annotations/instances_val.json").rename(tmp_path / "val.json")
    (tmp_path / "val").rename(tmp_path / "val_images")
    source = read_coco(
        root=str(tmp_path), split="val", annotations="{split}.json", images="{split}_images"
    )
    assert len(source) == 2


def test_an_unknown_class_is_named_with_its_file_and_the_known_ones(tmp_path, content):
    root = write_coco(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_coco(root=root, split="train", classes=("dog", "Car"))
    assert str(error.value) == (
        f"{root}/annotations/instances_train.json: unknown class 'car'; "
        "data.classes has 'dog', 'Car'"
    )


def _drop(key):
    return lambda content: content.pop(key)


def _annotate(**fields):
    return lambda content: content["annotations"][0].update(fields)


def _add(section, /, **item):
    return lambda content: content[section].append(item)


@pytest.mark.parametrize(
    "change, message",
    [
        (_drop("images"), "not a COCO detection file: there is no `images`"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1: bbox wants [x, y, width"),
        (_annotate(bbox=[1, 2, 3]), "annotation 1: bbox wants [x, y, width, height], found [1.0"),
        (_annotate(bbox=[1, 2, 3, float("nan")]), "not a json file: invalid character"),
        (_annotate(bbox=[1, 2, "3", 4]), "annotations of id 1.bbox[2]: wanted `float`, found"),
        (_annotate(bbox=None, segmentation={"counts": "x"}), "annotation 1: bbox wants"),
        (_annotate(bbox=None, segmentation=[[1, 2, 3]]), "annotation 1: bbox wants"),
        (_annotate(area="large"), "annotations of id 1.area: wanted `float | null`, found `str`"),
        (_annotate(bbox=[1, 2, 1e39, 3]), "bbox and area wants corners and an area below 3.4e38"),
        (_annotate(bbox=[3e38, 2, 3e38, 3]), "bbox and area wants corners and an area below 3.4e"),
        (_annotate(bbox=[-3e38, 2, 6e38, 3]), "bbox and area wants corners and an area below 3.4"),
        (_annotate(bbox=[1, 2, 1e20, 1e20]), "bbox and area wants corners and an area below 3.4e"),
        (_annotate(area=1e39), "bbox and area wants corners and an area below 3.4e38, found"),
        (_annotate(iscrowd=2), "annotation 1: iscrowd wants 0 or 1, found 2"),
        (_annotate(iscrowd="no"), "annotation 1: iscrowd wants 0 or 1, found 'no'"),
        (_annotate(ignore=2), "annotation 1: ignore wants 0 or 1, found 2"),
        (_annotate(iscrowd=1, ignore="no"), "annotation 1: ignore wants 0 or 1, found 'no'"),
        (_annotate(category_id=5), "1: category_id wants one of categories, as 18, 3, found 5"),
        (_annotate(image_id="900"), "image_id wants one of images, as 900, 7, found '900'"),
        (_add("categories", id=3, name="van"), "categories want an id of their own each, found 3"),
        (_add("categories", id=4, name=" "), "category 4: name wants text, found none"),
        (_add("categories", id=4, name=None), "categories of id 4.name: wanted"),
        (_add("images", id=7, file_name="b.jpg"), "images want an id of their own each, found 7"),
        (_add("images", id=8, file_name="b.jpg"), "json: 900 and 8 are one picture, "),
        (_add("images", id=8, file_name="./b.jpg"), "json: 900 and 8 are one picture, "),
        (_add("images", id="7", file_name="c.jpg"), "a.jpg and "),
        (_add("images", id=8), "images of id 8: there is no `file_name`"),
        (_add("images", id=8, file_name=""), "image 8: file_name wants a name"),
        (_add("images", id=8, file_name="../b.jpg"), "a path below the image folder, found '../"),
        (_add("images", id=8, file_name="/etc/passwd"), "a path below the image folder"),
        (_add("images", id=8, file_name="C:\\b.jpg"), "a path below the image folder"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content, change, message):
    root = write_coco(tmp_path, content)
    change(content)
    (tmp_path / "train/c.jpg").touch()
    path = tmp_path / "annotations/instances_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_coco(root=root, split="train")
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a json file: "),
        (b"{", "not a json file: "),
        (b"[]", "found `array`: a list, as results files are"),
        (b"\xff\xfe{", "wanted text in UTF-8 or UTF-16"),
        (b'{"images": [' + b"[" * 99999, "not a COCO"),
        (b'{"info": ' + b"[" * 99999 + b"]" * 99999 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_annotation_file_is_said_in_a_line(tmp_path, content, data, message):
    root = write_coco(tmp_path, content)
    (tmp_path / "annotations/instances_train.json").write_bytes(data)
    with pytest.raises(UserError, match="instances_train.json") as error:
        read_coco(root=root, split="train")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: None,
        _annotate(iscrowd="0"),
        _annotate(iscrowd=None),
        _annotate(iscrowd=False),
        _annotate(bbox=None, segmentation=[[10, 5, 30, 5], [30, 35, 12, 20]]),
        _annotate(image_id=900.0, category_id=18.0),  # As tables write numbers with gaps.
        lambda c: c["images"][0].update(width=None, height="?"),
        lambda c: c["images"][0].pop("height"),
        lambda c: c["images"][0].update(width=0, height=-3),
        lambda c: c.update(licenses=[[[1]]], info=None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_what_can_only_mean_one_thing_is_read_as_that(tmp_path, content, change, encoding):
    root = write_coco(tmp_path, content)
    change(content)
    path = tmp_path / "annotations/instances_train.json"
    path.write_text(json.dumps(content), encoding=encoding)
    first = read_coco(root=root, split="train")[0]
    np.testing.assert_array_equal(first.boxes[0], [10, 5, 30, 35])
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.size == (40, 60)


def test_windows_paths_lead_to_their_pictures(tmp_path, content):
    root = write_coco(tmp_path, content)
    (tmp_path / "train/deep").mkdir()
    (tmp_path / "train/b.jpg").rename(tmp_path / "train/deep/b.jpg")
    content["images"][0]["file_name"] = "deep\\b.jpg"
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
    assert read_coco(root=root, split="train")[0].image


def test_links_may_lead_anywhere_in_the_root_and_not_out_of_it(tmp_path, content):
    root = write_coco(tmp_path / "root", content)
    picture = tmp_path / "root/train/b.jpg"
    picture.rename(tmp_path / "root/kept.jpg")
    picture.symlink_to(tmp_path / "root/kept.jpg")
    assert read_coco(root=root, split="train")[0].image
    picture.unlink()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    picture.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="root/train/b.jpg is a link that leads out of .*root"):
        read_coco(root=root, split="train")
    # Nor by way of another link, nor up from where they lie.
    (tmp_path / "root/kept.jpg").unlink()
    (tmp_path / "root/kept.jpg").symlink_to("../secret.jpg")
    for target in ("../kept.jpg", "../../secret.jpg", "../..", tmp_path / "not/there.jpg"):
        picture.unlink()
        picture.symlink_to(target)
        with pytest.raises(UserError, match="root/train/b.jpg is a link that leads out of"):
            read_coco(root=root, split="train")
    # The folder itself is the user's word.
    (tmp_path / "root/train").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/b.jpg").unlink()
    (tmp_path / "elsewhere/b.jpg").write_bytes(b"other")
    (tmp_path / "root/train").symlink_to(tmp_path / "elsewhere")
    assert read_coco(root=root, split="train")[0].image == b"other"


def test_missing_files_are_named(tmp_path, content):
    root = write_coco(tmp_path, content)
    with pytest.raises(UserError, match="no annotation file .*instances_val.json"):
        read_coco(root=root, split="val")
    with pytest.raises(UserError, match="no image folder .*elsewhere"):
        read_coco(root=root, split="train", images="elsewhere")
    (tmp_path / "train/a.jpg").unlink()
    with pytest.raises(UserError, match="1 of 2 images are missing, first .*a.jpg"):
        read_coco(root=root, split="train")
    (tmp_path / "annotations/instances_train.json").write_text("{")
    with pytest.raises(UserError, match="instances_train.json: not a json file"):
        read_coco(root=root, split="train")


def test_a_json_of_images_alone_is_for_predictions(tmp_path, content):
    assert is_annotated(read_coco(root=write_coco(tmp_path / "with", content), split="train"))
    del content["annotations"]
    source = read_coco(root=write_coco(tmp_path / "without", content), split="train")

    assert not is_annotated(source) and len(source) == 2
    assert len(source[0].boxes) == 0 and source[0].id == content["images"][0]["id"]
    assert source.category_ids is not None


@pytest.mark.parametrize("flag, crowd", [(True, True), ("1", True), (1.0, True), (False, False)])
@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_a_crowd_may_be_said_in_several_ways(tmp_path, content, field, flag, crowd):
    _annotate(**{field: flag})(content)
    source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert source[0].crowd[0] == crowd


def test_what_is_to_be_ignored_is_a_crowd_to_all_that_learns_and_counts(tmp_path, content):
    _annotate(ignore=1)(content)
    content["images"][1] |= {"width": 40, "height": 40}
    content["annotations"].append(_annotation(3, 7, 3, [2, 2, 10, 20], ignore=0))
    source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert [each.crowd.tolist() for each in source] == [[True, True], [False]]
    assert [source.has_object(i) for i in range(2)] == [False, True]


def test_two_categories_of_one_name_are_one_class(tmp_path, content):
    content["categories"].append({"id": 5, "name": "dog"})
    content["annotations"].append(_annotation(9, 900, 5, [1, 2, 9, 9]))
    source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert source.class_names == ("car", "dog") and source.category_ids is None
    assert source[0].labels.tolist() == [1, 0, 1]


def test_an_annotation_that_is_there_twice_is_two_objects(tmp_path, content):
    content["annotations"].append({**content["annotations"][0], "id": 77})
    first = read_coco(root=write_coco(tmp_path, content), split="train")[0]
    np.testing.assert_array_equal(first.boxes[0], first.boxes[2])


def test_too_little_memory_is_said_in_a_line(tmp_path, content, monkeypatch):
    def fail(*_):
        raise MemoryError

    root = write_coco(tmp_path, content)
    monkeypatch.setattr(coco_json, "_decode", fail)
    with pytest.raises(UserError, match="instances_train.json: 0.0 GB, and too little memory"):
        read_coco(root=root, split="train")


def test_annotations_take_the_memory_of_what_they_were_read_from(tmp_path, content):
    count, polygon = 2000, [[float(k) for k in range(60)]]
    item = _annotation(1, 900, 3, [1.5, 2.5, 10.25, 10.5]) | {"segmentation": polygon}
    content["annotations"] = [item] * count
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    tracemalloc.start()
    coco_json.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 345 bytes an annotation beside the file; 560 if both forms are there at once.
    assert peak < path.stat().st_size + 450 * count


def test_one_json_is_one_split_unless_it_annotates_nothing(tmp_path, content):
    root = write_coco(tmp_path, content)
    settings = {"annotations": "annotations/instances_train.json", "images": "train"}
    assert len(read_coco(root=root, split="train", **settings)) == 2
    for images in ("train", "{split}"):
        with pytest.raises(UserError, match="there is no split 'val': data.options has no"):
            read_coco(root=root, split="val", **settings | {"images": images})
    del content["annotations"]
    write_coco(tmp_path, content)
    assert not is_annotated(read_coco(root=root, split="test", **settings))


def test_ids_of_annotations_that_are_there_twice_are_counted(tmp_path, content, caplog):
    content["annotations"] += [
        _annotation(2, 900, 3, [1, 2, 3, 4]),
        _annotation(9, 7, 3, [1, 2, 3, 4]),
    ]
    for each in content["annotations"][-2:]:
        content["annotations"].append({key: each[key] for key in each if key != "id"})
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_coco(root=write_coco(tmp_path, content), split="train")
    assert sum(len(each.labels) for each in source) == 6
    assert "1 of 6 annotations have the id of another one: each is an object" in caplog.text
