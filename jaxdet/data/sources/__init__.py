"""Data sources: each turns a folder into a random-access sequence of Examples."""

import inspect
from typing import Any

from jaxdet.data.sources.coco import read_coco
from jaxdet.data.sources.shapes import read_shapes
from jaxdet.data.sources.tfds import read_tfds
from jaxdet.data.sources.voc import read_voc
from jaxdet.types import Source, UserError

SOURCES = {"shapes": read_shapes, "voc": read_voc, "coco": read_coco, "tfds": read_tfds}


def build(
    name: str,
    *,
    root: str | None,
    split: str,
    classes: tuple[str, ...] = (),
    **options: Any,
) -> Source:
    """Opens a data source by name.

    Args:
        name: a key of `SOURCES`.
        root: the folder that holds the data, or, for "shapes", will hold it.
        split: the part to read, as the source names it.
        classes: class names in the order of their labels; empty takes the
            data's own. Give an evaluation source the training source's
            `class_names`, so that the labels agree.
        **options: the source's further settings.

    Raises:
        UserError: for an unknown name or option, or wrong or missing data.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data source {name!r}; there are {', '.join(SOURCES)}")
    _check_options(name, options)
    if not root:
        raise UserError(f"data.root is empty: name the folder of the data source {name!r}")
    if len(set(classes)) != len(classes):
        raise UserError(f"data.classes names a class twice: {', '.join(classes)}")
    return SOURCES[name](root=str(root), split=split, classes=tuple(classes), **options)


def _check_options(name, options):
    parameters = inspect.signature(SOURCES[name]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # The source has its own settings, and checks them.
    known = sorted(set(parameters) - {"root", "split", "classes"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        listed = ", ".join(known) or "none"
        raise UserError(f"data source {name!r} has no option {unknown[0]!r}; it has {listed}")
