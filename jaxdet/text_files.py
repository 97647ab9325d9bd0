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
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 that says so; its mark is left out.

    Raises:
        UserError: for other bytes.
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    mark, encoding = next((each for each in _MARKS if data.startswith(each[0])), (b"", "utf-8"))
    if not mark:  # UTF-16 without a mark shows by its first two letters, if they are plain ones.
        zeros = [byte == 0 for byte in data[:4]]
        encoding = {(True, False) * 2: "utf-16-be", (False, True) * 2: "utf-16-le"}.get(
            tuple(zeros), encoding
        )
    try:
        text = data[len(mark) :].decode(encoding)
        if "\0" in text:
            raise UnicodeDecodeError(encoding, data, data.index(0), data.index(0) + 1, "no text")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: wanted text in UTF-8 or UTF-16, found the byte 0x{data[error.start]:02x} at "
            f"{error.start}: save it as UTF-8"
        ) from None
    return text
