"""One data set in the layouts of many programs gives the same batches, bit for bit."""

import contextlib
import io
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from drawn_data import draw, encode, write_voc
from layouts import LAYOUTS, SPLITS, write_all
from ml_collections import ConfigDict

from jaxdet.commands import splits as data_splits
from jaxdet.data import pipeline
from jaxdet.data.sources import build
from jaxdet.data.sources.recognise import as_config, recognise
from jaxdet.data.sources.voc import read_voc
from jaxdet.evaluation import ImageDetections, coco, voc
from jaxdet.types import UserError

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """{split: source} of VOC, and the same in all layouts."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for split, count in zip(SPLITS, (9, 5), strict=True):
        images = {}
        for number in range(count):
            height, width = rng.integers(40, 130, 2).tolist()
            boxes = []
            for _ in range(number % 4):  # One in four has no object.
                x, y = rng.integers(1, width - 8), rng.integers(1, height - 8)
                x2, y2 = rng.integers(x + 7, width + 1), rng.integers(y + 7, height + 1)
                boxes.append((CLASSES[rng.integers(3)], (x, y, x2, y2)))
            images[f"{split}_{number}"] = ((height, width), boxes)
        write_voc(root / "voc", images, split=split)
    return write_layouts(root / "voc", root, SPLITS, CLASSES)


def write_layouts(voc_root, root, splits, classes):
    sources = {
        name: read_voc(root=str(voc_root), split=split, classes=classes)
        for name, split in zip(SPLITS, splits, strict=True)
    }
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        return sources, write_all(sources, root)


def open_layout(written, name, split, classes):
    source, root, options = written[name]
    root = f"{root}/{split}" if source == "tfds" else root
    return build(source, root=root, split=split, classes=classes, **options)


def batches(source, count):
    settings = {"canvas": (64, 96), "resize": (64, 96), "max_boxes": 40, "horizontal_flip": 0.5}
    loader = pipeline.train_batches(source, batch_size=4, seed=0, num_threads=2, **settings)
    with contextlib.closing(loader):
        return list(itertools.islice(loader, count))


def observe(source, detections):
    """All that a training and an evaluation see: examples, batches, the scores of detections."""
    examples, fields = list(source), ("size", "boxes", "labels", "crowd", "area")
    seen = [[np.asarray(getattr(each, f)).tolist() for f in fields] for each in examples]
    arrays = [leaf for batch in batches(source, len(source) // 4) for leaf in flat(batch)]
    fed = [(array.dtype, array.shape, array.tobytes()) for array in arrays]
    names = source.class_names
    scores = [each.evaluate(examples, detections, names) for each in (coco, voc)]
    return {"names": names, "seen": seen, "fed": fed, "scores": scores}


def check_same(reference, sources):
    """Examples, batches and the scores of made-up detections are those of the reference."""
    detections = made_up(list(reference), len(reference.class_names))
    wanted = observe(reference, detections)
    for source in sources:
        found = observe(source, detections)
        for key, value in wanted.items():
            assert found[key] == value, key


def flat(batch):
    images = batch.images
    return (*images[:3], batch.boxes, batch.labels, batch.valid, batch.crowd, batch.index)


def made_up(examples, num_classes):
    """Detections near the objects, some with another label, and one that is nowhere."""
    rng, found = np.random.default_rng(1), []
    for example in examples:
        boxes = example.boxes + rng.normal(0, 2, example.boxes.shape)
        boxes = np.concatenate([boxes, [[1, 1, 9, 9]]]).astype(np.float32)
        labels = np.append(example.labels, 0)
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, rng.integers(0, num_classes, len(labels)), labels)
        scores = np.sort(rng.random(len(labels)))[::-1].astype(np.float32)
        found.append(ImageDetections(boxes, scores, labels.astype(np.int32)))
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_gives_the_same_batches_and_scores_in_every_layout(drawn, name, split):
    sources, written = drawn
    check_same(sources[split], [open_layout(written, name, split, CLASSES)])


def test_the_photographs_of_blood_give_the_same_batches_and_scores_in_every_layout(bccd, tmp_path):
    classes = ("RBC", "WBC", "Platelets")
    sources, written = write_layouts(bccd, tmp_path, ("trainval", "test"), classes)
    assert sum(map(len, sources.values())) == 364
    for split, source in sources.items():
        check_same(source, (open_layout(written, name, split, classes) for name in LAYOUTS))


@pytest.mark.parametrize("name", ["voc", *LAYOUTS])
def test_the_layout_of_a_folder_is_recognised(drawn, name):
    sources, written = drawn
    root = pathlib.Path(written["coco"][1]).parent / name
    if name == "tfds":
        root /= "train"
    found = recognise(root)
    settings = dict(found.settings)
    assert found.format == settings["source"] == ("voc" if name == "voc" else LAYOUTS[name][0])
    place = settings["root"] if name == "tfds" else str(root)
    assert settings["root"] == place
    split = "val" if settings["source"] == "yolo" and name != "cvat_yolo" else "valid"
    if name == "tfds":
        assert settings["val_fraction"] == 0.2
    else:
        assert settings["eval_split"] == split and "val_fraction" not in settings
    for part, key in zip(SPLITS, ("train_split", "eval_split"), strict=True):
        if name == "tfds" and part != "train":
            continue
        source = build(
            found.format,
            root=place,
            split=settings[key],
            classes=CLASSES,
            **settings["options"],
        )
        assert len(source) == len(sources[part])


def open_as_printed(found):
    """The sources of both splits, by what is printed of a folder as by a config of it."""
    rest = {"val_fraction": 0.0, "val_every": 0, "val_list": "", "proposals": ""}
    rest |= {"more_canvases": ()}
    config = ConfigDict({"data": rest})
    exec(as_config(found), {"config": config, "ConfigDict": ConfigDict})
    names = config.data.train_split, config.data.eval_split
    return [data_splits.open_source(config, name, ()) for name in names]


NAMES = "abcdefgh"  # Of some of them the hash is below .2, as file names and as numbers.
COCO = json.dumps(
    {
        "images": [{"id": i + 1, "file_name": f"{name}.jpg"} for i, name in enumerate(NAMES)],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
)
CSV = "image,x1,y1,x2,y2,class\n" + "".join(f"{name}.jpg,1,1,9,9,cat\n" for name in NAMES)
LIST = "\n".join(NAMES)
YAML = "train: ../train/images\nval: ../valid/images\nnames: [cat]\n"


@pytest.mark.parametrize(
    "files, splits, options",
    [
        ({"val.json": COCO}, ("val", "held_out"), {"annotations": "{split}.json", "images": ""}),
        ({"all.json": COCO}, ("train", "val"), {"annotations": "all.json", "images": ""}),
        ({"result.json": COCO}, ("train", "val"), {"annotations": "result.json", "images": ""}),
        ({"val.csv": CSV}, ("val", "held_out"), {}),
        ({"boxes.csv": CSV}, ("train", "val"), {"annotations": "boxes.csv"}),
        (
            {"test.json": COCO, "train.json": COCO, "val.json": COCO},
            ("train", "val"),
            {"annotations": "{split}.json", "images": ""},
        ),
        (
            {f"annotations/{name}.json": COCO for name in ("test", "train", "val")},
            ("train", "val"),
            {"annotations": "annotations/{split}.json", "images": ""},
        ),
        (
            {"annotations/inst[1]_train.json": COCO},
            ("train", "val"),
            {"annotations": "annotations/inst[1]_{split}.json", "images": ""},
        ),
        (
            {"test_labels.csv": CSV, "train_labels.csv": CSV},
            ("train", "test"),
            {"annotations": "{split}_labels.csv"},
        ),
        (
            {f"ImageSets/Main/{name}.txt": LIST for name in ("pretrain", "train", "val")},
            ("train", "val"),
            {},
        ),
        (
            {f"ImageSets/Main/{name}.txt": LIST for name in ("my_val", "my_train")},
            ("my_train", "my_val"),
            {},
        ),
        ({"ImageSets/Main/val.txt": LIST}, ("val", "held_out"), {}),
        ({"data.yaml": YAML}, ("train", "val"), {}),
        (
            {"obj.data": "train = train.txt\n", "settings.yaml": "a: 1", "obj.names": "cat\n"},
            ("train", "val"),
            {"file": "obj.data"},
        ),
    ],
)
def test_a_folder_can_be_opened_as_it_is_printed(tmp_path, files, splits, options):
    """All splits have all pictures; of one alone those by their hash are held out."""
    picture = encode(draw((40, 60), []))
    places = {"ImageSets": "JPEGImages", "data.yaml": "train/images", "obj.data": "train"}
    place = next((p for word, p in places.items() if any(word in name for name in files)), "")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (tmp_path / place / f"{name}.jpg").write_bytes(picture)
        if place == "JPEGImages":
            (tmp_path / "Annotations").mkdir(exist_ok=True)
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
        elif place:
            labels = tmp_path / place.replace("images", "labels")
            labels.mkdir(exist_ok=True)
            (labels / f"{name}.txt").write_text("0 .5 .5 .2 .2\n")
    if "obj.data" in files:
        (tmp_path / "train.txt").write_text("".join(f"train/{name}.jpg\n" for name in NAMES))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = recognise(tmp_path)
    assert (found.settings["train_split"], found.settings["eval_split"]) == splits
    assert found.settings["options"] == options
    learnt, evaluated = open_as_printed(found)
    held_out = "val_fraction" in found.settings
    assert len(learnt) + len(evaluated) == 8 if held_out else len(learnt) == len(evaluated) == 8


@pytest.mark.parametrize(
    "tables, folders, prefix, images",
    [
        (["labels.csv"], ["images"], "", "images"),
        (["labels.csv"], ["images"], "images/", None),
        (["test.csv", "train.csv"], ["images"], "images\\", None),
        (["labels.csv"], ["images"], "none/", None),  # What is missing is said when it is read.
        (["train_labels.csv"], ["images"], "", "images"),
        (["test.csv", "train.csv"], ["test", "train"], "", "{split}"),
        (["test.csv", "train.csv"], ["images/test", "images/train"], "", "images/{split}"),
        (["annotations/train.csv"], ["train/images"], "", "{split}/images"),
    ],
)
@pytest.mark.parametrize("head", ["image,x1,y1,x2,y2,class\n", ""])
def test_the_pictures_of_a_table_are_found(tmp_path, head, tables, folders, prefix, images):
    for name in tables:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = "".join(f"{prefix}{image}.jpg,1,1,9,9,cat\n" for image in NAMES)
        (tmp_path / name).write_text(head + rows)
    write_pictures(tmp_path, folders)
    found = recognise(tmp_path)
    assert found.settings["options"].get("images") == images
    if prefix == "none/":
        return
    assert sum(map(len, open_as_printed(found))) == 8 * len(tables)


def write_pictures(root, folders):
    picture = encode(draw((40, 60), []))
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for image in NAMES:
            (root / name / f"{image}.jpg").write_bytes(picture)


@pytest.mark.parametrize(
    "xmls, pictures, settings",
    [
        (["annotations"], ["images"], ("train", "val", "annotations", "images")),
        (["xml"], ["JPEGImages"], ("train", "val", "xml", "JPEGImages")),
        (["xml"], ["."], ("train", "val", "xml", "")),
        (["."], ["."], ("train", "val", ".", ".")),
        (["."], ["images"], ("train", "val", ".", "images")),
        (
            ["train/annotations", "val/annotations"],
            ["train/images", "val/images"],
            ("train", "val", "{split}/annotations", "{split}/images"),
        ),
        (
            ["train/annotations", "valid/annotations"],
            ["train", "valid"],
            ("train", "valid", "{split}/annotations", "{split}"),
        ),
        (
            ["Annotations/train"],
            ["JPEGImages/train"],
            ("train", "val", "Annotations/{split}", "JPEGImages/{split}"),
        ),
        (
            ["Annotations/test", "Annotations/train"],
            ["images"],
            ("train", "test", "Annotations/{split}", "images"),
        ),
        (
            ["data/test", "data/train"],
            ["data/test", "data/train"],
            ("train", "test", "data/{split}", "data/{split}"),
        ),
    ],
)
def test_the_pictures_of_xml_files_are_found(tmp_path, xmls, pictures, settings):
    write_pictures(tmp_path, pictures)
    for name in xmls:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for image in NAMES:
            (tmp_path / name / f"{image}.xml").write_text("<annotation>\n</annotation>")
    found = recognise(tmp_path)
    keys, said = ("annotation_folder", "image_folder"), found.settings
    splits = said["train_split"], said["eval_split"]
    assert (*splits, *(said["options"][key] for key in keys)) == settings
    assert sum(map(len, open_as_printed(found))) == 8 * len(xmls)


def test_a_table_without_a_row_is_one_whose_pictures_are_not_looked_for(tmp_path):
    (tmp_path / "train.csv").write_text("image,x1,y1,x2,y2,class\n")
    (tmp_path / "images").mkdir()
    assert recognise(tmp_path).settings["options"] == {}


def test_tables_that_do_not_say_their_split_are_listed(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(CSV)
    with pytest.raises(UserError, match="no telling which split is in which of a.csv, b.csv"):
        recognise(tmp_path)


def test_a_table_with_a_bad_row_is_one(tmp_path):
    (tmp_path / "train.csv").write_text(CSV + "a.jpg,9,9,1,1,cat\n")
    (tmp_path / "notes.csv").write_text("day,what\n1,rain\n")
    found = recognise(tmp_path)
    with pytest.raises(UserError, match="train.csv:10: wants x1 < x2"):
        open_as_printed(found)


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', ";;;;;", ""])
def test_a_table_of_excel_is_one_as_it_is_read(tmp_path, first):
    (tmp_path / "train.csv").write_text(f"{first}\n{CSV.replace(',', ';')}")
    for name in NAMES:
        (tmp_path / f"{name}.jpg").write_bytes(encode(draw((40, 60), [])))
    found = recognise(tmp_path)
    assert found.format == "csv" and sum(map(len, open_as_printed(found))) == 8


@pytest.mark.parametrize("content", ["", "sep=;\n", "sep=;", 'image,x1,y1,x2,y2,"class'])
def test_what_the_reader_of_tables_refuses_in_its_first_row_is_none(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match="looked for YOLO"):
        recognise(tmp_path)


def test_what_is_recognised_is_printed_as_lines_of_a_config(drawn):
    found = recognise(drawn[1]["roboflow_coco"][1])
    assert as_config(found).splitlines() == [
        "config.data.source = 'coco'",
        f"config.data.root = {drawn[1]['roboflow_coco'][1]!r}",
        "config.data.train_split = 'train'",
        "config.data.eval_split = 'valid'",
        "config.data.options = ConfigDict({'annotations': '{split}/_annotations.coco.json', "
        "'images': '{split}'})",
    ]
    assert "train/_annotations.coco.json, as Roboflow writes it" == found.reason


def test_a_folder_of_no_format_or_of_two_is_said(drawn, tmp_path):
    (tmp_path / "notes.txt").write_text("cats")
    with pytest.raises(UserError, match=r"looked for YOLO \(data.yaml.* found notes.txt"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        recognise(tmp_path / "none")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    (tmp_path / "result.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UserError, match=r"is in 2 formats: yolo by data.yaml.*; coco by result"):
        recognise(tmp_path)


def test_yaml_of_something_else_is_no_data_set(tmp_path):
    (tmp_path / "compose.yaml").write_text("services:\n  names: [a]\n")
    (tmp_path / "cells.yaml").write_text("train: images\nnames: [cell]\n")
    found = recognise(tmp_path).settings
    assert (found["source"], found["options"]) == ("yolo", {"file": "cells.yaml"})
    (tmp_path / "more.yaml").write_text("names: [cell]\n")
    with pytest.raises(UserError, match="name one of cells.yaml, more.yaml in data.options.file"):
        recognise(tmp_path)
    (tmp_path / "cells.yaml").unlink()
    assert recognise(tmp_path).settings["train_split"] == "train"


@pytest.mark.parametrize("ends", ["\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize(
    "name, text, source",
    [
        ("data.yaml", "names: [cat]\ntrain: images\n", "yolo"),
        ("data.yaml", "train: images\n'names': [cat]\n", "yolo"),
        ("train.json", COCO, "coco"),
        ("a.xml", "<annotation>\n</annotation>", "voc"),
        ("train.csv", CSV, "csv"),
    ],
)
def test_files_are_recognised_in_what_they_are_read_in(
    tmp_path, name, text, source, encoding, ends
):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_bytes(text.replace("\n", ends).encode(encoding))
    (tmp_path / "a.jpg").write_bytes(encode(draw((40, 60), [])))
    found = recognise(tmp_path)
    assert found.format == source
    settings = found.settings
    place = {"root": settings["root"], "split": settings["train_split"], "classes": ("cat",)}
    if source in ("yolo", "voc"):
        assert build(source, **place, **settings["options"]).class_names == ("cat",)


@pytest.mark.parametrize("text", ['<v:annotation xmlns:v="x"></v:annotation>', "<Annotation/>"])
def test_xml_is_recognised_with_the_names_that_it_is_read_with(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    assert recognise(tmp_path).format == "voc"


def test_a_json_is_known_behind_its_many_categories(tmp_path):
    """Label Studio writes a notes.json of categories alone beside YOLO's files."""
    categories = [{"id": i, "name": 60 * "x"} for i in range(1000)]
    (tmp_path / "notes.json").write_text(json.dumps({"categories": categories}))
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories, "images": []}))
    assert recognise(tmp_path).reason.startswith("train.json, as COCO")


@pytest.mark.parametrize("ending", ["csv", "json", "xml", "yaml"])
def test_what_is_no_file_is_not_looked_into(tmp_path, ending):
    (tmp_path / "cells.yml").write_text("train: images\nnames: [cell]\n")
    (tmp_path / f"link.{ending}").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / f"pipe.{ending}")
    assert recognise(tmp_path).format == "yolo"


def test_labelme_s_files_are_recognised_as_what_wants_a_source_of_its_own(tmp_path):
    (tmp_path / "a.json").write_text('{"version": "5.5.0", "shapes": [], "imagePath": "a.jpg"}')
    with pytest.raises(UserError, match="LabelMe's json: docs/data.md has a source for it"):
        recognise(tmp_path)


def test_cvat_s_own_xml_is_not_called_voc(tmp_path):
    image = '<image id="0" name="a.jpg" width="60" height="40"/>'
    (tmp_path / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    with pytest.raises(UserError, match="looked for .* found annotations.xml"):
        recognise(tmp_path)


def test_label_studio_s_folders_are_recognised(tmp_path):
    (tmp_path / "yolo/images").mkdir(parents=True)
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/classes.txt").write_text("cat\ndog")
    (tmp_path / "yolo/labels/a.txt").write_text("1 .5 .5 .2 .2")
    found = recognise(tmp_path / "yolo").settings
    assert (found["source"], found["train_split"], found["val_fraction"]) == ("yolo", "train", 0.2)
    (tmp_path / "coco/images").mkdir(parents=True)
    (tmp_path / "coco/result.json").write_text('{"images": [], "annotations": []}')
    found = recognise(tmp_path / "coco").settings
    assert found["options"] == {"annotations": "result.json", "images": ""}
