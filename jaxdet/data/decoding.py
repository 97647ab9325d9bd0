"""From the bytes of a picture's file to RGB: every kind that people have, none misread.

JPEGs are decoded by simplejpeg, to the very pixels that OpenCV gives, because it says where
their data is damaged; all other kinds by OpenCV, as they are stored, and made 8 bits here.
"""

import collections
import contextlib
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8

from jaxdet.data.picture_headers import Header, png_damage, pnm_white, read_header

# Endings of the files that are looked for; what a file is, its content says.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Grey of what no image covers; detectors may overwrite it beside the image (`Images.sizes`).
FILL = 114
# 16,384 x 16,384: a file that says more would take more than 800 MB, and may be a trap.
MAX_PIXELS = 2**28
# Of their sides, what JPEGs can be decoded to at once.
SHARES = (1.0, 0.5, 0.25, 0.125)

_KINDS = "JPEG, PNG, BMP, WebP, TIFF, GIF, PNM or JPEG 2000"
# Cameras and microscopes write so many bits into 16.
_DEPTHS = (8, 10, 12, 14, 16)
# Remarks of the JPEG decoder on files whose pixels may be whole; and where the byte lies that
# it does not know, from a word on.
_HARMLESS = {
    "unknown JFIF revision": (b"JFIF\0", 5),
    "Unknown Adobe color transform": (b"Adobe", 11),
}
_PADDED = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# The head of a BMP of 32 bits a pixel that has masks for three colours, and no room for more.
_THREE_MASKS = re.compile(rb"BM.{12}[\x28\x34]\0\0\0.{10}\x20\0\x03\0\0\0", re.DOTALL)


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV from printing what an `UnreadableImage` says of damaged files.

    For commands: the setting is the whole process's. OPENCV_LOG_LEVEL goes before it.
    """
    # OpenCV 5 has it elsewhere.
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    quiet = "OPENCV_LOG_LEVEL" not in os.environ
    before = set_level(0) if quiet else None
    try:
        yield
    finally:
        if quiet:
            set_level(before)


class UnreadableImage(ValueError):
    """An image file that cannot be decoded, or that is not the annotated one."""


class Stored(NamedTuple):
    """A picture as it lies in its file, and how it is to be turned.

    Attributes:
        pixels: of RGB.
        orientation: 1 to 8, as in EXIF.
        size: (height, width) of the whole picture, not turned.
        share: of its sides that was decoded, one of `SHARES`; rounded up to whole pixels.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    orientation: int
    size: tuple[int, int]
    share: float = 1.0

    def turned(self) -> UInt8[np.ndarray, "_ _ 3"]:
        """The picture as viewers show it."""
        return _turn(self.pixels, self.orientation)

    def turned_size(self) -> tuple[int, int]:
        """(height, width) of the whole picture as viewers show it."""
        return _turn_size(self.size, self.orientation)


class PutRight:
    """Counts what was done to pictures of unusual kinds; thread-safe.

    Of each kind the first in the process is logged: a run that evaluates often says it once.

    Attributes:
        counts: how often each was done, by what was done.
    """

    _said: ClassVar[set[str]] = set()

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, name: object, done: str) -> None:
        """Counts a picture, and says so where it is the first."""
        with self._lock:
            self.counts[done] += 1
        if done not in self._said:
            self._said.add(done)
            log = logging.getLogger("jaxdet")
            log.warning("%s: %s (said once; others are counted)", name, done)


def decode_bytes(
    data: bytes, *, rotate: bool, name: object, put_right: PutRight | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a file to RGB; see `read`.

    Args:
        data: the file's content.
        rotate: whether to follow the EXIF rotation.
        name: the image's name, for messages.
        put_right: counts what was done to pictures of unusual kinds.

    Raises:
        UnreadableImage: if it cannot be decoded.
    """
    stored = read(data, name=name, put_right=put_right)
    return stored.turned() if rotate else stored.pixels


def size_of(data: bytes, *, name: object) -> tuple[int, int]:
    """The (height, width) of a picture as viewers show it, from the head of its file where it can.

    A file that is damaged behind its head has a size all the same.

    Raises:
        UnreadableImage: if it is of no kind that is read here, or its size is nowhere.
    """
    header = read_header(data)
    _check_kind(header, data, name)
    size = header.size
    if header.kind == "JPEG":
        try:
            size = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
        except (ValueError, KeyError) as error:
            raise _damaged(name, data, header.kind, error) from None
    if size is None:
        return decode_bytes(data, rotate=True, name=name).shape[:2]
    return _turn_size(size, header.orientation)


def read(
    data: bytes,
    *,
    name: object,
    put_right: PutRight | None = None,
    wanted: Callable[[tuple[int, int]], float] | None = None,
) -> Stored:
    """Decodes a file to 8-bit RGB, and finds out how it is to be turned.

    * 16 bits that hold 8, 10, 12 or 14, by the largest value in the picture, are stretched to
      all 256 levels; the lower bits are cut off. A PNM that says another value than 65535 is
      its lightest is stretched to that.
    * Floating-point values are taken as 0..1 or 0..255, by their range.
    * What is transparent shows grey 114, as beside images. A fourth channel that a TIFF does
      not say is transparency is left out.
    * Of an animation the first frame is taken.

    Args:
        data: the file's content.
        name: the image's name, for messages.
        put_right: counts what was done to pictures of unusual kinds.
        wanted: gives, for a (height, width), what share of the sides is enough. A JPEG is
            decoded to the least of `SHARES` that is enough turned and unturned; None for the
            whole.

    Raises:
        UnreadableImage: for what is no picture, of another kind, cut short, damaged where the
            format lets that be seen, of more than `MAX_PIXELS`, or has values without a meaning.
    """
    header = read_header(data)
    put_right = put_right or PutRight()
    _check_kind(header, data, name)
    _check_size(header.size, name)
    if header.kind == "JPEG":
        return _decode_jpeg(data, name, header.orientation, wanted)
    damage = png_damage(data) if header.kind == "PNG" else None
    if damage:
        raise _damaged(name, data, header.kind, damage)
    _check_planes(header, name)
    if _THREE_MASKS.match(data):
        data = _with_four_masks(data)
    try:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raw = None
    if raw is None or raw.size == 0:
        raise _damaged(name, data, header.kind, "OpenCV cannot decode it")
    if header.kind == "PNM":
        raw = _stretch_pnm(raw, data, name)
    if header.kind == "TIFF":  # These OpenCV has turned.
        raw = _turn(raw, {6: 8, 8: 6}.get(header.orientation, header.orientation))
    rgb = _to_rgb(raw, header, name, put_right)
    return Stored(rgb, header.orientation, rgb.shape[:2])


def _check_kind(header: Header, data: bytes, name: object) -> None:
    if header.kind in ("HEIC", "AVIF"):
        raise UnreadableImage(
            f"{name}: a picture of the kind {header.kind}, which is not read here; convert it, as "
            f"with `magick photo.{header.kind.lower()} photo.jpg`"
        )
    if header.kind is None:
        found = f"it begins with {data[:12]!r}" if data else "the file is empty"
        raise _damaged(name, data, f"wanted {_KINDS}", found)


def _damaged(name, data, kind, reason):
    said = f"{name}: not an image, or a damaged one ({len(data)} bytes; {kind}; {reason})"
    return UnreadableImage(said)


def _check_size(size, name):
    if size and size[0] * size[1] > MAX_PIXELS:
        raise UnreadableImage(
            f"{name}: says that it has {size[0]} x {size[1]} pixels (height x width); pictures of "
            f"up to {MAX_PIXELS} pixels are read"
        )


def _check_planes(header, name):
    """Refuses what OpenCV reads in part: the other pixels are what the memory held before."""
    if header.separate and header.bits > 8:
        raise UnreadableImage(
            f"{name}: a TIFF of {header.bits} bits with a plane for each channel, which is not "
            f"read here; convert it, as with `tiffcp -p contig photo.tif converted.tif`"
        )


def _decode_jpeg(data, name, orientation, wanted):
    """A JPEG; the pixels of a damaged one are no picture, however many there are."""
    try:
        size = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
        _check_size(size, name)
        least = max(map(wanted, {size, _turn_size(size, orientation)})) if wanted else 1.0
        share = min((share for share in SHARES if share >= least), default=1.0)
        height, width = (math.ceil(side * share) for side in size)
        # Without a least factor of two it would also take other eighths, which are slow.
        limits = {"min_height": height, "min_width": width, "min_factor": 2}
        decode = partial(simplejpeg.decode_jpeg, **limits if share < 1 else {})
        pixels = _undamaged_jpeg(data, decode)
        return Stored(pixels, orientation, size, share)
    except UnreadableImage:
        raise
    except (ValueError, KeyError) as error:  # A KeyError where the colours are of no known kind.
        raise _damaged(name, data, "JPEG", error) from None


def _undamaged_jpeg(data, decode):
    try:
        return decode(data)
    except ValueError as error:
        for remark, (word, offset) in _HARMLESS.items():
            if remark in str(error):
                return _undamaged_jpeg(_with_known(data, data.index(word) + offset), decode)
        padded = _PADDED.search(str(error))
        if padded is None:
            raise
    # Some cameras pad the end; where nothing else is wrong, nothing is without that.
    end = data.rfind(b"\xff\xd9")
    return decode(data[: end - int(padded[1])] + data[end:])


def _with_known(data, place):
    """A JPEG with a byte that the decoder knows for one that it does not, as libjpeg takes it."""
    colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    known = 2 if colours == "YCCK" else 1
    if data[place] == known:
        raise ValueError("its header cannot be read")
    return data[:place] + bytes([known]) + data[place + 1 :]


def _with_four_masks(data):
    """A BMP with an empty mask for transparency.

    Without a fourth OpenCV heeds none, and takes bits that say nothing for transparency.
    """
    pixels = int.from_bytes(data[10:14], "little")
    start, size = (number.to_bytes(4, "little") for number in (14 + 56, 56))
    return data[:10] + start + size + data[18:66] + bytes(4) + data[pixels:]


def _stretch_pnm(raw, data, name):
    """Values of a PNM as 0..255, where it says which is the lightest.

    65535 says no more than the 16 bits of other kinds do. Numbers that are written out OpenCV
    has stretched if they are of 8 bits.
    """
    white = pnm_white(data)
    if white in (None, 255, 65535) or (white < 256 and data[:2] in (b"P2", b"P3")):
        return raw
    if raw.max() > white:
        found = f"has a value of {raw.max()}; its header says {white} at most"
        raise UnreadableImage(f"{name}: {found}")
    return np.round(raw * (255 / white)).astype(np.uint8)


def _to_rgb(raw, header, name, put_right):
    """What OpenCV decoded as RGB of 8 bits."""
    channels = 1 if raw.ndim == 2 else raw.shape[2]
    if channels not in (1, 3, 4):
        raise UnreadableImage(f"{name}: has {channels} channels; wanted 1, 3 or 4")
    if channels == 1 < header.channels:
        _take_first(header, name, put_right)
    if channels == 4 and header.unnamed:
        put_right.add(name, "a 4th channel that is not said to be transparency is left out")
        raw, channels = raw[..., :3], 3
    in_bytes = raw.dtype == np.uint8
    # Of all channels at once: transparency has the range of colours.
    values = _to_bytes(raw, name, put_right)
    if channels == 1:
        # The 8-bit ones of these OpenCV has turned round.
        grey = 255 - values if header.white_is_zero and not in_bytes else values
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    rgb = cv2.cvtColor(values[..., :3], cv2.COLOR_BGR2RGB)
    if channels == 3:
        return rgb
    covered = values[..., 3:] / np.float32(255)
    if covered.min() == 1:
        return rgb
    put_right.add(name, f"what is transparent shows grey {FILL}")
    # OpenCV has multiplied the colours of 8-bit TIFFs by it, where they were not.
    multiplied = header.multiplied or (header.kind == "TIFF" and in_bytes)
    shown = rgb if multiplied else rgb * covered
    return np.clip(np.round(shown + FILL * (1 - covered)), 0, 255).astype(np.uint8)


def _take_first(header, name, put_right):
    """Refuses channels that OpenCV mixes to one grey, or cuts to 8 bits; of others it took one."""
    if header.bits > 8:
        raise UnreadableImage(
            f"{name}: a grey TIFF of {header.bits} bits with {header.channels} channels, which is "
            f"not read here; write it with one channel, or as RGB"
        )
    put_right.add(name, "of several channels of a grey TIFF the first is taken")


def _to_bytes(
    values: Shaped[np.ndarray, "..."], name: object, put_right: PutRight
) -> UInt8[np.ndarray, "..."]:
    """Values of any type as 0..255; see `read`."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    low, high = values.min(), values.max()  # NaN where one is.
    if values.dtype.kind == "f":
        top = 1 if high <= 1.02 else 255
        # A little outside is what resampling leaves, and OpenCV 4, which writes floats lossily.
        if not (low >= -0.02 * top and (top == 1 or 16 <= high <= 1.02 * top)):
            raise UnreadableImage(
                f"{name}: floating-point values from {low:.6g} to {high:.6g}; wanted 0 to 1, or "
                f"0 to 255"
            )
        if top == 1:
            put_right.add(name, "floating-point values are taken as 0 to 1")
        return np.clip(np.round(values * (255 / top)), 0, 255).astype(np.uint8)
    if low < 0 or high >= 2**16:
        raise UnreadableImage(f"{name}: values from {low} to {high}; wanted 0 to 65535")
    bits = next(bits for bits in _DEPTHS if high < 2**bits)
    if bits < 16:
        put_right.add(name, f"16-bit values, none above {2**bits - 1}, are taken as {bits} bits")
    return (values >> (bits - 8)).astype(np.uint8)


def _turn_size(size, orientation):
    height, width = map(int, size)
    return (width, height) if orientation >= 5 else (height, width)


def _turn(pixels, orientation):
    """Pixels as EXIF wants them shown: 2 to 4 are mirrored or upside down, from 5 on they lie."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels
