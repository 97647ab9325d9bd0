import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from drawn_data import draw, encode, with_exif_orientation

from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.sources.tfds import TfdsSource, read_tfds
from jaxdet.types import UserError


class Cells(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Four images: two objects, a crowd, a difficult one, and a damaged file without objects."""

    VERSION = tfds.core.Version("1.0.0")
    names = ("red", "white")

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self.names),
            "is_crowd": np.bool_,
            "is_difficult": np.bool_,
            "area": np.int64,
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        def objects(*flags):
            box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0)
            return [
                {"bbox": box, "label": label, "is_crowd": c, "is_difficult": d, "area": 7 + label}
                for label, c, d in flags
            ]

        jpeg = encode(draw((40, 60), [[30, 10, 60, 30]]))
        empty = tfds.features.BBox(ymin=0.5, xmin=0.5, ymax=0.5, xmax=0.9)
        for key, (image, found) in enumerate(
            [
                (jpeg, objects((1, False, False), (0, False, False))),
                (with_exif_orientation(jpeg, 6), objects((0, True, False))),
                (jpeg, objects((1, False, True))),
                (jpeg[:99], []),
                (jpeg, [objects((1, False, False))[0] | {"bbox": empty}]),
            ]
        ):
            record = {"image": io.BytesIO(image), "image/filename": f"{key}.jpg", "objects": found}
            yield key, record


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Cells(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_records_become_examples(prepared):
    source = read_tfds(root=str(prepared / "cells/1.0.0"), split="train")
    assert source.class_names == ("red", "white")
    assert len(source) == 5
    example = source[0]
    np.testing.assert_allclose(example.boxes, [[30, 10, 60, 30]] * 2)
    assert example.labels.tolist() == [1, 0]
    assert example.area.tolist() == [8, 7]
    assert (example.id, example.size) == ("0.jpg", (40, 60))
    # The red rectangle lies where the box says.
    assert example.image[20, 45].tolist() == pytest.approx([255, 0, 0], abs=12)
    assert source[1].crowd.tolist() == [True]
    assert source[2].difficult.tolist() == [True]
    np.testing.assert_allclose(source[4].boxes, [[30, 20, 54, 20]])  # Kept for evaluation.


@pytest.mark.parametrize(
    "split, names",
    [
        ("train[:80%]", "0123"),
        ("train[80%:]", "4"),
        ("train[-2:]", "34"),
        ("train[:2]+train[4:]", "014"),
    ],
)
def test_parts_of_splits_are_splits(prepared, split, names):
    source = read_tfds(root=str(prepared), split=split)
    assert source.ids() == [f"{name}.jpg" for name in names]


def test_whole_pixels_come_back_from_fractions_in_single_precision():
    """127 / 640 in float32 times 640 is 127.000008 in float32, and not 127."""
    corners = np.arange(641)
    objects = {"bbox": np.float32(np.stack([corners / 640] * 4, axis=1)), "label": [0] * 641}
    record = {"image": encode(draw((640, 640), []), ".png"), "objects": objects}
    boxes = TfdsSource([record], names=["red"], classes=())[0].boxes
    assert boxes.tolist() == [[x] * 4 for x in corners]
    objects.update(bbox=np.float32([[0.1, 0.2, 0.3003, 0.4007]]), label=[0])
    (box,) = TfdsSource([record], names=["red"], classes=())[0].boxes.tolist()
    np.testing.assert_allclose(box, [128, 64, 256.448, 192.192], rtol=1e-6)


def test_labels_of_coco_have_the_numbers_of_its_files(tmp_path):
    class Coco(Cells, skip_registration=True):
        name = "coco"
        names = [f"class {k}" for k in range(80)]

        def _generate_examples(self):
            yield 0, next(super()._generate_examples())[1] | {"objects": []}

    Coco(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = read_tfds(
        root=str(tmp_path), split="train", classes=("class 79", "class 0", "class 11")
    )
    assert source.category_ids == (90, 1, 13)
    assert read_tfds(root=str(tmp_path), split="train").category_ids[-2:] == (89, 90)


def test_images_are_not_rotated_as_tfds_did_not(prepared):
    example = read_tfds(root=str(prepared), split="train")[1]
    assert example.image.shape == (40, 60, 3)
    assert example.image[20, 45].tolist() == pytest.approx([255, 0, 0], abs=12)


def test_a_damaged_image_raises_its_own_error(prepared):
    with pytest.raises(UnreadableImage, match="3.jpg"):
        read_tfds(root=str(prepared), split="train")[3]


def test_has_object_decodes_no_image_that_shows_a_large_object(prepared, monkeypatch):
    monkeypatch.setattr("jaxdet.data.decoding.decode_bytes", None)
    source = read_tfds(root=str(prepared), split="train[:4]")
    assert [source.has_object(i) for i in range(4)] == [True, False, False, False]


@pytest.mark.parametrize("width, found", [(1.2, True), (0.8, False)])
def test_has_object_measures_small_objects_in_pixels(width, found):
    objects = {"bbox": [[0.25, 0.5, 0.75, 0.5 + width / 60]], "label": [0]}
    record = {"image": encode(draw((40, 60), [])), "objects": objects}
    source = TfdsSource([record], names=["red"], classes=())
    assert source.has_object(0) == found
    damaged = TfdsSource([record | {"image": b""}], names=["red"], classes=())
    assert not damaged.has_object(0)


def test_objects_that_training_cannot_use_do_not_count(prepared):
    source = read_tfds(root=str(prepared), split="train")
    assert [source.has_object(i) for i in range(5)] == [True, False, False, False, False]
    assert source.has_object(2, use_difficult=True)


def test_classes_select_and_order(prepared):
    both = read_tfds(root=str(prepared), split="train", classes=("white", "red"))
    assert both[0].labels.tolist() == [0, 1]
    white = read_tfds(root=str(prepared), split="train[2:]", classes=("white",))
    assert white.class_names == ("white",), "a class that labels nothing may be missing"
    assert (white[0].labels.tolist(), white[0].area.tolist()) == ([0], [8])


def test_objects_of_a_class_that_is_not_named_are_refused(prepared):
    message = r"cells.1\.0\.0 \(train\): unknown class 'red'; data.classes has 'white'$"
    with pytest.raises(UserError, match=message):
        read_tfds(root=str(prepared), split="train", classes=("white",))


class Voc(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One image, its corners divided by its sides as TFDS's own "voc" does it."""

    name = "voc"
    VERSION = tfds.core.Version("5.0.0")

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["cat"]),
        }
        features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        # VOC's (1, 11, 30, 20) covers columns 0 to 29 and rows 10 to 19, counted from 0.
        box = tfds.features.BBox(ymin=11 / 40, xmin=1 / 60, ymax=20 / 40, xmax=30 / 60)
        image = io.BytesIO(encode(draw((40, 60), []), ".png"))
        yield 0, {"image": image, "objects": [{"bbox": box, "label": 0}]}


def test_vocs_pixels_are_counted_from_zero(tmp_path):
    Voc(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    example = read_tfds(root=str(tmp_path), split="train")[0]
    np.testing.assert_allclose(example.boxes, [[0, 10, 30, 20]], atol=1e-4)
    assert example.area.tolist() == pytest.approx([300], rel=1e-4)


def test_a_folder_above_will_do_if_it_is_the_only_one(prepared, tmp_path):
    for root in (prepared, prepared / "cells"):
        assert len(read_tfds(root=str(root), split="train[:2]")) == 2
    for name in ("1.0.0", "2.0.0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="want one prepared .* found .*1.0.0, .*2.0.0"):
        read_tfds(root=str(tmp_path), split="train")


def test_mistakes_are_named(prepared, tmp_path):
    with pytest.raises(UserError, match="no class 'blue'; it has red, white"):
        read_tfds(root=str(prepared), split="train", classes=("red", "blue"))
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        read_tfds(root=str(prepared), split="test")
    with pytest.raises(UserError, match="found none"):
        read_tfds(root=str(tmp_path), split="train")


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set without boxes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": io.BytesIO(encode(draw((8, 8), []), ".png")), "label": 3}


def test_a_data_set_without_boxes_is_refused(tmp_path):
    Digits(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="not a detection data set; .* has image, label"):
        read_tfds(root=str(tmp_path), split="train")


def test_files_that_need_tensorflow_are_refused_with_the_remedy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "cells/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="tfrecord; prepare it again with file_format='array_r"):
        read_tfds(root=str(tmp_path), split="train")
