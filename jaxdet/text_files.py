"""Text files as people's programs write them: in several encodings."""

import codecs
from pathlib import Path

from jaxdet.types import UserError

# The longer marks first: UTF-32's begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16, or UTF-32 with a mark; a mark is left out.

    Raises:
        UserError: for other bytes.
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    start, encoding = _encoding(data)
    try:
        text = data[start:].decode(encoding)
        before, zero, _ = text.partition("\0")
        if not zero:
            return text
        at = start + len(before.encode(encoding))
    except UnicodeDecodeError as error:
        at = start + error.start
    raise UserError(
        f"{path}: wanted text in UTF-8 or UTF-16, found the byte 0x{data[at]:02x} at {at}: "
        "save it as UTF-8"
    )


def read_head(path: Path, size: int) -> str:
    """The text of a file's first bytes, -1 for all, by `read_text`'s rules; what is none is U+FFFD.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(size)
    start, encoding = _encoding(data)
    return data[start:].decode(encoding, "replace")


def _encoding(data: bytes) -> tuple[int, str]:
    """Where the text begins in a file's bytes, behind its mark, and what it is in."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return len(mark), encoding
    # UTF-16 without a mark shows by its first two letters, if they are plain ones.
    zeros = tuple(byte == 0 for byte in data[:4])
    known = {(True, False) * 2: "utf-16-be", (False, True) * 2: "utf-16-le"}
    return 0, known.get(zeros, "utf-8")
