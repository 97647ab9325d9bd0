"""Channels and scales that TIFF and PNM have beside those that other kinds have."""

import time

import cv2
import numpy as np
import pytest

from jaxdet.data import decoding
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.picture_headers import pnm_white, read_header


def _decode(data):
    put_right = PutRight()
    return decoding.decode_bytes(data, rotate=True, name="p0", put_right=put_right), put_right


@pytest.mark.parametrize("white", [1, 7, 15, 100, 254, 255, 256, 300, 4095, 10000, 30000])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_pnm_is_as_light_as_it_says(kind, white):
    values = np.linspace(0, white, 12).round().astype(int).reshape(1, 4, 3)
    values = values if kind in ("P3", "P6") else values[..., :1]
    values[0, -1] = white
    shown = np.broadcast_to(values * 255 / white, (1, 4, 3))
    body = values.astype("u1" if white < 256 else ">u2").tobytes()
    if kind in ("P2", "P3"):
        body = b" ".join(b"%d" % value for value in values.ravel()) + b"\n"
    for comment in (b"", b"# of 7 8 9\n"):
        data = kind.encode() + b"\n" + comment + b"4 1\n" + comment + b"%d\n" % white + body
        image, put_right = _decode(data)
        # OpenCV cuts those that are written out.
        assert np.abs(image - shown).max() <= (1 if kind in ("P2", "P3") else 0.5)
        assert (image[0, -1] == 255).all() and not put_right.counts


def test_a_pnm_with_values_above_its_lightest_is_refused():
    with pytest.raises(UnreadableImage, match="^p0: has a value of 16; its header says 15 at most"):
        _decode(b"P5 2 1 15\n\x03\x10")


def test_pnms_of_bits_say_no_lightest_value_and_torn_heads_none():
    assert pnm_white(b"P4\n8 2\n255 ") is None
    assert pnm_white(b"P1\n8 2\n1 0 1") is None
    assert pnm_white(b"P5\n8 2") is None
    assert read_header(b"P5\n8").size is None
    data = cv2.imencode(".pbm", np.array([[0, 255]], np.uint8))[1].tobytes()
    assert _decode(data)[0][0, :, 0].tolist() == [0, 255]


def test_much_white_space_in_the_head_of_a_pnm_takes_no_time():
    start = time.perf_counter()
    assert read_header(b"P5" + b" " * 4000 + b"x").size is None
    assert time.perf_counter() - start < 1
