import logging
import os

import numpy as np
import pytest
from drawn_data import draw, encode, with_exif_orientation

from jaxdet.data import transforms
from jaxdet.data.sources import is_annotated, yaml_text
from jaxdet.data.sources.yolo import read_yolo
from jaxdet.types import UserError

YAML = "train: images/train\nval: [images/train]\nnames: [cat, dog]\nnc: 2\n"


@pytest.fixture
def root(tmp_path):
    """A picture of 40 x 60 with two cats and a dog's polygon, and one without objects."""
    (tmp_path / "images/train/sub").mkdir(parents=True)
    (tmp_path / "labels/train/sub").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text(YAML)
    (tmp_path / "images/train/a.jpg").write_bytes(encode(draw((40, 60), [])))
    (tmp_path / "images/train/sub/b.png").write_bytes(encode(draw((30, 20), []), ".png"))
    (tmp_path / "labels/train/a.txt").write_text(
        "0 0.5 0.5 0.5 0.25\n\n1.0 0.1 0.2 0.5 0.2 0.5 0.75\n0 0.5 0.5 0.5 0.25\n"
    )
    return tmp_path


def test_boxes_are_parts_of_the_picture_and_polygons_become_boxes(root, caplog):
    source = read_yolo(root=str(root), split="train")
    first, second = source
    np.testing.assert_allclose(first.boxes, [[15, 15, 45, 25], [6, 8, 30, 30]], rtol=1e-7)
    assert first.labels.tolist() == [0, 1]
    np.testing.assert_allclose(first.area, [300, 528], rtol=1e-6)
    assert (first.id, first.size) == ("images/train/a", (40, 60))
    assert first.image == (root / "images/train/a.jpg").read_bytes()
    assert (second.id, second.size, second.boxes.shape) == (
        "images/train/sub/b",
        (30, 20),
        (0, 4),
    )
    assert (source.class_names, source.category_ids) == (("cat", "dog"), (0, 1))
    assert is_annotated(source)
    assert "1 lines say what another one of their file said" in caplog.text


def test_labels_follow_the_names_in_the_order_that_is_asked_for(root):
    source = read_yolo(root=str(root), split="val", classes=("emu", "dog", "cat"))
    assert source[0].labels.tolist() == [2, 1]
    assert source.category_ids is None  # The data has no number for an emu.
    (root / "labels/train/sub/b.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(UserError) as error:
        read_yolo(root=str(root), split="train", classes=("emu",))
    assert [line.removeprefix(f"{root}/labels/train/") for line in error.value.lines] == [
        f"{name}.txt: unknown class '{known}'; data.classes has 'emu'"
        for name, known in (("a", "cat"), ("a", "dog"), ("sub/b", "cat"))
    ]


def test_boxes_are_those_of_the_picture_as_viewers_show_it(root):
    path = root / "images/train/a.jpg"
    path.write_bytes(with_exif_orientation(path.read_bytes(), 6))
    example = read_yolo(root=str(root), split="train")[0]
    assert example.size == (60, 40)
    np.testing.assert_allclose(example.boxes[0], [10, 22.5, 30, 37.5])
    assert transforms.decode(example).image.shape == (60, 40, 3)


def test_pictures_without_a_single_label_file_are_not_annotated(root):
    (root / "labels/train/a.txt").unlink()
    assert not is_annotated(read_yolo(root=str(root), split="train"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("2 .5 .5 .1 .1", "class wants a whole number below 2, found 2"),
        ("-1 .5 .5 .1 .1", "class wants a whole number below 2, found -1"),
        ("0.5 .5 .5 .1 .1", "class wants a whole number below 2, found 0.5"),
        ("cat .5 .5 .1 .1", "wants finite numbers, found 'cat'"),
        ("0 .5 nan .1 .1", "wants finite numbers, found 'nan'"),
        ("0 .5 .5 1e999 .1", "wants finite numbers, found '1e999'"),
        ("0 .5 .5 .1 0_1", "wants finite numbers, found '0_1'"),
        ("0 .5 .5 .1", "found 3 numbers"),
        ("0 .5 .5 .1 .1 .9", "found 5 numbers; is the last one a score?"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "found 7 numbers"),
        ("0 .5 .5 .2 .2 .9 1", "class, the last 1: a box, its score and its track, or a triangle?"),
        ("0 .5 .5 .2 .2 .9 17", "the last 17: a box, its score and its track, or a triangle?"),
        ("0", "found 0 numbers"),
        ("0 30 .5 .1 .1", "wants parts of the image's sides, from 0 to 1, found 30"),
        ("0 .5 .5 .1 -.1", "wants parts of the image's sides, from 0 to 1, found -.1"),
    ],
)
def test_a_line_that_is_no_object_is_named(root, line, message):
    path = root / "labels/train/a.txt"
    path.write_text(f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(UserError) as error:
        read_yolo(root=str(root), split="train")
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_all_lines_that_are_no_objects_are_known_at_once(root):
    for name in ("a", "sub/b"):
        (root / f"labels/train/{name}.txt").write_text("0 .5 .5 .1 .1\n0\n1\n")
    with pytest.raises(UserError, match="and 3 more mistakes") as error:
        read_yolo(root=str(root), split="train")
    places = [line.removeprefix(f"{root}/labels/train/")[:10] for line in error.value.lines]
    assert [place.partition(": ")[0] for place in places] == [
        *("a.txt:2", "a.txt:3", "sub/b.txt:2"[:10], "sub/b.txt:3"[:10])
    ]


def test_of_a_thousand_mistakes_it_is_said_that_there_may_be_more(root):
    (root / "labels/train/a.txt").write_text("0\n" * 1500)
    with pytest.raises(UserError, match=r"\(and 999 others or more: see `jaxdet check`\)") as error:
        read_yolo(root=str(root), split="train")
    assert len(error.value.lines) == 1000


def test_coordinates_that_rounding_moved_over_an_edge_are_accepted(root):
    (root / "labels/train/a.txt").write_text("0 1.005 .5 .5 -.004\n")
    assert len(read_yolo(root=str(root), split="train")[0].labels) == 1


@pytest.mark.parametrize("line", ["0 .5 .5 .2 .2 .9 1.0", "0 .1 .5 .4 .2 .9 1"])
def test_a_triangle_that_is_no_box_with_its_track_is_read(root, line):
    (root / "labels/train/a.txt").write_text(line)
    _, _, x2, y2 = read_yolo(root=str(root), split="train")[0].boxes[0]
    np.testing.assert_allclose((x2, y2), (0.9 * 60, 40), rtol=1e-6)


def test_of_lines_with_key_points_the_box_is_read(root):
    (root / "data.yaml").write_text(YAML + "kpt_shape: [2, 3]\n")
    path = root / "labels/train/a.txt"
    path.write_text("1 .5 .5 .5 .5 .1 .1 2 .2 .2 0\n")
    example = read_yolo(root=str(root), split="train")[0]
    np.testing.assert_array_equal(example.boxes, [[15, 10, 45, 30]])
    path.write_text("1 .5 .5 .5 .5\n")
    with pytest.raises(UserError, match="the 6 numbers of kpt_shape behind the class, found 4"):
        read_yolo(root=str(root), split="train")


@pytest.mark.parametrize(
    "content, message",
    [
        ("names: [cat]", "no split 'train'; it has none"),
        ("train:\nval: images/train\nnames: [cat]", "no split 'train'; it has val"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3", "says '3' classes, and names 2"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "names wants the numbers 0 to 1"),
        ("train: images/train\nnames: []", "names wants a list of classes, found []"),
        ("train: images/train\nnames: [[cat]]", "names wants text, found ['cat']"),
        ('train: images/train\nnames: ["a\\ud800"]', r"names wants text, found 'a\ud800'"),
        ("train: images/train\nnames: cat", "names wants a list of classes, found 'cat'"),
        ("train: images/none\nnames: [cat]", "train wants a place in"),
        ("train: ../../pictures\nnames: [cat]", "train wants a place in"),
        ("train: /etc\nnames: [cat]", "train wants a place in"),
        ("train: [[images/train], images]\nnames: [cat, dog]", "wants places, found ['images/t"),
        ("train: {a: images/train}\nnames: [cat, dog]", "train wants places, found {'a': 'images"),
        ("train: [", "data.yaml:1: not YAML"),
        ('names: ["\\U00110000"]', "data.yaml: not YAML: an escape names no letter"),
        ('names: ["\\UFFFFFFFF"]', "data.yaml: not YAML: an escape names no letter"),
        ("- a", "wanted keys such as train, val and names; found ['a']"),
        ("train: a\ntrain: b", "data.yaml:2: not YAML: a key is said twice"),
        ("a: &a [x]\nb: *a", "data.yaml:2: not YAML: an alias is not read here"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("? [a]\n: b", "no plain key"),
        ("run: !!python/object/apply:os.getcwd []", "!!python/object/apply:os.getcwd is not read"),
    ],
)
def test_a_data_yaml_that_says_something_else_is_refused(root, content, message):
    (root / "data.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_yolo(root=str(root), split="train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_picture_that_is_listed_twice_is_taken_once(root, caplog):
    (root / "data.yaml").write_text("train: [images/train, a.txt]\nnames: [cat, dog]")
    (root / "a.txt").write_text("./images/train/a.jpg\nimages/train/a.jpg\n")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_yolo(root=str(root), split="train")
    assert source.ids() == ["images/train/a", "images/train/sub/b"]
    assert "2 of 4 names are listed more than once, such as 'images/train/a.jpg'" in caplog.text


def test_two_pictures_of_one_label_file_are_refused(root):
    (root / "images/train/a.png").write_bytes(encode(draw((40, 60), []), ".png"))
    with pytest.raises(UserError, match=r"a.jpg and .*a.png have one id, images/train/a$"):
        read_yolo(root=str(root), split="train")


def test_names_are_text_as_written(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("names: [no, on, 1e3, 007, ~, '2']\n")
    assert yaml_text.read_mapping(path) == {"names": ["no", "on", "1e3", "007", "~", "2"]}


def test_a_yaml_of_many_megabytes_is_not_read(tmp_path):
    path = tmp_path / "data.yaml"
    with open(path, "wb") as file:
        file.truncate(yaml_text.MAX_BYTES + 1)
    with pytest.raises(UserError, match="a file above 4 MiB"):
        yaml_text.read_mapping(path)


@pytest.mark.parametrize(
    "line", ["./images/train/a.jpg", "images/train/a.jpg", "images\\train\\a.jpg", "{root}/{line}"]
)
def test_a_list_of_pictures_may_have_paths_of_many_kinds(root, line):
    line = line.format(root=root, line="images/train/a.jpg")
    (root / "train.txt").write_text(f"{line}\r\n")
    (root / "data.yaml").write_text("path: /elsewhere\ntrain: train.txt\nnames: {0: cat, 1: dog}")
    source = read_yolo(root=str(root), split="train")
    assert source.ids() == ["images/train/a"] and len(source[0].labels) == 2


def test_a_folder_that_was_moved_is_found_by_the_end_of_its_path(root):
    (root / "data.yaml").write_text("train: /content/set/images/train\nnames: [cat, dog]")
    assert len(read_yolo(root=str(root), split="train")) == 2


@pytest.mark.parametrize("line", ["../secret.jpg", "images/train/c.jpg", "images/train"])
def test_a_list_that_names_what_is_not_there_is_refused(root, line):
    (root.parent / "secret.jpg").write_bytes(encode(draw((40, 60), [])))
    (root / "train.txt").write_text(f"images/train/a.jpg\n{line}\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]")
    with pytest.raises(UserError):
        read_yolo(root=str(root), split="train")


def test_folders_of_pictures_called_images_do_not_stand_for_one_another(root):
    """valid/images is not there: images/ at the top would be what is learnt."""
    (root / "data.yaml").write_text("train: images\nval: ../valid/images\nnames: [cat, dog]")
    assert len(read_yolo(root=str(root), split="train")) == 2
    with pytest.raises(UserError, match="val wants a place in"):
        read_yolo(root=str(root), split="val")


def test_without_a_yaml_it_says_what_it_looked_for(root):
    (root / "data.yaml").rename(root / "one.yaml")
    assert len(read_yolo(root=str(root), split="train")) == 2
    (root / "two.yml").write_text(YAML)
    with pytest.raises(UserError, match="name one of one.yaml, two.yml in data.options.file"):
        read_yolo(root=str(root), split="train")
    assert len(read_yolo(root=str(root), split="train", file="two.yml")) == 2
    for name in ("one.yaml", "two.yml"):
        (root / name).unlink()
    with pytest.raises(UserError, match="wants data.yaml, obj.data or classes.txt; there is none"):
        read_yolo(root=str(root), split="train")


def test_the_list_of_names_of_label_studio_is_read(root):
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")
    assert len(read_yolo(root=str(root), split="train")) == 2
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        read_yolo(root=str(root), split="val")


def test_no_file_is_asked_for_by_itself(root, monkeypatch):
    """Of 118,000 pictures each would cost a look at the disk: folders are listed."""
    asked = []

    def count(name):
        real = getattr(os, name)
        return lambda *args, **kwargs: asked.append(name) or real(*args, **kwargs)

    def calls():
        asked.clear()
        read_yolo(root=str(root), split="train")
        return sorted(asked)

    for name in ("stat", "lstat", "scandir", "listdir", "readlink"):
        monkeypatch.setattr(os, name, count(name))
    few = calls()
    for number in range(18):
        for folder, ending in (("images", "jpg"), ("labels", "txt")):
            path = root / folder / "train" / f"c{number}.{ending}"
            path.write_bytes((root / folder / f"train/a.{ending}").read_bytes())
    assert calls() == few and few.count("scandir") > 1


def test_label_files_without_a_picture_are_counted(root, caplog):
    for name in ("train/gone.txt", "train/classes.txt", "train/z.txt", "train/sub/b.TXT"):
        (root / "labels" / name).write_text("0 .5 .5 .1 .1")
    (root / "images/train/z.heic").touch()
    (root / "data.yaml").write_text("train: a.txt\nnames: [cat, dog]")
    (root / "a.txt").write_text("images/train/sub/b.png\nimages/train/a.jpg\n")
    (root / "images/train/other.jpg").touch()  # Of another split.
    (root / "labels/train/other.txt").touch()
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_yolo(root=str(root), split="train")
    assert source.ids() == ["images/train/sub/b", "images/train/a"]
    assert "3 of 5 label files belong to no picture that is read, such as" in caplog.text


def test_lists_beside_pictures_are_no_label_files(root, caplog):
    (root / "a.jpg").write_bytes((root / "images/train/a.jpg").read_bytes())
    (root / "a.txt").write_text("0 .5 .5 .1 .1")
    (root / "train.txt").write_text("a.jpg\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        assert len(read_yolo(root=str(root), split="train")[0].labels) == 1
    assert not caplog.records


def test_pictures_that_cannot_be_read_are_counted(root, caplog):
    (root / "images/train/a.jpg").write_text("cats")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        source = read_yolo(root=str(root), split="train")
    assert "1 of 2 pictures cannot be read, such as" in caplog.text
    assert "training leaves out" not in caplog.text  # It has no boxes to leave out.
    assert (source[0].size, len(source[0].labels)) == ((0, 0), 2)
