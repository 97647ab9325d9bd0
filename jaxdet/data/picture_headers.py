"""What the file of a picture says of itself before it is decoded: kind, size, orientation.

Files are read as far as these need, and what is cut short or damaged says nothing.
"""

import contextlib
import re
import struct
import zlib
from typing import BinaryIO, NamedTuple

# What files begin with.
_SIGNS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PNM": rb"P[1-6]\s",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "AVIF": rb"....ftyp(avif|avis)",
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
}
# Tags of TIFF, which EXIF has as well; 3, 4 and 16 are whole numbers of 2, 4 and 8 bytes.
_WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION, _CHANNELS, _PLANES = 256, 257, 262, 274, 277, 284
_BITS, _EXTRA = 258, 338  # Of these there is one for each channel, or each beyond the colours.
_WHOLE_NUMBERS = {3: "H", 4: "I", 16: "Q"}
_MOST_TAGS = 1000
_HEAD = 2**17  # Bytes that hold what is looked for in most files; EXIF takes 64 kB of a JPEG's.
_MOST_EXIF = 2**17
# A PNM's numbers are separated by white space and comments.
_PNM = re.compile(rb"P([1-6])" + 3 * rb"(?:(?:\s|#[^\n]*\n)+(\d+))?")


class Header(NamedTuple):
    """What a file says.

    Attributes:
        kind: a name such as "PNG"; None for what is no picture that is known here.
        size: (height, width) in pixels as stored; None where it is not said.
        orientation: 1 to 8, as EXIF counts them; 1 is upright.
        white_is_zero: whether a TIFF has its greys turned round.
        bits: of each channel of a TIFF.
        channels: of a TIFF, as stored.
        separate: whether they lie one after the other, not pixel by pixel.
        unnamed: whether a TIFF has a fourth channel that it does not say is transparency or ink.
        multiplied: whether a TIFF says that its colours come multiplied by its transparency.
    """

    kind: str | None
    size: tuple[int, int] | None = None
    orientation: int = 1
    white_is_zero: bool = False
    bits: int = 1
    channels: int = 1
    separate: bool = False
    unnamed: bool = False
    multiplied: bool = False


def read_header(data: bytes) -> Header:
    """Looks at the head of a file; of damaged ones it says less, and raises nothing.

    The sizes of JPEGs are left to their decoder.
    """
    kind = next((name for name, sign in _SIGNS.items() if re.match(sign, data, re.DOTALL)), None)
    size, tags = None, {}
    # What points further than a file can reach is an OverflowError.
    with contextlib.suppress(struct.error, IndexError, OverflowError, ValueError):
        size, tiff = _read(kind, data)
        tags = _tags(tiff)
    if kind == "TIFF" and _WIDTH in tags and _HEIGHT in tags:
        size = tags[_HEIGHT], tags[_WIDTH]
    orientation = tags.get(_ORIENTATION, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    if kind != "TIFF":
        return Header(kind, size, orientation)
    channels, photometric, extra = tags.get(_CHANNELS, 1), tags.get(_PHOTOMETRIC), tags.get(_EXTRA)
    return Header(
        kind,
        size,
        orientation,
        white_is_zero=photometric == 0,
        bits=tags.get(_BITS, 1),
        channels=channels,
        separate=channels > 1 and tags.get(_PLANES) == 2,
        unnamed=channels == 4 and photometric != 5 and extra not in (1, 2),
        multiplied=extra == 1,
    )


def read_head(file: BinaryIO) -> bytes:
    """As much of a picture's file as `read_header` needs, if it is not of a rare kind.

    The EXIF of a PNG may stand behind its pixels, which are passed over then.
    """
    head, place = file.read(_HEAD), 8
    if len(head) < _HEAD or not re.match(_SIGNS["PNG"], head):
        return head
    while (start := _at(file, place))[4:].isalpha() and start[4:] not in (b"eXIf", b"IEND"):
        place += 12 + _number(start, 0, ">I")
    first = 8 + 12 + _number(head, 8, ">I")  # The part that says the size.
    return head[:first] + start + file.read(_MOST_EXIF)


def png_damage(data: bytes) -> str | None:
    """What is wrong with the parts of a PNG that its pixels need; None where nothing is.

    Each part has a checksum. Decoders differ in what they make of a wrong one.
    """
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data):
            break
        if name == b"IEND":
            return None
        needed = name[:1].isupper()
        if needed and zlib.crc32(memoryview(data)[place + 4 : end]) != _number(data, end, ">I"):
            return f"its part {name.decode('latin-1')} has a wrong checksum"
        place = end + 4
    return "it is cut short"


def pnm_white(data: bytes) -> int | None:
    """The value that a PNM says is its lightest; None where it says none, as those of bits."""
    found = _PNM.match(data[:4096])
    return int(found[4]) if found and found[4] and found[1] not in b"14" else None


def _read(kind, data):
    """The size, where the kind has it here, and the TIFF that is the file or its EXIF, or empty."""
    if kind == "JPEG":
        return None, _jpeg_exif(data)
    if kind == "PNG":
        return _pair(data, 16, ">II"), _png_exif(data)
    if kind == "TIFF":
        return None, data
    if kind == "WebP":
        return None, _webp_exif(data)  # Neither side can be above 16384.
    if kind == "GIF":
        return _pair(data, 6, "<HH"), b""
    if kind == "BMP":
        old = _number(data, 14, "<I") == 12
        return _pair(data, 18, "<HH" if old else "<ii"), b""
    if kind == "PNM":
        found = _PNM.match(data[:4096])
        return (int(found[3]), int(found[2])) if found[3] else None, b""
    if kind == "JPEG 2000":
        place = data.find(b"\xff\x51", 0, 65536)
        right, down, left, top = struct.unpack_from(">4I", data, place + 6)
        return (down - top, right - left) if place >= 0 else None, b""
    return None, b""


def _at(file, place):
    file.seek(place)
    return file.read(8)


def _pair(data, place, form):
    width, height = struct.unpack_from(form, data, place)
    return abs(height), abs(width)


def _number(data, place, form):
    return struct.unpack_from(form, data, place)[0]


def _jpeg_exif(data):
    """The TIFF within a JPEG's first EXIF segment; empty where there is none."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # Padding.
            place += 1
            continue
        if marker in (0xD9, 0xDA):  # The end, or the pixels.
            break
        length = _number(data, place + 2, ">H")
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            return data[place + 10 : place + 2 + length]
        place += 2 + length
    return b""


def _png_exif(data):
    place = 8
    while place + 12 <= len(data):
        length, name = _number(data, place, ">I"), data[place + 4 : place + 8]
        if name == b"eXIf":
            return data[place + 8 : place + 8 + length]
        place += 12 + length
    return b""


def _webp_exif(data):
    place = 12
    while place + 8 <= len(data):
        length = _number(data, place + 4, "<I")
        if data[place : place + 4] == b"EXIF":
            return data[place + 8 : place + 8 + length].removeprefix(b"Exif\0\0")
        place += 8 + length + length % 2
    return b""


def _tags(tiff):
    """The tags that matter here of a TIFF's first directory; those of BigTIFF, too."""
    if len(tiff) < 8:
        return {}
    order = "<" if tiff[:2] == b"II" else ">"
    big = _number(tiff, 2, order + "H") == 43
    start = _number(tiff, 8, order + "Q") if big else _number(tiff, 4, order + "I")
    count = _number(tiff, start, order + ("Q" if big else "H"))
    first, step, value = (start + 8, 20, 12) if big else (start + 2, 12, 8)
    found = {}
    for k in range(min(count, _MOST_TAGS)):
        place = first + k * step
        if place + step > len(tiff):
            break
        tag, form = struct.unpack_from(order + "HH", tiff, place)
        if form not in _WHOLE_NUMBERS:
            continue
        number = order + _WHOLE_NUMBERS[form]
        if tag in (_WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION, _CHANNELS, _PLANES):
            found[tag] = _number(tiff, place + value, number)
        elif tag in (_BITS, _EXTRA):
            at = _last(tiff, place, number, order + ("Q" if big else "I"))
            if at + struct.calcsize(number) <= len(tiff):
                found[tag] = _number(tiff, at, number)
    return found


def _last(tiff, place, number, word):
    """Where the last of a tag's numbers lies: in the tag, or where that says if they are many."""
    step, room = struct.calcsize(number), struct.calcsize(word)
    count, start = max(_number(tiff, place + 4, word), 1), place + 4 + room
    start = _number(tiff, start, word) if count * step > room else start
    return start + (count - 1) * step
