"""Checks of the settings in a config's data section; each mistake is a UserError."""

import numbers

from jaxdet.data.transforms import Augmentation
from jaxdet.types import UserError


def check_division(batch_size: int, process_count: int, num_devices: int) -> None:
    """Refuses batches that cannot be shared evenly, and empty ones."""
    if batch_size < 1 or batch_size % (process_count * num_devices):
        raise UserError(
            f"batch_size {batch_size} does not divide among {process_count} processes "
            f"of {num_devices} devices"
        )


def check_at_least(lowest: int, **settings: float) -> None:
    """Refuses settings below `lowest`."""
    for name, value in settings.items():
        if value < lowest:
            raise UserError(f"data.{name} wants at least {lowest}, found {value}")


def check_resize(resize: object) -> None:
    """Refuses all but (short, long) or ((short, ...), long), in whole pixels."""
    short, long = resize if _is_list(resize) and len(resize) == 2 else (0, 0)
    shorts = tuple(short) if _is_list(short) else (short,)
    if not shorts or not all(isinstance(s, numbers.Integral) and s >= 1 for s in (*shorts, long)):
        raise UserError(
            f"data.resize wants a short side, or several, and a long one, of at least 1 pixel "
            f"each; found {resize}"
        )


def check_augmentation(settings: Augmentation) -> None:
    """Refuses rates and amounts outside 0..1, and a zoom that is no range above 0."""
    for name, value in settings._asdict().items():
        if name == "zoom_range":
            if not is_pair(value) or not 0 < value[0] <= value[1]:
                raise UserError(f"data.zoom_range wants 0 < low <= high, found {value}")
        elif not 0 <= value <= 1:
            raise UserError(f"data.{name} wants a number from 0 to 1, found {value}")


def is_pair(value: object) -> bool:
    """Whether a setting is made of two numbers."""
    return _is_list(value) and len(value) == 2 and all(isinstance(v, numbers.Real) for v in value)


def _is_list(value):
    return isinstance(value, tuple | list)
