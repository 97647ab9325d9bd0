"""The settings that several detectors share: each group is the keyword arguments of an op.

A group is passed on whole, `assign_by_iou(..., **vars(assign))`. What the network
is made of needs no group: a Linen module is one, `ResNet(depth=18, norm="batch")`.

Reference for the defaults: mmdetection 2.11.
"""

import dataclasses

from jaxdet.ops import box_coder
from jaxdet.types import short_repr


class Group:
    """A frozen dataclass that is written as what makes it: `Sample(num_samples=64)`."""

    __repr__ = short_repr


group = dataclasses.dataclass(frozen=True, kw_only=True, repr=False)


@group
class Pixels(Group):
    """How pixels reach the network; see `ops.pixels.normalize`.

    Attributes:
        mean: of RGB in 0..255, subtracted from every pixel.
        std: of RGB, which pixels are divided by; above 0.
        padding: value of the pixels beside an image, in 0..255; None makes
            them 0 after mean and std.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    padding: float | None = None


@group
class AnchorGrid(Group):
    """The anchors of all cells; see `detectors.anchor_grid.make_anchors`.

    Attributes:
        scales: sides of the square anchors, in strides; above 0.
        ratios: height / width of the anchors; above 0.
        centre: where in a cell its anchors are centred, 0 to 1.
        divisor: an image's sides are rounded up to it, and anchors of cells beyond train nothing.
        whole_cells: whether maps end with their image: a cell that it fills in
            part trains nothing either, and no such anchor becomes a box.
        rounded: whether anchors and the steps between cells are whole pixels, as in torchvision.
    """

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    centre: float = 0.0
    divisor: int = 32
    whole_cells: bool = False
    rounded: bool = False

    @property
    def num_base(self) -> int:
        """Anchors of a cell."""
        return len(self.scales) * len(self.ratios)


@group
class Inside(Group):
    """Which anchors of the image may train; see `ops.anchors.inside_image`.

    Attributes:
        allowed_border: pixels an anchor may leave the image by; -1 for any.
        count_touching: whether anchors that touch the right or bottom border are inside.
    """

    allowed_border: float = -1.0
    count_touching: bool = False


@group
class Assign(Group):
    """Which candidates learn which object; see `ops.assignment.assign_by_iou`.

    Attributes:
        positive_iou: candidates of at least this overlap are positive, 0 to 1.
        negative_iou: those of less than this, or in [low, high), are negative;
            the rest is ignored.
        min_positive_iou: lowest overlap of an object's best candidates; with 0,
            any that overlap it at all.
        match_low_quality: whether an object's best candidates are positive below `positive_iou`.
        match_all_ties: whether all that share the best overlap are; else the first.
        reassign_low_quality: whether they learn that object; else the one that
            they overlap most themselves.
        ignore_iof_threshold: candidates inside crowd regions by more than this
            fraction are ignored; -1 for off.
        ignore_by_candidate: whether that is a fraction of the candidate; else of the region.
    """

    positive_iou: float
    negative_iou: float | tuple[float, float]
    min_positive_iou: float = 0.0
    match_low_quality: bool = True
    match_all_ties: bool = True
    reassign_low_quality: bool = True
    ignore_iof_threshold: float = -1.0
    ignore_by_candidate: bool = True


@group
class Sample(Group):
    """How many candidates of an image train; see `ops.sampling.sample_labels`.

    Attributes:
        num_samples: candidates an image that train.
        positive_fraction: largest share of positives among them, 0 to 1.
        max_negatives_per_positive: caps the negatives; -1 for off.
    """

    num_samples: int
    positive_fraction: float
    max_negatives_per_positive: float = -1.0


@group
class Coder(Group):
    """How a box is written as deltas of another; see `ops.box_coder`.

    Attributes:
        means: of the deltas.
        stds: of the deltas.
        max_ratio: largest change of a side that a delta makes; inf for no limit.
        limit_shrinking: whether that limits how much sides shrink, too; in torchvision it does not.
    """

    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    max_ratio: float = box_coder.MAX_RATIO
    limit_shrinking: bool = True


@group
class BoxLoss(Group):
    """The box loss of a candidate; see `ops.box_losses.box_regression`.

    Attributes:
        kind: "l1" or "smooth_l1" of deltas, or "iou", "giou" or "diou" of boxes.
        beta: of smooth L1, where it turns from a square to a line.
    """

    kind: str = "l1"
    beta: float = 1.0


@group
class Suppress(Group):
    """Final boxes from scored ones; see `ops.suppression`.

    Attributes:
        score_threshold: detections score more than this; YOLOX's at least this.
        iou_threshold: detections of a class that overlap more than this are duplicates.
        max_detections: detections an image.
        max_candidates: pairs of box and class an image that suppression looks
            at; of YOLOX boxes, by their best class, where the reference looks at all.
        class_agnostic: whether detections of all classes suppress each other.
        min_size: boxes with a shorter side are dropped, in pixels of the canvas.
    """

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100
    max_candidates: int = 2000
    class_agnostic: bool = False
    min_size: float = 0.0
