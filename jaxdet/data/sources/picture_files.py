"""Pictures written to files as TFDS has them."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from jaxdet.data.sources.pictures import Picture

_JPEG_QUALITY = 90


def write(
    draw: Callable[[str], Iterable[Picture]], folder: str, *, class_names: Sequence[str]
) -> pathlib.Path:
    """Writes the pictures of two splits, which `sources.tfds` reads.

    Args:
        draw: the pictures of "train" or "test".
        folder: in which a folder for the data set is made.
        class_names: of the labels.

    Returns:
        The folder with the files.
    """
    builder = Shapes(draw, class_names, data_dir=folder, file_format="array_record")
    # TFDS prints that it downloads, which is not so.
    with contextlib.redirect_stdout(io.StringIO()), _no_progress_bars():
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Makes records of pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        draw: Callable[[str], Iterable[Picture]],
        class_names: Sequence[str],
        **kwargs: object,
    ):
        """Takes what `write` takes, and what a TFDS builder takes."""
        self._draw, self._class_names = draw, class_names
        super().__init__(**kwargs)

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self._class_names),
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Generated pictures of shapes.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for number, picture in enumerate(self._draw(split)):
            yield number, _to_record(number, picture)


def _to_record(number, picture):
    height, width = picture.image.shape[:2]
    fractions = picture.boxes.astype(np.float64) / [width, height, width, height]
    bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return {
        "image": io.BytesIO(encoded.tobytes()),
        "image/id": number,
        "objects": [
            {"bbox": tfds.features.BBox(y1, x1, y2, x2), "label": int(label)}
            for (x1, y1, x2, y2), label in zip(fractions.tolist(), picture.labels, strict=True)
        ],
    }


@contextlib.contextmanager
def _no_progress_bars():
    before = tqdm_utils._active  # TFDS has no public way to ask.
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.display_progress_bar(before)
