import json
import logging

import numpy as np
import pytest
from drawn_data import write_coco

from jaxdet.data import transforms
from jaxdet.data.sources import is_annotated
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
    ]
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_coco(root=write_coco(tmp_path, content), split="train")
    kept = [[5, 5, 15, 5], [5, 5, 5.5, 15], [25, 5, 35, 15], [5, 5, 15, 15], [5, 5, 15, 15]]
    np.testing.assert_array_equal(source[1].boxes, kept)
    assert source[1].area.tolist() == [0, 2.5, 50, 0, 50]
    np.testing.assert_array_equal(transforms.clean(source[1]).boxes, [[5, 5, 15, 15]])
    assert len(caplog.records) == 1
    assert "training leaves out 4 of 7 boxes" in caplog.records[0].message


def test_area_and_crowd_may_be_missing(tmp_path, content):
    for item in content["annotations"]:
        del item["area"], item["iscrowd"]
    example = read_coco(root=write_coco(tmp_path, content), split="train")[0]
    assert example.area.tolist() == [600, 400]
    assert not example.crowd.any()


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


@pytest.mark.parametrize(
    "change, message",
    [
        (_drop("images"), "it has no ['images']"),
        (lambda c: c["annotations"][0].pop("bbox"), "missing or wrong: 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "missing or wrong"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
            "image 900 has a bbox",
        ),
        (lambda c: c["annotations"][0].update(area=None), "image 900 has a bbox or area"),
        (lambda c: c["annotations"][0].update(category_id=5), "annotation 1 has category_id 5"),
        (lambda c: c["annotations"][0].update(image_id=5), "unlisted images, as 5"),
        (lambda c: c["images"][0].pop("height"), "missing or wrong: 'height'"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content, change, message):
    root = write_coco(tmp_path, content)
    change(content)
    path = tmp_path / "annotations/instances_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_coco(root=root, split="train")
    assert str(path) in str(error.value)
    assert message in str(error.value)


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
