"""Small data sets, drawn here: images are grey with one filled rectangle for each box."""

import json
import pathlib

import cv2
import numpy as np

from jaxdet.types import Example

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)])


def draw(size, boxes, labels=None):
    """RGB pixels with a rectangle of the label's colour at each box."""
    image = np.full((*size, 3), 90, np.uint8)
    for k, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, int)):
        image[y1:y2, x1:x2] = COLOURS[0 if labels is None else labels[k]]
    return image


def encode(image, suffix=".jpg"):
    """The bytes of an image file."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix == ".jpg" else []
    return cv2.imencode(suffix, image[..., ::-1], settings)[1].tobytes()


def make_example(boxes, *, size=(40, 60), labels=None, crowd=None, difficult=None, id=0):
    """An Example with a PNG file."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    labels = np.array([0] * n if labels is None else labels, np.int32)
    return Example(
        id=id,
        image=encode(draw(size, boxes, labels), ".png"),
        boxes=boxes,
        labels=labels,
        crowd=np.array([False] * n if crowd is None else crowd, bool),
        difficult=np.array([False] * n if difficult is None else difficult, bool),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64),
        size=size,
    )


def with_proposals(example, boxes, scores=None):
    """The example with proposals; without scores these fall from 1 by eighths."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = 1 - np.arange(len(boxes)) / 8 if scores is None else scores
    return example._replace(proposals=boxes, proposal_scores=np.array(scores, np.float32))


class ListSource:
    """A source of given examples; an OSError in place of an example is raised."""

    def __init__(self, examples, class_names=("red", "green", "blue")):
        self.examples, self.class_names = list(examples), class_names

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        if isinstance(self.examples[index], OSError):
            raise self.examples[index]
        return self.examples[index]


def with_exif_orientation(jpeg, orientation):
    """The JPEG with an EXIF block that asks viewers to rotate it."""
    tags = b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    block = b"Exif\0\0" + b"II*\0\x08\0\0\0" + tags
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


def write_voc(root, images, *, split="train", xml_size=None):
    """Writes {name: (size, [(class, corners[, difficult])])} in VOC's layout; corners as in VOC."""
    root = pathlib.Path(root)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    for name, (size, objects) in images.items():
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode(draw(size, [])))
        height, width = xml_size or size
        items = "".join(
            f"<object><name>{kind}</name><difficult>{int(bool(rest))}</difficult><bndbox>"
            + "".join(
                f"<{key}>{value}</{key}>"
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            )
            + "</bndbox></object>"
            for kind, corners, *rest in objects
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>{items}"
            "</annotation>"
        )
    return str(root)


def write_coco(root, content, *, split="train"):
    """Writes a COCO json and a grey file for each of its images."""
    root = pathlib.Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for image in content["images"]:
        pixels = draw((image["height"], image["width"]), [])
        (root / split / image["file_name"]).write_bytes(encode(pixels))
    return str(root)
