"""Damages small pictures of all kinds at random, and sees what reading them comes to.

    python benchmarks/fuzz_pictures.py [--count=10000] [--seed=0]

Each file must become an RGB image, or an UnreadableImage; anything else is an error of ours, and
is raised with the number of the file, whose bytes depend on that and the seed alone. At the end
stand how many were which, the time, the lines that libraries wrote to stderr, and the memory that
it all took.
"""

import argparse
import collections
import os
import resource
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg

from jaxdet.data.decoding import UnreadableImage, decode_bytes

SIZE = (45, 61)  # (height, width)


def pictures_of_all_kinds() -> dict[str, bytes]:
    """A file of each kind, by what is in it: the same coarse pattern, as far as the kind can."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (4, 5, 3), np.uint8)
    rgb = cv2.resize(cells, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    grey, alpha = rgb[..., 1], np.tile(np.linspace(0, 255, SIZE[1]).astype(np.uint8), (SIZE[0], 1))
    wide = rgb.astype(np.uint16)
    palette = rng.integers(0, 256, (16, 3), np.uint8)
    entries = _chunk(b"PLTE", palette.tobytes())
    index, bits = grey >> 4, np.packbits(grey > 127, axis=1)
    see_through = _chunk(b"tRNS", bytes([0, 128]))
    cmyk = np.dstack([rgb, np.full(SIZE, 230, np.uint8)])
    return {
        "JPEG": _encode(".jpg", rgb),
        "JPEG, progressive": _encode(".jpg", rgb, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "JPEG, restarts": _encode(".jpg", rgb, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        "JPEG, grey": _encode(".jpg", grey),
        "JPEG, CMYK": simplejpeg.encode_jpeg(cmyk, colorspace="CMYK", colorsubsampling="444"),
        "PNG": _encode(".png", rgb),
        "PNG, grey": _encode(".png", grey),
        "PNG, 1 bit": write_png(bits, 1, 0),
        "PNG, palette": write_png(index, 8, 3, entries),
        "PNG, palette with transparency": write_png(index, 8, 3, entries + see_through),
        "PNG, grey and alpha": write_png(np.dstack([grey, alpha]), 8, 4),
        "PNG, RGBA": write_png(np.dstack([rgb, alpha]), 8, 6),
        "PNG, 16 bits": _encode(".png", wide * 257),
        "PNG, 12 in 16 bits": _encode(".png", wide * 16),
        "PNG, RGBA of 16 bits": write_png(np.dstack([wide, alpha]).astype(">u2") * 257, 16, 6),
        "TIFF": _encode(".tiff", rgb),
        "TIFF, 1 bit": write_tiff(bits, depth=1),
        "TIFF, 10 in 16 bits": _encode(".tiff", wide * 4),
        "TIFF, floats of 0 to 1": _encode(".tiff", (rgb / 255).astype(np.float32)),
        "TIFF, grey floats of 0 to 255": _encode(".tiff", grey.astype(np.float32)),
        "TIFF, 16 bits, white is 0": write_tiff(65535 - wide[..., 1] * 257, white_is_zero=True),
        "BMP": _encode(".bmp", rgb),
        "WebP": _encode(".webp", rgb, cv2.IMWRITE_WEBP_QUALITY, 80),
        "WebP, with alpha": _encode(".webp", np.dstack([rgb, alpha])),
        "GIF": _encode(".gif", rgb),
        "PPM": _encode(".ppm", rgb),
        "PGM, 14 in 16 bits": _encode(".pgm", wide[..., 1] * 64),
        "PBM": b"P4\n%d %d\n" % SIZE[::-1] + (~bits).tobytes(),
        "JPEG 2000": _encode(".jp2", rgb),
    }


def write_png(rows: np.ndarray, depth: int, colours: int, more: bytes = b"") -> bytes:
    """A PNG of packed rows: bits a channel, the kind of its colours, and chunks before its pixels.

    OpenCV writes neither palettes nor grey with alpha.
    """
    raw = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, colours, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + more + pixels + _chunk(b"IEND", b"")


def write_tiff(
    rows: np.ndarray, *, depth: int = 16, white_is_zero: bool = False, orientation: int = 1
) -> bytes:
    """A grey TIFF of packed rows, as OpenCV writes none: of one bit, negative, or to be turned."""
    raw = np.ascontiguousarray(rows).tobytes()
    values = {256: SIZE[1], 257: SIZE[0], 258: depth, 259: 1, 262: int(not white_is_zero), 273: 8}
    values |= {274: orientation, 277: 1, 278: SIZE[0], 279: len(raw)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    directory = struct.pack("<H", len(values)) + tags + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + directory


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy: bits flipped, bytes lost, zeroed, drawn or cut off, or two files spliced."""
    damaged, place = bytearray(data), int(rng.integers(len(data)))
    length = int(rng.integers(1, 1 + min(2 ** int(rng.integers(12)), len(data) - place)))
    how = rng.integers(7)
    if how == 0:
        for at in rng.integers(len(data), size=rng.integers(1, 9)):
            damaged[at] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del damaged[place:]
    elif how == 2:
        del damaged[place : place + length]
    elif how == 3:
        damaged[place : place + length] = bytes(length)
    elif how == 4:
        damaged[place : place + length] = rng.bytes(length)
    elif how == 5:
        # The head says what things are and how large: another kind's, or numbers drawn at random.
        head = int(rng.integers(4, 64))
        damaged[:head] = other[:head]
    else:
        for at in rng.integers(min(len(data), 64), size=4):
            damaged[at] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(damaged)


def damaged_pictures(count: int, seed: int) -> Iterator[bytes]:
    """Damaged files of all kinds in turn; each depends on the seed and its number only."""
    files = list(pictures_of_all_kinds().values())
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        yield mutate(files[number % len(files)], files[rng.integers(len(files))], rng)


def outcome(data: bytes, name: object) -> str:
    """What reading a file comes to.

    Raises:
        AssertionError: if that is no RGB image.
    """
    try:
        image = decode_bytes(data, rotate=True, name=name)
    except UnreadableImage:
        return "unreadable"
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    return "an image"


def _encode(suffix, pixels, *settings):
    pixels = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(suffix, pixels, settings)[1].tobytes()


def _chunk(name, content):
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    pictures_of_all_kinds()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    counts, slowest = collections.Counter(), 0.0
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            for number, data in enumerate(damaged_pictures(flags.count, flags.seed)):
                began = time.perf_counter()
                try:
                    counts[outcome(data, number)] += 1
                except Exception as error:
                    raise AssertionError(f"file {number}: {error!r}") from error
                slowest = max(slowest, time.perf_counter() - began)
        finally:
            os.dup2(stderr, 2)
        said.seek(0)
        lines = sum(1 for line in said if line.strip())
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{flags.count} damaged files: {dict(counts)}; {seconds:.1f} s, slowest {slowest:.2f} s")
    print(f"{lines} lines on stderr; {memory:.0f} MB more memory at most")


if __name__ == "__main__":
    main()
