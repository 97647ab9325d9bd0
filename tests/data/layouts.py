"""One data set in the layouts of many programs: what a source gives, written anew for another."""

import io
import json
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds

SPLITS = ("train", "valid")


def write_all(sources, root):
    """Writes {split: source} in each layout; {name of the layout: (source, root, options)}."""
    root = pathlib.Path(root)
    written = {}
    for name, (source, write, options) in LAYOUTS.items():
        (root / name).mkdir()
        for split, examples in sources.items():
            write(root / name, split, examples)
        written[name] = source, str(root / name), options
    return written


def _coco(root, split, source):
    (root / "annotations").mkdir(exist_ok=True)
    _copy(source, root / split)
    _write_json(root / "annotations" / f"instances_{split}.json", source)


def _roboflow_coco(root, split, source):
    _copy(source, root / split)
    _write_json(root / split / "_annotations.coco.json", source, dummy=True)


def _write_json(path, source, dummy=False):
    """With `dummy` as Roboflow writes it: number 0 is the name of the project."""
    names = [{"id": k + 1, "name": name} for k, name in enumerate(source.class_names)]
    if dummy:
        names = [{"id": 0, "name": "things", "supercategory": "none"}] + [
            {**each, "supercategory": "things"} for each in names
        ]
    content = {"images": [], "annotations": [], "categories": names}
    for number, (example, file) in enumerate(zip(source.examples, source.paths, strict=True)):
        height, width = example.size
        content["images"].append(
            {"id": number, "file_name": file.name, "height": height, "width": width}
        )
        for box, label in zip(example.boxes.tolist(), example.labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            item = {"id": len(content["annotations"]), "image_id": number, "iscrowd": 0}
            item |= {"category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"].append(item)
    path.write_text(json.dumps(content))


def _roboflow_voc(root, split, source):
    _copy(source, root / split)
    for example, path in zip(source.examples, source.paths, strict=True):
        items = "".join(
            f"<object><name>{source.class_names[label]}</name><bndbox><xmin>{x1 + 1}</xmin>"
            f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(example.boxes.tolist(), example.labels, strict=True)
        )
        (root / split / f"{path.stem}.xml").write_text(f"<annotation>{items}</annotation>")


def _roboflow_yolo(root, split, source):
    _copy(source, root / split / "images")
    _write_lines(root / split / "labels", source)
    names = ", ".join(map(repr, source.class_names))
    (root / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\n\nnc: {len(source.class_names)}\n"
        f"names: [{names}]\nroboflow:\n  license: CC BY 4.0\n"
    )


def _ultralytics(root, split, source):
    _copy(source, root / "images" / split)
    _write_lines(root / "labels" / split, source)
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(source.class_names))
    (root / "set.yaml").write_text(
        f"path: ../datasets/set\ntrain: images/train\nval: images/valid\ntest:\nnames:\n{names}"
    )


def _cvat_yolo(root, split, source):
    _copy(source, root / f"obj_{split}_data")
    _write_lines(root / f"obj_{split}_data", source)
    lines = "".join(f"data/obj_{split}_data/{path.name}\n" for path in source.paths)
    (root / f"{split}.txt").write_text(lines)
    (root / "obj.names").write_text("\n".join(source.class_names) + "\n")
    (root / "obj.data").write_text(
        f"classes = {len(source.class_names)}\ntrain = data/train.txt\nvalid = data/valid.txt\n"
        "names = data/obj.names\nbackup = backup/\n"
    )


def _write_lines(folder, source):
    """All digits of the fractions are written: six would move corners by up to a pixel's part."""
    folder.mkdir(parents=True, exist_ok=True)
    for example, path in zip(source.examples, source.paths, strict=True):
        height, width = example.size
        lines = [
            f"{label} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} "
            f"{(x2 - x1) / width!r} {(y2 - y1) / height!r}\n"
            for (x1, y1, x2, y2), label in zip(example.boxes.tolist(), example.labels, strict=True)
        ]
        if lines:  # An image without objects has no file here.
            (folder / f"{path.stem}.txt").write_text("".join(lines))


def _csv(root, split, source):
    _copy(source, root / "pictures")
    rows = ["image,x1,y1,x2,y2,class"] + list(_rows(source, "pictures/"))
    (root / f"{split}.csv").write_text("\n".join(rows) + "\n")


def _roboflow_csv(root, split, source):
    _copy(source, root / split)
    rows = [row.split(",") for row in _rows(source)]
    pairs = zip(source.paths, source.examples, strict=True)
    sizes = {path.name: [str(side) for side in example.size[::-1]] for path, example in pairs}
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"] + [
        ",".join([name, *sizes[name], kind, *corners]) for name, *corners, kind in rows
    ]
    (root / split / "_annotations.csv").write_text("\r\n".join(lines))


def _rows(source, folder=""):
    for example, path in zip(source.examples, source.paths, strict=True):
        if not len(example.labels):
            yield f"{folder}{path.name},,,,,"
        for box, label in zip(example.boxes.tolist(), example.labels, strict=True):
            yield ",".join([f"{folder}{path.name}", *map(repr, box), source.class_names[label]])


def _tfds(root, split, source):
    _Builder(
        source, split, data_dir=root / split, file_format="array_record"
    ).download_and_prepare()


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One split of a source."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source, split, **kwargs):
        self._source, self._split = source, split
        super().__init__(**kwargs)

    def _info(self):
        names = self._source.class_names
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=names),
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
        return {self._split: self._generate_examples()}

    def _generate_examples(self):
        for number, example in enumerate(self._source):
            height, width = example.size
            fractions = example.boxes.astype(np.float64) / [width, height, width, height]
            objects = [
                {"bbox": tfds.features.BBox(y1, x1, y2, x2), "label": int(label)}
                for (x1, y1, x2, y2), label in zip(fractions.tolist(), example.labels, strict=True)
            ]
            name = self._source.paths[number].name
            image = io.BytesIO(example.image)
            yield number, {"image": image, "image/filename": name, "objects": objects}


def _copy(source, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.paths:
        shutil.copy(path, folder / path.name)


# Name -> (data.source, what writes a split, data.options).
LAYOUTS = {
    "coco": ("coco", _coco, {}),
    "roboflow_coco": (
        "coco",
        _roboflow_coco,
        {"annotations": "{split}/_annotations.coco.json", "images": "{split}"},
    ),
    "roboflow_voc": (
        "voc",
        _roboflow_voc,
        {"image_folder": "{split}", "annotation_folder": "{split}", "list_folder": ""},
    ),
    "roboflow_yolo": ("yolo", _roboflow_yolo, {}),
    "ultralytics": ("yolo", _ultralytics, {}),
    "cvat_yolo": ("yolo", _cvat_yolo, {}),
    "csv": ("csv", _csv, {}),
    "roboflow_csv": (
        "csv",
        _roboflow_csv,
        {"annotations": "{split}/_annotations.csv", "images": "{split}"},
    ),
    "tfds": ("tfds", _tfds, {}),
}
