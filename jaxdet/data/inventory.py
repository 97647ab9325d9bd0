"""What a data set has to learn from, and what of it is left out, counted before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxdet.data import canvases, transforms
from jaxdet.data.mosaic import Composition
from jaxdet.data.ranges import divide_augmentation
from jaxdet.data.sources.selection import MIN_IMAGE_SIDE
from jaxdet.data.transforms import Augmentation
from jaxdet.types import Example

CLASSES_SHOWN = 12  # A table stays short: of more classes the most and the least frequent.
MOST = 0.5  # Of the boxes over an edge: more than that are hardly cut objects.
SMALL_IMAGE = f"in an image below {MIN_IMAGE_SIDE} pixels"
# Why an object is not learnt, in the order in which it is asked.
REASONS = (
    *("no area", "outside the image", "crowd", "difficult"),
    *(SMALL_IMAGE, "up to data.min_side", "no slot"),
)
LEARNT = -1
# What `judge` takes of a config's section "data".
KEYS = (
    *("canvas", "more_canvases", "resize", "max_boxes", "keep_empty", "use_difficult"),
    *Augmentation._fields,
    *Composition._fields,
)


class Inventory(NamedTuple):
    """Counts of one split.

    Attributes:
        images: all of them.
        empty: those without an object to learn.
        objects: of each class, those that are learnt.
        left_out: of each class and each of `REASONS`, those that are not; (K, R).
        over_edge: objects whose box reaches over an edge of the image.
        on_canvas: images of each canvas, by its (height, width).
    """

    images: int
    empty: int
    objects: np.ndarray
    left_out: np.ndarray
    over_edge: int
    on_canvas: Mapping[tuple[int, int], int] = MappingProxyType({})

    @property
    def total(self) -> int:
        """All objects of the data."""
        return int(self.objects.sum() + self.left_out.sum())


class Judged(NamedTuple):
    """Every object of a split, one image after the other, and whether it is learnt.

    Attributes:
        image: the place of its image.
        labels: its class.
        boxes: as annotated.
        on_canvas: its box in the image, and resized with that.
        reason: the place in `REASONS` of why it is not learnt; `LEARNT` for those that are.
        over_edge: whether its box reaches over an edge of the image.
        sizes: (height, width) of each image.
        scales: canvas pixels per pixel of each image.
        kinds: the place in `canvases` of the canvas of each image.
        canvases: (height, width) of each.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    on_canvas: np.ndarray
    reason: np.ndarray
    over_edge: np.ndarray
    sizes: np.ndarray
    scales: np.ndarray
    kinds: np.ndarray
    canvases: tuple[tuple[int, int], ...]


def count(
    examples: Sequence[Example],
    num_classes: int,
    *,
    dropped: Mapping[int, Sequence[int]] = MappingProxyType({}),
    **settings: Any,
) -> Inventory:
    """Counts what annotations hold; no image is read.

    Args:
        examples: the annotations, their images undecoded.
        num_classes: K.
        dropped: labels of boxes without area that are in no example; see `FileSource`.
        **settings: see `judge`.
    """
    return add_up(judge(examples, **settings), num_classes, dropped)


def judge(
    examples: Sequence[Example],
    *,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
    max_boxes: int,
    use_difficult: bool,
    more_canvases: tuple[tuple[int, int], ...] = (),
    keep_empty: bool = True,
    **augmentation: float | str | tuple[float, ...],
) -> Judged:
    """Tells of each object whether it is learnt, as training does it; no image is read.

    An object that is too small in some draws of the augmentation and not in others is learnt.
    What rotation and shear add to a box is left aside, and what they, crops and mosaics cut off.

    Args:
        examples: the annotations, their images undecoded.
        canvas: (height, width) of the batches.
        resize: (short, long) sides; of several short sides the largest counts.
        max_boxes: object slots of an image.
        use_difficult: whether difficult objects are learnt.
        more_canvases: further ones; see `canvases.fit`.
        keep_empty: whether all images are learnt; else those that `parts.NonEmpty` keeps.
        **augmentation: as `pipeline.train_batches` takes it.
    """
    empty = np.zeros(0)
    counts = np.array([len(each.labels) for each in examples], int)
    image = np.repeat(np.arange(len(examples)), counts)
    boxes = np.concatenate([each.boxes for each in examples] or [empty.reshape(0, 4)])
    labels, crowd, difficult, area = (
        np.concatenate([getattr(each, name) for each in examples] or [empty]).astype(kind)
        for name, kind in (("labels", int), ("crowd", bool), ("difficult", bool), ("area", float))
    )
    sizes = np.array([each.size for each in examples], float).reshape(-1, 2)
    limits = sizes[image][:, [1, 0, 1, 0]]
    clipped = np.clip(boxes, 0, limits)
    every = canvases.every(canvas, more_canvases)
    kinds, scales = canvases.fit(sizes, every, resize)
    on_canvas = clipped * scales[image][:, None]
    sides = np.min(on_canvas[:, 2:] - on_canvas[:, :2], axis=1, initial=np.inf)
    wrong = {
        "no area": ~(transforms.has_pixel(boxes) & (area > 0)),
        "outside the image": ~transforms.has_pixel(clipped),
        "crowd": crowd,
        "difficult": difficult & (not use_difficult),
        SMALL_IMAGE: (sizes.min(axis=1) < MIN_IMAGE_SIDE)[image] & (not keep_empty),
        "up to data.min_side": _is_dropped(sides, augmentation),
    }
    reason = np.full(len(labels), LEARNT)
    for place, name in enumerate(REASONS[:-1]):
        reason[(reason == LEARNT) & wrong[name]] = place
    _leave_out_last(reason, image, transforms.areas(clipped), max_boxes)
    over_edge = np.any((boxes < -0.5) | (boxes > limits + 0.5), axis=1)
    return Judged(image, labels, boxes, on_canvas, reason, over_edge, sizes, scales, kinds, every)


def add_up(
    judged: Judged, num_classes: int, dropped: Mapping[int, Sequence[int]] = MappingProxyType({})
) -> Inventory:
    """Counts what was judged, and what was dropped before; see `count`."""
    learnt = judged.reason == LEARNT
    left_out = np.zeros((num_classes, len(REASONS)), int)
    np.add.at(left_out, (judged.labels[~learnt], judged.reason[~learnt]), 1)
    for labels in dropped.values():
        np.add.at(left_out[:, REASONS.index("no area")], list(labels), 1)
    num_images = len(judged.sizes)
    return Inventory(
        images=num_images,
        empty=num_images - len(np.unique(judged.image[learnt])),
        objects=np.bincount(judged.labels[learnt], minlength=num_classes),
        left_out=left_out,
        over_edge=int(judged.over_edge.sum()),
        on_canvas={
            canvas: int(np.sum(judged.kinds == k)) for k, canvas in enumerate(judged.canvases)
        },
    )


def table(inventories: dict[str, Inventory], class_names: Sequence[str]) -> str:
    """A line for each count, a column for each split."""
    rows = [("", *inventories)]
    splits = list(inventories.values())
    rows.append(("images", *(each.images for each in splits)))
    rows.append(("  without objects", *(each.empty for each in splits)))
    if len(splits[0].on_canvas) > 1:
        for height, width in splits[0].on_canvas:
            numbers = (each.on_canvas[height, width] for each in splits)
            rows.append((f"  on canvas {height} x {width}", *numbers))
    rows.append(("objects", *(int(each.objects.sum()) for each in splits)))
    for label in _shown(splits[0].objects):
        rows.append((f"  {class_names[label]}", *(int(each.objects[label]) for each in splits)))
    if len(class_names) > CLASSES_SHOWN:
        rows.append((f"  ... {len(class_names)} classes", *("" for _ in splits)))
    rows.append(("left out", *(int(each.left_out.sum()) for each in splits)))
    for place, reason in enumerate(REASONS):
        numbers = [int(each.left_out[:, place].sum()) for each in splits]
        if any(numbers):
            rows.append((f"  {reason}", *numbers))
    if any(each.over_edge for each in splits):
        rows.append(("boxes over an edge", *(each.over_edge for each in splits)))
    width = max(len(row[0]) for row in rows)
    columns = [max(len(f"{row[i]}") for row in rows) for i in range(1, len(rows[0]))]
    return "\n".join(
        f"{row[0]:<{width}}" + "".join(f"  {v:>{w}}" for v, w in zip(row[1:], columns, strict=True))
        for row in rows
    )


def why_nothing(inventory: Inventory) -> str:
    """Why there is nothing to learn; an empty text where there is something."""
    if inventory.objects.any():
        return ""
    if not inventory.total:
        return f"there is no object on any of {inventory.images} images"
    numbers = inventory.left_out.sum(axis=0)
    parts = [f"{n} {reason}" for n, reason in zip(numbers, REASONS, strict=True) if n]
    hint = ""
    if numbers[REASONS.index("crowd")] == inventory.total:
        hint = (
            "; iscrowd or ignore is 1 everywhere, as programs write iscrowd that export masks: "
            "set it to 0"
        )
    return f"there is nothing to learn: of {inventory.total} objects {', '.join(parts)}{hint}"


def warnings(inventory: Inventory, split: str, class_names: Sequence[str]) -> list[str]:
    """What is probably a mistake, and what it usually means."""
    if nothing := why_nothing(inventory):
        return [f"{split}: {nothing}"]
    said = []
    if inventory.over_edge > MOST * inventory.total:
        said.append(
            f"{inventory.over_edge} of {inventory.total} boxes of {split} reach over an edge of "
            "their image: were the pictures resized, or are the boxes in another form, such as "
            "x, y, width, height for corners?"
        )
    nothing = [class_names[label] for label in np.flatnonzero(inventory.objects == 0)]
    if nothing:
        listed = ", ".join(nothing[:CLASSES_SHOWN]) + (", ..." * (len(nothing) > CLASSES_SHOWN))
        said.append(f"{split} has no object to learn of {len(nothing)} classes: {listed}")
    return said


def _shown(objects: np.ndarray) -> Iterable[int]:
    """The places of the classes that a table shows, in their own order."""
    if len(objects) <= CLASSES_SHOWN:
        return range(len(objects))
    order = np.argsort(-objects, kind="stable")
    half = CLASSES_SHOWN // 2
    return [*order[:half].tolist(), *order[-half:].tolist()]


def _is_dropped(sides, augmentation):
    """Which objects `transforms.drop_small` leaves out however far a picture is zoomed in."""
    composition, settings = divide_augmentation(augmentation)
    zooms = [settings.zoom_range[1]]
    if composition.mosaic > 0:
        zooms.append(composition.affine_zoom[1])
    if composition.mixup > 0:
        zooms.append(composition.mixup_zoom[1])
    return (settings.min_side > 0) & (sides * max(zooms) <= settings.min_side)


def _leave_out_last(reason, image, area, max_boxes):
    """Of an image with too many objects the smallest find no slot; see `limit_objects`."""
    candidates = np.flatnonzero(reason == LEARNT)
    order = candidates[np.lexsort((-area[candidates], image[candidates]))]
    _, starts = np.unique(image[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    reason[order[rank >= max_boxes]] = len(REASONS) - 1
