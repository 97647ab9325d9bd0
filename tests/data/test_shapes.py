import logging
import os
import pathlib
import time
from itertools import islice

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from jaxdet.data.sources import shapes
from jaxdet.data.sources.pictures import KINDS, _paint, draw_picture
from jaxdet.data.sources.shapes import ShapesSettings, draw_split, read_shapes
from jaxdet.types import UserError

FEW = {"num_train": 6, "num_test": 3}


def test_both_splits_are_drawn_once_and_read_back(shapes_root, monkeypatch):
    train = read_shapes(root=shapes_root, split="train", **FEW)
    monkeypatch.setattr(shapes, "draw_split", None)  # Nothing is drawn a second time.
    test = read_shapes(root=shapes_root, split="test", **FEW)
    assert (len(train), len(test)) == (6, 3)
    assert train.class_names == ("circle", "square", "triangle", "star")
    assert [example.id for example in train] == list(range(6))


def test_what_is_read_back_is_what_was_drawn(shapes_root):
    settings = ShapesSettings(**FEW)
    source = read_shapes(root=shapes_root, split="train", **FEW)
    for example, picture in zip(source, draw_split(settings, "train"), strict=True):
        assert example.size == example.image.shape[:2] == picture.image.shape[:2]
        np.testing.assert_allclose(example.boxes, picture.boxes, atol=1e-4)
        np.testing.assert_array_equal(example.labels, picture.labels)
        difference = np.abs(example.image.astype(float) - picture.image).mean()
        assert difference < 8  # JPEG's.


def test_the_splits_show_other_pictures():
    train, test = (next(draw_split(ShapesSettings(), split)) for split in ("train", "test"))
    assert train.image.shape != test.image.shape or np.any(train.image != test.image)


def test_other_settings_do_not_read_each_others_files(shapes_root):
    first = read_shapes(root=shapes_root, split="test", **FEW)
    for other in ({"seed": 1}, {"max_objects": 1}, {"classes": ("ring", "cross")}):
        second = read_shapes(root=shapes_root, split="test", **FEW, **other)
        assert second[0].image.shape != first[0].image.shape or np.any(
            second[0].image != first[0].image
        )
    assert second.class_names == ("ring", "cross")


def test_an_interrupted_preparation_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    def interrupted(settings, split):
        yield from islice(draw_split(settings, split), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_shapes(root=str(tmp_path), split="train", **FEW)
    assert list(tmp_path.glob("shapes/*")) == []
    # What a killed process leaves behind is not taken for a data set, and goes after a day.
    for name, hours in (("new", 23), ("old", 25)):
        left = tmp_path / "shapes" / f"incomplete.{name}"
        (left / "shapes/1.0.0").mkdir(parents=True)
        os.utime(left, (time.time() - hours * 3600,) * 2)
    assert len(read_shapes(root=str(tmp_path), split="train", **FEW)) == 6
    assert [path.name for path in tmp_path.glob("shapes/incomplete.*")] == ["incomplete.new"]


@pytest.mark.parametrize("shown", [True, False])
def test_drawing_shows_no_progress_bars_and_leaves_others_alone(
    tmp_path, monkeypatch, caplog, shown
):
    before, while_drawing = tqdm_utils._active, []

    def draw_and_look(settings, split):
        while_drawing.append(tqdm_utils._active)
        return draw_split(settings, split)

    monkeypatch.setattr(shapes, "draw_split", draw_and_look)
    tfds.display_progress_bar(shown)
    try:
        with caplog.at_level(logging.INFO, "jaxdet"):
            read_shapes(root=str(tmp_path), split="train", num_train=1, num_test=1)
        assert tqdm_utils._active == shown
    finally:
        tfds.display_progress_bar(before)
    assert while_drawing == [False, False]
    assert [r.message[:21] for r in caplog.records if r.name == "jaxdet"] == [
        "drawing 2 pictures of"
    ]


def test_a_data_set_that_another_process_finished_first_is_taken(tmp_path, monkeypatch):
    rename = pathlib.Path.rename

    def overtaken(self, target):
        if "incomplete." in self.name or self.parent.name != "shapes":
            return rename(self, target)
        rename(self, target)
        raise OSError("directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", overtaken)
        assert len(read_shapes(root=str(tmp_path), split="train", **FEW)) == 6


def test_a_shape_is_painted_wherever_it_covers_a_pixel_and_nowhere_else():
    mask = np.zeros((9, 12), np.float32)
    for part in (np.s_[2:5, 3:7], np.s_[:3, 8:], np.s_[5:, :12]):
        covered = mask.copy()
        covered[part] = 0.9
        covered[part][0, 0] = 0.1  # Its edge.
        canvas = np.full((*mask.shape, 3), 100, np.float32)
        _paint(np.random.default_rng(0), canvas, covered)
        np.testing.assert_array_equal((canvas != 100).any(-1), covered > 0)


def test_boxes_are_tight_around_the_visible_pixels():
    # One shape on a picture without noise: its pixels are those that differ from the background.
    for seed in range(20):
        picture = draw_picture(
            np.random.default_rng(seed),
            size=(80, 100),
            kinds=tuple(KINDS),
            num_objects=1,
            size_range=(20, 60),
        )
        bare = draw_picture(
            np.random.default_rng(seed),
            size=(80, 100),
            kinds=tuple(KINDS),
            num_objects=0,
            size_range=(20, 60),
        )
        smooth = [cv2.GaussianBlur(p.image, (0, 0), 1.5).astype(float) for p in (picture, bare)]
        changed = np.abs(smooth[0] - smooth[1]).max(-1) > 30
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(picture.boxes[0], found, atol=3)


def test_a_terminal_sees_how_many_pictures_are_drawn(tmp_path, monkeypatch):
    bars = []

    class Bar(shapes.tqdm):
        def __init__(self, **settings):
            bars.append(settings)
            super().__init__(**settings | {"disable": True})

        def update(self, n=1):
            bars.append(n)

    monkeypatch.setattr(shapes, "tqdm", Bar)
    read_shapes(root=str(tmp_path), split="train", num_train=3, num_test=2)
    assert bars[0]["total"] == 5 and bars[0]["disable"] is None and bars[1:] == [1] * 5


def test_pictures_keep_to_their_settings():
    settings = ShapesSettings(num_train=60, max_objects=3, size_range=(20, 40), empty_rate=0.3)
    pictures = list(draw_split(settings, "train"))
    sizes = np.array([picture.image.shape[:2] for picture in pictures])
    assert sizes.min(0).tolist() >= [128, 160] and sizes.max(0).tolist() <= [160, 192]
    assert len(np.unique(sizes, axis=0)) > 30
    counts = np.array([len(picture.labels) for picture in pictures])
    assert counts.max() == 3
    assert 8 <= np.sum(counts == 0) <= 28
    boxes = np.concatenate([picture.boxes for picture in pictures])
    limits = np.repeat(sizes[:, ::-1], counts, axis=0)
    assert np.all(boxes >= 0) and np.all(boxes[:, 2:] <= limits)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.max() <= 40 * np.exp(0.2) + 2
    assert sides.min() >= 20 * np.exp(-0.2) / 4
    assert len(set(np.concatenate([picture.labels for picture in pictures]))) == 4


def test_pictures_without_objects_are_all_empty_at_rate_one():
    settings = ShapesSettings(num_train=5, empty_rate=1.0)
    for picture in draw_split(settings, "train"):
        assert picture.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "classes, settings, message",
    [
        (("circle", "blob"), {}, "no shape 'blob' in data.classes; there are circle, square"),
        ((), {"num_test": 0}, "data.num_test wants at least 1, found 0"),
        ((), {"size_range": (40, 20)}, "data.size_range wants 8 <= low <= high, found (40, 20)"),
        ((), {"size_range": (12,)}, "data.size_range wants 8 <= low <= high, found (12,)"),
        ((), {"height_range": 64}, "data.height_range wants 8 <= low <= high, found 64"),
        ((), {"empty_rate": 2.0}, "data.empty_rate"),
        ((), {"colour": 1}, "no option 'colour'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, classes, settings, message):
    with pytest.raises(UserError) as error:
        read_shapes(root=str(tmp_path), split="train", classes=classes, **settings)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_split_lists_the_known_ones(shapes_root):
    with pytest.raises(UserError, match="no split 'val'; it has .*train"):
        read_shapes(root=shapes_root, split="val", **FEW)
