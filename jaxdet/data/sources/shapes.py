"""Generated pictures of shapes as a TFDS data set: a detection problem without a download."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from tqdm import tqdm

from jaxdet.data.ranges import is_pair
from jaxdet.data.sources.pictures import KINDS, Picture, draw_picture
from jaxdet.data.sources.tfds import TfdsSource, read_tfds
from jaxdet.types import UserError

# Raised whenever the same settings give other pictures, so that old files are not read.
_VERSION = "1.0.0"
_INCOMPLETE = "incomplete."
# Seconds; an unfinished folder that is older was left behind by a process that was killed.
_STALE = 24 * 3600


@dataclasses.dataclass(frozen=True)
class ShapesSettings:
    """What the pictures are like.

    Attributes:
        num_train: pictures of the split "train".
        num_test: pictures of the split "test".
        height_range: least and greatest height, pixels.
        width_range: least and greatest width, pixels.
        max_objects: a picture with objects has 1 up to this many.
        size_range: least and greatest diameter of a shape, pixels.
        max_turn: shapes are turned by up to so many degrees either way, 0 to 180.
        empty_rate: part of the pictures without an object, 0 to 1.
        seed: of all draws.
        classes: kinds out of `pictures.KINDS`, in the order of their labels.
    """

    num_train: int = 1200
    num_test: int = 200
    height_range: tuple[int, int] = (128, 160)
    width_range: tuple[int, int] = (160, 192)
    max_objects: int = 6
    size_range: tuple[int, int] = (14, 90)
    max_turn: float = 180.0
    empty_rate: float = 0.05
    seed: int = 0
    classes: tuple[str, ...] = ("circle", "square", "triangle", "star")


def read_shapes(
    *, root: str, split: str, classes: tuple[str, ...] = (), **settings: object
) -> TfdsSource:
    """Opens generated pictures, and draws them first where that was not done yet.

    They lie in root/shapes/<digest of the settings>. That folder appears only
    when it is complete: one that was interrupted, or that several processes
    make at once, does no harm. What killed ones leave behind is removed by
    the first drawing a day later.

    Args:
        root: a folder, made if missing.
        split: "train" or "test".
        classes: kinds of shapes, in the order of their labels; empty takes
            the default ones.
        **settings: the other fields of `ShapesSettings`.

    Raises:
        UserError: for an unknown kind, setting or split, or a setting out of range.
    """
    wanted = _to_settings(classes, settings)
    folder = pathlib.Path(root, "shapes", _digest(wanted))
    if not folder.is_dir():
        _prepare(wanted, folder)
    return read_tfds(root=str(folder), split=split)


def draw_split(settings: ShapesSettings, split: str) -> Iterator[Picture]:
    """Draws the pictures of a split; each depends on the settings and its number only."""
    count = {"train": settings.num_train, "test": settings.num_test}[split]
    for number in range(count):
        rng = np.random.default_rng((settings.seed, split == "test", number))
        size = tuple(
            int(rng.integers(*limits, endpoint=True))
            for limits in (settings.height_range, settings.width_range)
        )
        empty = rng.random() < settings.empty_rate
        yield draw_picture(
            rng,
            size=size,
            kinds=settings.classes,
            num_objects=0 if empty else int(rng.integers(1, settings.max_objects, endpoint=True)),
            size_range=settings.size_range,
            max_turn=settings.max_turn,
        )


def _digest(settings):
    """A name for the settings, so that none reads another's files."""
    text = json.dumps([_VERSION, dataclasses.asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _prepare(settings, folder):
    """Writes the data set beside its final place, and moves it there when complete."""
    # It loads TFDS, which sources of other formats do without.
    from jaxdet.data.sources import picture_files

    count = settings.num_train + settings.num_test
    logging.getLogger("jaxdet").info("drawing %d pictures of shapes into %s", count, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    with (
        tempfile.TemporaryDirectory(prefix=_INCOMPLETE, dir=folder.parent) as made,
        # On a terminal only; a log file has the line above.
        tqdm(total=count, desc="drawing pictures", disable=None, leave=False) as bar,
    ):
        draw = partial(_draw_and_tell, settings, bar=bar)
        written = picture_files.write(draw, made, class_names=settings.classes)
        try:
            written.rename(folder)
        except OSError:
            # Another process was faster, with the same pictures.
            if not folder.is_dir():
                raise


def _draw_and_tell(settings, split, bar):
    for picture in draw_split(settings, split):
        yield picture
        bar.update()


def _remove_stale(parent):
    for folder in parent.glob(f"{_INCOMPLETE}*"):
        with contextlib.suppress(FileNotFoundError):  # Another process removed it just now.
            if time.time() - folder.stat().st_mtime > _STALE:
                shutil.rmtree(folder)


def _to_settings(classes, settings):
    known = {field.name for field in dataclasses.fields(ShapesSettings)} - {"classes"}
    unknown = sorted(set(settings) - known)
    if unknown:
        listed = ", ".join(sorted(known))
        raise UserError(f"data source 'shapes' has no option {unknown[0]!r}; it has {listed}")
    for name in classes:
        if name not in KINDS:
            raise UserError(f"no shape {name!r} in data.classes; there are {', '.join(KINDS)}")
    for name in ("height_range", "width_range", "size_range"):
        value = settings.get(name, getattr(ShapesSettings, name))
        if not is_pair(value) or not 8 <= value[0] <= value[1]:
            raise UserError(f"data.{name} wants 8 <= low <= high, found {value}")
    if classes:
        settings["classes"] = tuple(classes)
    result = ShapesSettings(**settings)
    for name in ("num_train", "num_test", "max_objects"):
        if getattr(result, name) < 1:
            raise UserError(f"data.{name} wants at least 1, found {getattr(result, name)}")
    for name, high in (("empty_rate", 1), ("max_turn", 180)):
        value = getattr(result, name)
        if not 0 <= value <= high:
            raise UserError(f"data.{name} wants a number from 0 to {high}, found {value}")
    return result
