"""What a proposals file holds, read against its declared shape; see `proposal_files`.

The head of each array is read first, so that memory is never more than what the four arrays,
once they fit one another, say that they take.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxdet.types import UserError


class Field(NamedTuple):
    """The shape of an array, where a letter stands for one number, and NumPy's kinds of it."""

    shape: tuple[str | int, ...]
    kinds: str
    wanted: str


FIELDS = {
    "ids": Field(("n",), "USiu", "text or whole numbers"),
    "counts": Field(("n",), "iu", "whole numbers"),
    "scores": Field(("m",), "fiu", "numbers"),
    "boxes": Field(("m", 4), "fiu", "numbers"),
}
_HEADS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Content(NamedTuple):
    """The arrays of a file: n images, m proposals."""

    ids: np.ndarray  # (n,) text
    counts: np.ndarray  # (n,) int64
    boxes: np.ndarray  # (m, 4) float32
    scores: np.ndarray  # (m,) float32


def read(path: Path) -> Content:
    """Reads a file.

    Raises:
        UserError: if there is none, or it is not as described; the line says which
            image and which field, and what was wanted and found.
    """
    if not path.is_file():
        raise UserError(f"no proposals file {path}")
    with path.open("rb") as stream:
        arrays = _read_arrays(stream, path)
    counts, ids = arrays["counts"], arrays["ids"]
    for wrong in np.flatnonzero((counts < 0) | (counts > len(arrays["scores"])))[:1]:
        raise UserError(
            f"{path}: image {str(ids[wrong])!r}: counts wants 0 to {len(arrays['scores'])}, as "
            f"many as there are scores; found {counts[wrong]}"
        )
    with np.errstate(over="ignore"):  # What becomes infinite is refused as such.
        boxes, scores = (
            arrays[name].astype(np.float32, copy=False) for name in ("boxes", "scores")
        )
    content = Content(ids, counts.astype(np.int64), boxes, scores)
    check(content, path)
    return content


def check(content: Content, file: object) -> None:
    """Refuses arrays of the right shapes whose values are not as described.

    Raises:
        UserError: for the first image that is not.
    """
    ids, counts, boxes, scores = content
    names, times = np.unique(ids, return_counts=True)
    for twice in names[times > 1][:1]:
        raise UserError(
            f"{file}: ids: image {str(twice)!r} is there {times[names == twice][0]} times"
        )
    if counts.sum() != len(scores):
        raise UserError(
            f"{file}: counts wants a sum of {len(scores)}, as many as there are scores; found "
            f"{counts.sum()}"
        )
    ends = np.cumsum(counts)
    for find, field, wanted in (
        (_not_finite, "scores", "a finite number"),
        (_not_finite, "boxes", "finite numbers"),
        (_turned, "boxes", "x1 <= x2 and y1 <= y2"),
        (_rising, "scores", "at most the one before it, as the best comes first"),
    ):
        values = boxes if field == "boxes" else scores
        wrong = find(values, ends)
        if wrong is not None:
            row = int(np.searchsorted(ends, wrong, side="right"))
            place = wrong - (ends[row] - counts[row])
            raise UserError(
                f"{file}: image {str(ids[row])!r}: {field}[{place}] wants {wanted}, found "
                f"{values[wrong].tolist()}"
            )


def _read_arrays(stream: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """The arrays as they are stored, of the declared shapes and kinds."""
    try:
        if stream.read(2) != b"PK":  # An archive may begin later; NumPy's do not.
            raise zipfile.BadZipFile("File is not a zip file")
        with zipfile.ZipFile(stream) as archive:
            _check_names(archive, path)
            _check_heads({name: _read_head(archive, name) for name in FIELDS}, path)
            arrays = {name: _read_array(archive, name) for name in FIELDS}
            # A list shows letters that there are none of.
            return arrays | {"ids": np.array(arrays["ids"].astype(np.str_).tolist(), np.str_)}
    except UserError:
        raise
    except Exception as error:  # Zip, zlib and NumPy raise whatever damaged bytes lead them to.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a proposals file ({line})") from None


def _check_names(archive: zipfile.ZipFile, path: Path) -> None:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    for name in FIELDS:
        if names.count(name) != 1:
            raise UserError(
                f"{path}: wants the arrays {', '.join(FIELDS)}, each once; found "
                f"{', '.join(map(ascii, names)) or 'none'}"
            )


def _read_head(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape and type of an array, and the bytes that there are of it."""
    with archive.open(f"{name}.npy") as member:
        read_head = _HEADS[np.lib.format.read_magic(member)]
        shape, _, dtype = read_head(member)
        return shape, dtype, archive.getinfo(f"{name}.npy").file_size - member.tell()


def _check_heads(heads: dict[str, Any], path: Path) -> None:
    letters: dict[str, int] = {}
    for name, (wanted, kinds, words) in FIELDS.items():
        shape, dtype, size = heads[name]
        if dtype.kind not in kinds:
            raise UserError(f"{path}: {name} wants {words}, found {dtype}")
        for letter, number in zip(wanted, shape, strict=False):
            if isinstance(letter, str):
                letters.setdefault(letter, number)
        known = tuple(letters.get(each, each) for each in wanted)
        if shape != known:
            fixed = {"counts": ", as many as ids", "boxes": ", as many as scores"}.get(name, "")
            said = _say(known if fixed else wanted) + fixed
            raise UserError(f"{path}: {name} wants the shape {said}; found {_say(shape)}")
        if math.prod(shape) * dtype.itemsize != size:
            raise UserError(
                f"{path}: {name} wants {math.prod(shape) * dtype.itemsize} bytes for its shape "
                f"{_say(shape)}, found {size}"
            )


def _say(shape: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # At the end the archive compares its checksum.
    return array


def _not_finite(values: np.ndarray, ends: np.ndarray) -> int | None:
    """The place of the first row with a NaN or infinity, else None."""
    # NaN passes through min and max; an array of flags for every number would cost memory.
    if np.all(np.isfinite([f(values, initial=0) for f in (np.min, np.max)])):
        return None
    return int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))


def _turned(boxes: np.ndarray, ends: np.ndarray) -> int | None:
    """The place of the first box whose corners are not in order, as those of other forms."""
    turned = np.any(boxes[:, 2:] < boxes[:, :2], axis=1)
    return int(np.argmax(turned)) if turned.any() else None


def _rising(scores: np.ndarray, ends: np.ndarray) -> int | None:
    """The place of the first score that is above the one before it of its image, else None."""
    rises = scores[1:] > scores[:-1]
    rises[ends[(ends > 0) & (ends < len(scores))] - 1] = False
    return int(np.argmax(rises)) + 1 if rises.any() else None
