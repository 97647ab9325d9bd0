"""The values that every part of jaxdet exchanges, and its conventions.

Letters in shape annotations:
    B images, H W pixels, C channels, G ground-truth slots, N anchors or
    candidates, P proposals, S samples, D detections, K classes, L levels.

Conventions:
    * Images are NHWC, uint8 RGB, content at the top left of the canvas.
    * Boxes are [x1, y1, x2, y2], float32 canvas pixels; x2 and y2 are exclusive.
    * Sizes are (height, width).
    * Labels are 0..K-1; background is K, and only inside the RoI classifier.
    * Every padded input has its mask `valid` (True = real), every fixed-size
      output returns its own; validity is never guessed from values.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32


class UserError(ValueError):
    """A mistake in the settings, files or data that a user gave.

    Commands print its message as one line and exit with a non-zero status;
    the message names the file, key, leaf or value, what was wanted and found.
    """


class Proposals(NamedTuple):
    """Candidate regions, best first; a leading batch axis where there are several images."""

    boxes: Float[Array, "*B P 4"]
    scores: Float[Array, "*B P"]
    valid: Bool[Array, "*B P"]


class Detections(NamedTuple):
    """Final boxes, best first, in canvas pixels; `evaluation.runner` takes them to the original's.

    A leading batch axis where there are several images.
    """

    boxes: Float[Array, "*B D 4"]
    scores: Float[Array, "*B D"]
    labels: Int[Array, "*B D"]
    valid: Bool[Array, "*B D"]


class Images(NamedTuple):
    """All that prediction needs."""

    pixels: UInt8[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]  # (height, width) of the content, in canvas pixels.
    scales: Float[Array, " B"]  # Canvas pixels per original pixel.
    proposals: Proposals | None = None  # Given ones (Fast R-CNN), else None.


class Objects(NamedTuple):
    """The ground truth of one image in G slots; a leading batch axis where there are several."""

    boxes: Float[Array, "*B G 4"]
    labels: Int[Array, "*B G"]
    valid: Bool[Array, "*B G"]
    crowd: Bool[Array, "*B G"]  # Ignored regions; no slot is both valid and crowd.


class Batch(NamedTuple):
    """What training adds to the images: G object slots for each."""

    images: Images
    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]
    valid: Bool[Array, "B G"]
    crowd: Bool[Array, "B G"]
    index: UInt32[Array, " B"]  # Place in the global order of the run; keys are folded with it.

    @property
    def objects(self) -> Objects:
        """The ground truth of all images."""
        return Objects(self.boxes, self.labels, self.valid, self.crowd)


class Metrics(NamedTuple):
    """What a loss reports: `means` are averaged over devices, `counts` are summed."""

    means: dict[str, Float[Array, "..."]]
    counts: dict[str, Array]


class Detector(NamedTuple):
    """A detection method as three pure functions.

    Attributes:
        init: `(key, images) -> variables`.
        loss: `(variables, batch, key, *, final=False, axis_name=None) ->
            (total, (metrics, batch_stats))`; `key` is the run's, the same on
            every device, and is folded with `batch.index`. `final` says whether
            this is one of the run's final steps: a boolean of the device, or
            the Python value False in a run that has none.
        predict: `(variables, images) -> Detections`, of fixed size.
    """

    init: Callable
    loss: Callable
    predict: Callable


class Example(NamedTuple):
    """One annotated image on the host, as a data source gives it.

    `image` holds the encoded file (JPEG, PNG, ...) until `transforms.decode`
    turns it into RGB pixels. Boxes are in pixels of `image`, as the data has
    them: they may reach out of it, or be empty; training cleans them
    (`transforms.clean`), evaluation does not.
    """

    id: str | int
    image: bytes | np.ndarray
    boxes: np.ndarray  # (n, 4) float32
    labels: np.ndarray  # (n,) int32, 0..K-1
    crowd: np.ndarray  # (n,) bool
    difficult: np.ndarray  # (n,) bool
    area: np.ndarray  # (n,) float64, pixels of the original image.
    size: tuple[int, int]  # (height, width) of the original image.
    # Given regions, best first, in pixels of `image`; None where there are none.
    proposals: np.ndarray | None = None  # (p, 4) float32
    proposal_scores: np.ndarray | None = None  # (p,) float32


@runtime_checkable
class Source(Protocol):
    """A random-access data set of examples."""

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> Example:
        """The example at a place of the source's own, fixed order."""
