"""Detection data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jaxdet.data import decoding
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.sources.files import label_indices
from jaxdet.data.sources.selection import MIN_IMAGE_SIDE, shows_object
from jaxdet.types import Example, UserError

# TFDS counts COCO's 80 classes without gaps, in the order of their numbers there, 1 to 90.
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_NUMBERS = tuple(n for n in range(1, 91) if n not in _COCO_GAPS)
_ID_FEATURES = ("image/id", "image_id", "image/filename", "id")


class TfdsSource:
    """One split of a prepared data set; reading an example decodes its image.

    TFDS stores boxes as fractions and no image size, so the source decodes
    the image itself, without its EXIF rotation, as TFDS measured it.

    Attributes:
        class_names: name of each label.
        category_ids: its number in the files that TFDS read; None where that is not known.
    """

    class_names: tuple[str, ...]

    def __init__(
        self,
        records: Sequence,
        *,
        names: Sequence[str],
        classes: tuple[str, ...],
        one_based: bool = False,
        numbers: Sequence[int] = (),
    ):
        """Takes TFDS records with encoded images, and the names of their labels.

        With `one_based`, boxes begin one pixel further left and up than stored. `numbers` are
        what the labels were in the files that TFDS read, where that is known.
        """
        self.class_names = tuple(classes) or tuple(names)
        number_of = dict(zip(names, numbers, strict=True)) if numbers else {}
        self.category_ids = tuple(number_of[n] for n in self.class_names) if numbers else None
        self._records = records
        self._put_right = PutRight()
        self._start = 1 if one_based else 0
        # -1 for classes that label nothing.
        self._label_of = np.array(
            [self.class_names.index(n) if n in self.class_names else -1 for n in names], np.int32
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self._records)

    def ids(self) -> list[str | int]:
        """The id of each image, in order; decodes no image."""
        return [self._id(self._records[index], index) for index in range(len(self))]

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, its image decoded to RGB.

        Raises:
            IndexError: at the end, so that the source can be iterated over.
            UnreadableImage: if the image cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        record = self._records[index]
        image_id = self._id(record, index)
        image = decoding.decode_bytes(
            record["image"], rotate=False, name=image_id, put_right=self._put_right
        )
        height, width = size = image.shape[:2]
        fractions, labels, crowd, difficult = self._objects(record)
        corners = _in_pixels(fractions, [width, height, width, height])
        boxes = (corners - [self._start, self._start, 0, 0]).astype(np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        area = record["objects"].get("area", np.prod(sides, axis=1))
        return Example(
            id=image_id,
            image=image,
            boxes=boxes,
            labels=labels,
            crowd=crowd,
            difficult=difficult,
            area=np.asarray(area, np.float64),
            size=size,
        )

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn, as `shows_object` tells.

        The image is decoded only where all objects are so small a part of it
        that they may be less than a pixel. Where it is not decoded its size is
        unknown, and images of any size count.
        """
        record = self._records[index]
        fractions, _, crowd, difficult = self._objects(record)
        real = ~crowd & (np.asarray(record["objects"].get("area", 1)) > 0)
        if not use_difficult:
            real &= ~difficult
        large = np.all(fractions[:, 2:] - fractions[:, :2] >= 1 / MIN_IMAGE_SIDE, axis=1)
        if np.any(real & large) or not np.any(real):
            return bool(np.any(real))
        try:
            return shows_object(self[index], use_difficult=use_difficult)
        except UnreadableImage:
            return False

    def _id(self, record, index):
        image_id = next((record[key] for key in _ID_FEATURES if key in record), index)
        image_id = image_id.decode() if isinstance(image_id, bytes) else image_id
        return image_id if isinstance(image_id, str) else int(image_id)

    def _objects(self, record):
        """Boxes as fractions [x1, y1, x2, y2], labels, crowd and difficult flags."""
        objects = record["objects"]
        yxyx = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        labels = self._label_of[np.asarray(objects["label"], np.int64)]
        none = np.zeros(len(yxyx), bool)
        crowd = np.asarray(objects.get("is_crowd", none), bool)
        return (
            yxyx[:, [1, 0, 3, 2]],
            labels,
            crowd,
            np.asarray(objects.get("is_difficult", none), bool),
        )


def read_tfds(*, root: str, split: str, classes: tuple[str, ...] = ()) -> TfdsSource:
    """Opens a detection data set that TFDS has prepared as ArrayRecord files.

    Its features are image, objects/bbox, objects/label and, where it has
    them, objects/is_crowd, is_difficult and area, and image/id or
    image/filename. TFDS checked labels and boxes when it prepared them, so
    nothing is read here, but all records where `classes` lacks a name. TFDS's own
    "voc" divides VOC's corners, which count pixels from 1, by the image's sides; the
    first ones are moved back by a pixel, so that boxes are those of `read_voc`. Labels
    count from 0 without gaps; of TFDS's own "coco" the numbers of COCO's files are
    known all the same.

    Args:
        root: the prepared folder, .../name/config/version, or a folder above
            it with nothing else prepared inside.
        split: as TFDS has it: "train", "train[:80%]", "train+validation", ...
        classes: names in the order of their labels; one that labels nothing may be
            missing. Empty takes all.

    Raises:
        UserError: if there is no such folder, split, feature or class, or an object of
            a class that is not in `classes`.
    """
    # Here, so that other sources do without it.
    import tensorflow_datasets as tfds

    folder = _find_prepared(pathlib.Path(root))
    builder = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    names = _label_names(features, folder)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UserError(f"{folder}: no class {unknown[0]!r}; it has {', '.join(names)}")
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        one_based = builder.name == "voc"
        numbers = _COCO_NUMBERS if builder.name == "coco" and len(names) == 80 else ()
        source = TfdsSource(
            records, names=names, classes=classes, one_based=one_based, numbers=numbers
        )
    except (ValueError, KeyError) as error:
        known = ", ".join(sorted(builder.info.splits)) or "none"
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: no split {split!r}; it has {known} ({reason})") from None
    except NotImplementedError:
        raise UserError(
            f"{folder}: its files are {builder.info.file_format.value}; prepare it again with "
            f"file_format='array_record'"
        ) from None
    if set(names) > set(source.class_names):
        used = {int(label) for record in records for label in record["objects"]["label"]}
        label_indices(
            [names[k] for k in sorted(used)], source.class_names, where=f"{folder} ({split})"
        )
    return source


def _in_pixels(fractions, sides):
    """Fractions in pixels; one that a whole pixel has in float32 is that pixel.

    Stored are fractions in float32: 127 / 640 comes back as 127.00000095 otherwise.
    """
    pixels = fractions * sides
    whole = np.round(pixels)
    return np.where((whole / sides).astype(np.float32) == fractions, whole, pixels)


def _find_prepared(root):
    """The one folder at or below `root`, up to name/config/version, that TFDS prepared."""
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    found = []
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        found += [p.parent for p in root.glob(f"{depth}dataset_info.json")]
        found = [p for p in found if "incomplete" not in str(p.relative_to(root))]
        if found:
            break
    if len(found) != 1:
        listed = ", ".join(map(str, sorted(found))) or "none"
        raise UserError(f"{root}: want one prepared TFDS data set, found {listed}")
    return found[0]


def _label_names(features, folder):
    try:
        features["image"], features["objects"]["bbox"]
        return tuple(features["objects"]["label"].names)
    except (KeyError, AttributeError, TypeError):
        raise UserError(
            f"{folder}: not a detection data set; wants image, objects/bbox and objects/label, "
            f"has {', '.join(sorted(features))}"
        ) from None
