"""What is found on one image."""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxdet import visualize
from jaxdet.evaluation import ImageDetections, coco
from jaxdet.prediction import inputs
from jaxdet.types import UserError

ROWS_SHOWN = 30  # Of a printed table.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Found:
    """What is found on one image, best first.

    Attributes:
        boxes: [x1, y1, x2, y2] in pixels of the image as it was given, or, of
            a file, as it is shown: turned as its EXIF says. x2 and y2 are exclusive.
        scores: 0..1.
        labels: places in `class_names`.
        image: the path of its file, or its RGB pixels.
        size: its (height, width).
        class_names: of the detector.
        category_ids: number of each label in the files of the data that the
            detector learnt from, as COCO's have them; None where they have none.
    """

    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    image: Path | np.ndarray
    size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.class_names[label] for label in self.labels]

    def __len__(self) -> int:
        """The number of boxes."""
        return len(self.labels)

    def __repr__(self) -> str:
        """A line, for lists of these."""
        image = "array" if isinstance(self.image, np.ndarray) else self.image
        height, width = self.size
        return f"<{image}: {len(self)} found on {width} x {height} pixels>"

    def __str__(self) -> str:
        """A table with a line for each of the best boxes."""
        width = max(map(len, (*self.names, "class")))
        head = "".join(f"{name:>9}" for name in ("x1", "y1", "x2", "y2"))
        lines = [repr(self).strip("<>"), f"{'class':<{width}}  score{head}"]
        rows = zip(self.names, self.scores, self.boxes, strict=True)
        for name, score, box in itertools.islice(rows, ROWS_SHOWN):
            sides = "".join(f"{side:9.1f}" for side in box)
            lines.append(f"{name:<{width}}  {score:5.3f}{sides}")
        if len(self) > ROWS_SHOWN:
            lines.append(f"... and {len(self) - ROWS_SHOWN} more")
        return "\n".join(lines)

    def draw(self) -> UInt8[np.ndarray, "_ _ 3"]:
        """The image with its boxes, names and scores, as RGB; a small one is enlarged.

        Raises:
            UnreadableImage: if the image's file is no longer what it was.
            OSError: likewise.
        """
        pixels = inputs.decode(self.image).image
        return visualize.draw(pixels, self.boxes, self.labels, self.class_names, scores=self.scores)

    def save(self, path: str | os.PathLike) -> None:
        """Draws it into a file, whose ending says the kind, such as .jpg or .png.

        Raises:
            UserError: if the ending is unknown.
        """
        write_picture(path, self.draw())

    def to_coco(
        self, image_id: int | str, category_ids: tuple[int, ...] | None = None
    ) -> list[dict[str, Any]]:
        """The boxes as COCO's results have them.

        Args:
            image_id: number of the image in the annotation file.
            category_ids: number of each label there; the detector's own where
                they are not given, or, where it has none, the label + 1.
        """
        numbers = category_ids or self.category_ids or range(1, len(self.class_names) + 1)
        found = ImageDetections(self.boxes, self.scores, self.labels)
        return coco.result_items(found, image_id, numbers)

    def to_supervision(self) -> Any:
        """The boxes as `supervision.Detections`.

        Raises:
            UserError: if the package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                "to_supervision() needs supervision: pip install supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, np.str_)},
        )


def write_picture(path: str | os.PathLike, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes RGB pixels as a file, whose ending says the kind.

    Raises:
        UserError: if the ending is unknown, or the format has no pictures of this size.
    """
    path = Path(path)
    try:
        written, data = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise UserError(f"{path}: pictures are written as .jpg or .png") from error
    if not written:
        height, width = pixels.shape[:2]
        raise UserError(f"{path}: OpenCV writes no {path.suffix} of {width} x {height} pixels")
    path.write_bytes(data.tobytes())
