"""Data sources: each turns a folder into a random-access sequence of Examples."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxdet.data.sources import own
from jaxdet.data.sources.coco import read_coco
from jaxdet.data.sources.csv import read_csv
from jaxdet.data.sources.shapes import ShapesSettings, read_shapes
from jaxdet.data.sources.tfds import read_tfds
from jaxdet.data.sources.voc import read_voc
from jaxdet.data.sources.yolo import read_yolo
from jaxdet.types import Source, UserError

# Name -> the function that opens the source, and what has its options as keywords.
SOURCES: dict[str, tuple[Callable[..., Source], Callable]] = {
    "shapes": (read_shapes, ShapesSettings),
    "voc": (read_voc, read_voc),
    "coco": (read_coco, read_coco),
    "yolo": (read_yolo, read_yolo),
    "csv": (read_csv, read_csv),
    "tfds": (read_tfds, read_tfds),
}
# What every source takes, and no option of one.
COMMON = ("root", "split", "classes")


def options(name: str) -> tuple[Callable, tuple[str, ...]]:
    """What has the settings that only this source takes as parameters, and their names.

    Raises:
        UserError: for an unknown name, and a function of the user's that cannot be loaded.
    """
    if own.is_own(name):
        owner = own.find(name)
    elif name in SOURCES:
        owner = SOURCES[name][1]
    else:
        known = ", ".join(SOURCES)
        raise UserError(
            f"unknown data source {name!r}; there are {known}, and module:function for your own"
        )
    parameters = inspect.signature(owner).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return owner, tuple(key for key in named if key not in COMMON)


def build(
    name: str,
    /,
    *,
    root: str | None,
    split: str,
    classes: tuple[str, ...] = (),
    **settings: Any,
) -> Source:
    """Opens a data source by name.

    Args:
        name: a key of `SOURCES`, or of a function of one's own, see `own`.
        root: the folder that holds the data, or, for "shapes", will hold it.
        split: the part to read, as the source names it.
        classes: class names in the order of their labels; empty takes the
            data's own. Give an evaluation source the training source's
            `class_names`, so that the labels agree.
        **settings: the source's own settings, see `options`.

    Raises:
        UserError: for an unknown name or option, or wrong or missing data.
    """
    _, known = options(name)
    for key in settings:
        if key not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UserError(f"data source {name!r} has no option {key!r}; it has {listed}")
    if not root:
        raise UserError(f"data.root is empty: name the folder of the data source {name!r}")
    if len(set(classes)) != len(classes):
        raise UserError(f"data.classes names a class twice: {', '.join(classes)}")
    given = {"root": str(root), "split": split, "classes": tuple(classes), **settings}
    return own.call(name, **given) if own.is_own(name) else SOURCES[name][0](**given)


def is_annotated(source: Source) -> bool:
    """Whether a source says what is on its images; else they are for predictions alone."""
    return getattr(source, "annotated", True)
