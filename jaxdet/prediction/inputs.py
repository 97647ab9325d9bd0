"""What can be asked: files, folders, arrays and lists of those, as decoded examples."""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdet.data.decoding import SUFFIXES, PutRight, UnreadableImage, decode_bytes
from jaxdet.types import Example, UserError


def gather(asked: Any) -> Iterator[Path | np.ndarray]:
    """Lists the images that are asked for, in order.

    Args:
        asked: a file, a folder (all images in it, by name), an array
            (H, W, 3) of uint8 RGB, or a list of those.

    Raises:
        UserError: for a file or folder that is not there, a folder without an
            image, and an array of another kind.
    """
    if isinstance(asked, Sequence | Iterator) and not isinstance(asked, str | bytes):
        for each in asked:
            yield from gather(each)
    elif isinstance(asked, str | os.PathLike):
        yield from list_files(Path(asked).expanduser())
    else:
        yield _check_array(np.asarray(asked))


def list_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The file itself, or what is named as an image in a folder, by name, but for hidden ones.

    A broken link, a pipe, and a folder named as an image are among these: reading them says what
    they are.

    Raises:
        UserError: if it is not there, or a folder without an image.
    """
    if not path.exists():
        siblings = (p.name for p in path.parent.glob("*") if p.exists())
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: there is no such image{hint}")
    if not path.is_dir():
        return [path]
    # Hidden are macOS' `._a.jpg`, which are no images.
    named = (p for p in path.iterdir() if p.suffix.lower() in suffixes and p.name[0] != ".")
    found = sorted(named)
    if not found:
        raise UserError(f"{path}: there is no image in this folder (wanted {', '.join(suffixes)})")
    return found


def decode(image: Path | np.ndarray, put_right: PutRight | None = None) -> Example:
    """An image as an example without objects; a file's pixels are turned as its EXIF says.

    Args:
        image: a file or RGB pixels.
        put_right: counts what was done to pictures of unusual kinds.

    Raises:
        UnreadableImage: if the file is no image, a damaged one, or a pipe or device.
        OSError: if it cannot be read.
    """
    if isinstance(image, np.ndarray):
        return to_example(image, "array")
    if is_endless(image):
        raise UnreadableImage(f"{image}: not a file, but a pipe or a device")
    data = image.read_bytes()
    return to_example(decode_bytes(data, rotate=True, name=image, put_right=put_right), image)


def is_endless(path: Path) -> bool:
    """Whether it is a pipe or a device, whose end may never come."""
    return path.exists() and not (path.is_file() or path.is_dir())


def to_example(pixels: UInt8[np.ndarray, "H W 3"], name: Any) -> Example:
    """Pixels as an example without objects."""
    nothing = np.zeros(0)
    return Example(
        id=name,
        image=pixels,
        boxes=np.zeros((0, 4), np.float32),
        labels=nothing.astype(np.int32),
        crowd=nothing.astype(bool),
        difficult=nothing.astype(bool),
        area=nothing,
        size=pixels.shape[:2],
    )


def _check_array(pixels):
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        hint = "; give several as a list" if pixels.ndim == 4 else ""
        raise UserError(
            "an image wants to be the path of a file, or an array (height, width, 3) of uint8 RGB, "
            f"found {pixels.shape} {pixels.dtype}{hint}"
        )
    return np.ascontiguousarray(pixels)
