"""Checks of the settings in a config's data section; each mistake is a UserError."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from jaxdet.data import canvases
from jaxdet.data.affine import BOX_RULES
from jaxdet.data.decoding import MAX_PIXELS
from jaxdet.data.mosaic import Composition
from jaxdet.data.transforms import EXIF_RULES, Augmentation
from jaxdet.types import RESIZE_RULES, UserError


def check_train_settings(
    *,
    canvas: object,
    resize: object,
    more_canvases: object,
    resize_rule: object,
    max_boxes: object,
    max_proposals: object,
    keep_empty: object,
    use_difficult: object,
    num_threads: object,
    exif: object,
    reduced_decoding: object,
    **augmentation: object,
) -> None:
    """Finds the mistakes in settings of `pipeline.train_batches` that show without a source.

    Raises:
        UserError: for the first one out of range, or of a wrong type.
        TypeError: for an unknown one.
    """
    check_canvases(canvas, more_canvases)
    check_resize(resize)
    check_resize_rule(resize_rule)
    check_at_least(1, max_boxes=max_boxes, num_threads=num_threads)
    check_at_least(0, max_proposals=max_proposals)
    check_flags(
        keep_empty=keep_empty, use_difficult=use_difficult, reduced_decoding=reduced_decoding
    )
    if reduced_decoding and resize_rule != "rounded":
        # That rule skips pixels of the whole picture; a part of it has their averages.
        raise UserError(
            f"data.reduced_decoding wants data.resize_rule 'rounded', found {resize_rule!r}"
        )
    check_exif(exif)
    composition, settings = divide_augmentation(augmentation)
    check_augmentation(settings)
    check_composition(composition, max_proposals)


def divide_augmentation(keywords: Mapping[str, Any]) -> tuple[Composition, Augmentation]:
    """The keywords of compositions, and all others as those of single images."""
    names = set(Composition._fields) & set(keywords)
    composition = Composition(**{name: keywords[name] for name in names})
    return composition, Augmentation(**{n: v for n, v in keywords.items() if n not in names})


def check_division(batch_size: int, process_count: int) -> None:
    """Refuses batches that cannot be shared evenly, and empty ones."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size {batch_size} does not divide among {process_count} processes")


def check_process(process_index: int, process_count: int) -> None:
    """Refuses an index that is none of so many: plain ValueErrors, as in `check_steps`."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index wants 0 to {process_count - 1}, found {process_index}")


def check_steps(**steps: object) -> None:
    """Refuses numbers of batches below 0: plain ValueErrors, as no key of a config sets them."""
    for name, value in steps.items():
        if not _is_whole(value) or value < 0:
            raise ValueError(f"{name} wants a whole number of at least 0, found {value!r}")


def check_at_least(lowest: int, **settings: object) -> None:
    """Refuses all but whole numbers from `lowest` on."""
    for name, value in settings.items():
        if not _is_whole(value) or value < lowest:
            raise UserError(
                f"data.{name} wants a whole number of at least {lowest}, found {value!r}"
            )


def check_flags(**settings: object) -> None:
    """Refuses all but True and False."""
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise UserError(f"data.{name} wants True or False, found {value!r}")


def check_exif(exif: object) -> None:
    """Refuses what is no rule of `transforms.decode`."""
    if exif not in EXIF_RULES:
        raise UserError(f"data.exif wants one of {', '.join(EXIF_RULES)}; found {exif!r}")


def check_canvas(canvas: object, name: str = "canvas") -> None:
    """Refuses all but (height, width), in whole pixels."""
    if not _is_list(canvas) or len(canvas) != 2 or not all(_is_whole(s) and s > 0 for s in canvas):
        raise UserError(
            f"data.{name} wants a height and a width of at least 1 pixel each, found {canvas!r}"
        )
    if math.prod(canvas) > MAX_PIXELS:
        raise UserError(f"data.{name} wants at most {MAX_PIXELS} pixels, found {canvas!r}")


def check_canvases(canvas: object, more_canvases: object) -> None:
    """Refuses what `check_canvas` does, and a canvas that is there twice."""
    check_canvas(canvas)
    if not _is_list(more_canvases):
        raise UserError(
            f"data.more_canvases wants several canvases or none, found {more_canvases!r}"
        )
    for each in more_canvases:
        check_canvas(each, name="more_canvases")
    every = canvases.every(canvas, more_canvases)
    if len(set(every)) < len(every):
        raise UserError(
            f"data.more_canvases wants others than data.canvas {canvas!r}, each once; found "
            f"{more_canvases!r}"
        )


def check_resize(resize: object) -> None:
    """Refuses all but (short, long) or ((short, ...), long), in whole pixels."""
    short, long = resize if _is_list(resize) and len(resize) == 2 else (0, 0)
    shorts = tuple(short) if _is_list(short) else (short,)
    if not shorts or not all(_is_whole(s) and s >= 1 for s in (*shorts, long)):
        raise UserError(
            f"data.resize wants a short side, or several, and a long one, of at least 1 pixel "
            f"each; found {resize!r}"
        )


def check_resize_rule(rule: object) -> None:
    """Refuses all but the known ones."""
    if rule not in tuple(RESIZE_RULES):
        raise UserError(f"data.resize_rule wants one of {', '.join(RESIZE_RULES)}; found {rule!r}")


def check_augmentation(settings: Augmentation) -> None:
    """Refuses rates and amounts outside 0..1, a zoom that is no range above 0, and a side below."""
    rates = settings._asdict()
    _check_ranges(zoom_range=rates.pop("zoom_range"))
    hsv, min_side = rates.pop("hsv"), rates.pop("min_side")
    if not _is_numbers(hsv, 3) or not all(0 <= amount <= 1 for amount in hsv):
        raise UserError(f"data.hsv wants three numbers from 0 to 1, found {hsv!r}")
    if not _is_number(min_side) or min_side < 0:
        raise UserError(f"data.min_side wants a number of at least 0, found {min_side!r}")
    _check_at_most(1, **rates)


def check_composition(settings: Composition, max_proposals: int) -> None:
    """Refuses settings out of range, mixup without mosaics, and mosaics with given proposals."""
    _check_at_most(1, **{n: getattr(settings, n) for n in ("mosaic", "mixup", "translation")})
    _check_at_most(180, rotation=settings.rotation)
    _check_at_most(40, shear=settings.shear)
    _check_ranges(mixup_zoom=settings.mixup_zoom, affine_zoom=settings.affine_zoom)
    if settings.affine_boxes not in BOX_RULES:
        raise UserError(
            f"data.affine_boxes wants one of {', '.join(BOX_RULES)}; found {settings.affine_boxes}"
        )
    if settings.mixup > 0 and settings.mosaic == 0:
        raise UserError(
            f"data.mixup wants data.mosaic above 0: only mosaics are mixed, found "
            f"{settings.mixup} with data.mosaic {settings.mosaic}"
        )
    if settings.mosaic > 0 and max_proposals > 0:
        raise UserError(
            f"data.mosaic wants 0 with given proposals, which cannot follow; found "
            f"{settings.mosaic} with data.max_proposals {max_proposals}"
        )


def is_pair(value: object) -> bool:
    """Whether a setting is made of two finite numbers."""
    return _is_numbers(value, 2)


def _check_ranges(**settings):
    for name, value in settings.items():
        if not is_pair(value) or not 0 < value[0] <= value[1]:
            raise UserError(f"data.{name} wants 0 < low <= high, found {value!r}")


def _check_at_most(highest, **settings):
    for name, value in settings.items():
        if not _is_number(value) or not 0 <= value <= highest:
            raise UserError(f"data.{name} wants a number from 0 to {highest}, found {value!r}")


def _is_numbers(value, count):
    return _is_list(value) and len(value) == count and all(map(_is_number, value))


def _is_number(value):
    """Whether a setting is a number, and neither NaN nor without end."""
    return isinstance(value, numbers.Real) and abs(value) < math.inf


def _is_whole(value):
    return isinstance(value, numbers.Integral)


def _is_list(value):
    return isinstance(value, tuple | list)
