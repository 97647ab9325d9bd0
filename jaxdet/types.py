"""The values that every part of jaxdet exchanges, and its conventions.

Letters in shape annotations:
    B images, H W pixels, C channels, G ground-truth slots, N anchors or
    candidates, P proposals, S samples, D detections, K classes, L levels.

Conventions:
    * Images are NHWC, RGB in 0..255, content at the top left of the canvas.
    * Boxes are [x1, y1, x2, y2], float32 canvas pixels; x2 and y2 are exclusive.
    * Sizes are (height, width).
    * Labels are 0..K-1; background is K, and only inside the RoI classifier.
    * Every padded input has its mask `valid` (True = real), every fixed-size
      output returns its own; validity is never guessed from values.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, UInt32

# How images may be resized, see `data.transforms.resize` -> the type of their pixels then.
RESIZE_RULES = {"rounded": np.uint8, "torchvision": np.float32}


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

    pixels: Real[Array, "B H W 3"]  # RGB in 0..255, of a type of `RESIZE_RULES`.
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


@runtime_checkable
class CountingAxis(Protocol):
    """What may stand for the name of the devices' axis: it decides how counts become global.

    Attributes:
        name: of the axis of devices.
    """

    name: str

    def global_count(self, count: Float[Array, ""]) -> Float[Array, ""]:
        """As `ops.losses.global_count`."""


AxisName = str | CountingAxis  # Of devices.


class Detector(NamedTuple):
    """A detection method as three pure functions, and what a user of them has to know.

    Attributes:
        init: `(key, images) -> variables`.
        loss: `(variables, batch, key, *, final=False, axis_name=None) ->
            (total, (metrics, batch_stats))`; `key` is the run's, the same on
            every device, and is folded with `batch.index`. `axis_name` is for
            `global_count`, which also takes a `CountingAxis`. `final` says that
            the last part of a run has begun; False itself, not a traced
            boolean, where the run has none.
        predict: `(variables, images) -> Detections`, of fixed size.
        raw: `(variables, images) -> ` what prediction decides on, for export or
            a suppression of one's own; None where a detector does not give it.
        frozen: "/"-joined paths into the variables, such as
            "params/backbone/layer1": what is at or below them never moves. An
            optimizer must leave these parameters out, as weight decay would
            move them, and they are of use only if they come from a file.
        tells_classes: whether it tells classes apart; else all that it finds
            has label 0.
        bgr_weights: whether files of weights for it read BGR images, and must be
            turned; None where their names say it.
        matrices: the confusion matrices among its counts: the names of their
            rows and columns, where `...` stands for the classes of the data.
        assign: `(variables, batch) -> detectors.assigned.Assigned`, which
            candidates learn which object, as `loss` has it; None where a
            detector does not tell.
        merge: `(Detections of one image) -> Detections`, its own suppression of
            what was found in several views of the image; None for none.
    """

    init: Callable
    loss: Callable
    predict: Callable
    raw: Callable | None = None
    frozen: tuple[str, ...] = ()
    tells_classes: bool = True
    bgr_weights: bool | None = None
    matrices: Mapping[str, tuple] = MappingProxyType({})
    assign: Callable | None = None
    merge: Callable | None = None

    def is_frozen(self, path: str) -> bool:
        """Whether the leaf at a path, such as "params/backbone/stem_conv/kernel", never moves."""
        return any(f"{path}/".startswith(f"{prefix}/") for prefix in self.frozen)


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


def short_repr(value: Any) -> str:
    """A dataclass as the call that makes it, without what is its default: `ResNet(depth=18)`."""
    own = [field for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
    items = {field.name: getattr(value, field.name) for field in own}
    defaults = {field.name: field.default for field in own}
    shown = [f"{name}={item!r}" for name, item in items.items() if item != defaults[name]]
    return f"{type(value).__name__}({', '.join(shown)})"
