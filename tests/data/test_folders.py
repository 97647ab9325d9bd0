import struct
import zlib

import cv2
import numpy as np
import pytest
from drawn_data import draw, encode, with_exif_orientation

from jaxdet.data import decoding
from jaxdet.data.sources.folders import list_pictures
from jaxdet.data.sources.sizes import read_sizes
from jaxdet.types import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp", ".ppm", ".jp2"])
def test_the_size_of_a_picture_is_that_of_its_pixels(tmp_path, suffix):
    path = tmp_path / "a.any"
    path.write_bytes(cv2.imencode(suffix, NOISE)[1].tobytes())  # Most are longer than their heads.
    assert read_sizes([path]) == [(400, 300)]


@pytest.mark.parametrize("orientation, size", [(1, (40, 60)), (3, (40, 60)), (6, (60, 40))])
def test_the_size_is_that_which_viewers_show(tmp_path, orientation, size):
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif_orientation(encode(draw((40, 60), [])), orientation))
    assert read_sizes([path]) == [size]


def test_a_png_may_say_behind_its_pixels_how_it_is_turned(tmp_path):
    png = cv2.imencode(".png", NOISE)[1].tobytes()
    assert len(png) > 2**17
    tags = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 274, 3, 1, 6, 0, 0)
    chunk = b"eXIf" + tags
    chunk = struct.pack(">I", len(tags)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "a.png"
    path.write_bytes(png[:-12] + chunk + png[-12:])
    assert read_sizes([path]) == [(300, 400)] == [decoding.size_of(path.read_bytes(), name="a")]


def test_a_picture_cut_short_has_a_size_and_what_is_none_has_not(tmp_path):
    names = ("cut.jpg", "text.jpg", "empty.jpg", "missing.jpg")
    (tmp_path / "cut.jpg").write_bytes(encode(draw((40, 60), []))[:-50])
    (tmp_path / "text.jpg").write_text("cats")
    (tmp_path / "empty.jpg").touch()
    sizes = read_sizes([tmp_path / name for name in names])
    assert sizes == [(40, 60), (0, 0), (0, 0), (0, 0)]


def test_pictures_are_listed_in_order_with_those_of_inner_folders(tmp_path):
    for name in ("b/c.PNG", "b/a.jpg", "z.jpg", "a.txt", ".hidden.jpg", ".folder/x.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    found = list_pictures(tmp_path / "set", root=tmp_path / "set", where="here")
    assert [str(path.relative_to(tmp_path / "set")) for path in found] == [
        *("b/a.jpg", "b/c.PNG", "z.jpg")
    ]
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "set/link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="here: image .*link.jpg is a link that leads out of"):
        list_pictures(tmp_path / "set", root=tmp_path / "set", where="here")
