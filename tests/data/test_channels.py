"""Channels and scales that TIFF, BMP and PNM have beside those that other kinds have."""

import struct
import time

import cv2
import numpy as np
import pytest

from jaxdet.data import decoding
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.picture_headers import pnm_white, read_header

COLOURS = np.array([[[200, 100, 0], [60, 20, 240]]], np.uint8)
LEFT_OUT = "a 4th channel that is not said to be transparency is left out"


def _decode(data):
    put_right = PutRight()
    return decoding.decode_bytes(data, rotate=True, name="p0", put_right=put_right), put_right


def _tiff(pixels, *, extra=(), photometric=2, separate=False, orientation=1, order="<"):
    """A TIFF of pixels (height, width, channels), as OpenCV writes none."""
    height, width, channels = pixels.shape
    planes = np.moveaxis(pixels, 2, 0) if separate else [pixels]
    strips = [np.array(p).astype(pixels.dtype.newbyteorder(order)).tobytes() for p in planes]
    lists = {
        **{256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels, 259: [1]},
        262: [photometric],
        273: [8 + k * len(strips[0]) for k in range(len(strips))],
        **{274: [orientation], 277: [channels], 278: [height]},
        279: [len(strip) for strip in strips],
        284: [2 if separate else 1],
        338: list(extra),
        339: [3 if pixels.dtype.kind == "f" else 1] * channels,
    }
    data = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4) + b"".join(strips)
    entries = b""
    for tag, values in lists.items():
        if values:
            raw = struct.pack(f"{order}{len(values)}H", *values)
            if len(raw) > 4:
                raw, data = struct.pack(order + "I", len(data)), data + raw
            entries += struct.pack(order + "HHI", tag, 3, len(values)) + raw.ljust(4, b"\0")
    start = struct.pack(order + "I", len(data))
    count = struct.pack(order + "H", len(entries) // 12)
    return data[:4] + start + data[8:] + count + entries + bytes(4)


def _bmp(pixels, size, masks):
    """A BMP of one row of 32 bits, whose head has a size; three masks may stand behind it."""
    head = struct.pack("<iiHHIIiiII", pixels.size, 1, 1, 32, 3 * bool(masks), 0, 0, 0, 0, 0)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(size - 4, b"\0")
    return b"BM" + struct.pack("<4I", 0, 0, 18 + len(head), size) + head + bytes(pixels)


def _as(dtype, pixels, top=None):
    """Values of 0..255 as those of a type, up to its top."""
    top = top or {"u1": 255, "u2": 65535, "f4": 255}[dtype]
    return (pixels.astype(np.float64) * (top / 255)).astype(dtype)


def _with(alpha, pixels=COLOURS):
    return np.dstack([pixels, np.full(pixels.shape[:2], alpha, np.uint8)])


@pytest.mark.parametrize("order", "<>")
def test_planes_are_read_of_8_bits_and_refused_of_more(order):
    eight = _tiff(COLOURS, separate=True, order=order)
    np.testing.assert_array_equal(_decode(eight)[0], COLOURS)
    for dtype, bits in (("u2", 16), ("f4", 32)):
        data = _tiff(_as(dtype, COLOURS), separate=True, order=order)
        with pytest.raises(UnreadableImage, match=f"^p0: a TIFF of {bits} bits with a plane for"):
            _decode(data)
        assert decoding.size_of(data, name="p0") == (1, 2)
        whole = _tiff(_as(dtype, COLOURS), order=order)
        np.testing.assert_array_equal(_decode(whole)[0], COLOURS)
    grey = _tiff(_as("u2", COLOURS[..., :1]), separate=True, photometric=1, order=order)
    np.testing.assert_array_equal(_decode(grey)[0][..., 1], COLOURS[..., 0])


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("extra", [(0,), ()])
def test_a_fourth_channel_is_transparency_only_where_the_file_says_so(dtype, extra):
    image, put_right = _decode(_tiff(_as(dtype, _with(60)), extra=extra))
    np.testing.assert_array_equal(image, COLOURS)
    assert put_right.counts == {LEFT_OUT: 1}


def test_the_last_of_several_further_channels_tells_what_the_fourth_is():
    pixels = _as("f4", _with(255))
    for extra, counts in (((0, 0, 0), {LEFT_OUT: 1}), ((0, 0, 2), {})):
        image, put_right = _decode(_tiff(pixels, extra=extra, photometric=1))
        np.testing.assert_array_equal(image, COLOURS)
        assert put_right.counts == counts


@pytest.mark.parametrize("dtype, top", [("u1", 255), ("u2", 65535), ("f4", 1), ("f4", 255)])
@pytest.mark.parametrize("extra", [1, 2])
def test_transparency_is_laid_on_grey_whether_colours_are_multiplied_by_it_or_not(
    dtype, top, extra
):
    alpha = np.array([[[51], [255]]], np.uint8)
    covered = alpha / 255
    shown = COLOURS * covered + decoding.FILL * (1 - covered)
    stored = np.round(COLOURS * covered).astype(np.uint8) if extra == 1 else COLOURS
    pixels = _as(dtype, np.dstack([stored, alpha]), top)
    image, put_right = _decode(_tiff(pixels, extra=(extra,)))
    assert np.abs(image - shown).max() <= 1
    assert put_right.counts["what is transparent shows grey 114"] == 1
    opaque, put_right = _decode(_tiff(_as(dtype, _with(255), top), extra=(extra,)))
    np.testing.assert_array_equal(opaque, COLOURS)
    assert not any("transparent" in done for done in put_right.counts)


@pytest.mark.parametrize("colours, alpha", [(COLOURS, 51), (COLOURS >> 4, 255)])
def test_transparency_and_colours_have_the_same_bits(colours, alpha):
    pixels = _as("u2", _with(alpha, colours))
    shown = colours * (alpha / 255) + decoding.FILL * (1 - alpha / 255)
    for data in (_tiff(pixels, extra=(2,)), cv2.imencode(".png", pixels[..., [2, 1, 0, 3]])[1]):
        image, put_right = _decode(bytes(data))
        assert np.abs(image - shown).max() <= (alpha < 255)
        assert not any("bits" in done for done in put_right.counts)


def test_four_inks_are_no_channel_too_many():
    image, put_right = _decode(_tiff(_with(0, 255 - COLOURS), photometric=5))
    np.testing.assert_array_equal(image, COLOURS)
    assert not put_right.counts


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_of_several_channels_of_a_tiff_that_says_it_is_grey_the_first_is_taken(channels, extra):
    pixels = _with(0)[..., :channels]
    more = (0,) * (channels - 2) + (extra,)
    for photometric, grey in ((1, pixels[..., :1]), (0, 255 - pixels[..., :1])):
        image, put_right = _decode(_tiff(pixels, photometric=photometric, extra=more))
        np.testing.assert_array_equal(image, np.broadcast_to(grey, image.shape))
        assert put_right.counts == {"of several channels of a grey TIFF the first is taken": 1}
        data = _tiff(_as("u2", pixels), photometric=photometric, extra=more)
        found = f"^p0: a grey TIFF of 16 bits with {channels} channels, .* not read here"
        with pytest.raises(UnreadableImage, match=found):
            _decode(data)


@pytest.mark.parametrize("size", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("shifts", [(16, 8, 0), (0, 8, 16), (24, 16, 8)])
def test_a_bmp_is_transparent_only_where_it_has_a_mask_for_that(size, shifts):
    """Without one the fourth byte says nothing, and is 0 in most."""
    (alpha,) = {0, 8, 16, 24} - set(shifts)
    masks = [255 << shift for shift in shifts]
    colours = sum(COLOURS[..., k].astype("<u4") << shifts[k] for k in range(3))
    put_right = PutRight()
    for unused in (0, 60, 255):
        pixels = colours + (unused << alpha)
        image = decoding.read(_bmp(pixels, size, masks), name="p0", put_right=put_right).pixels
        np.testing.assert_array_equal(image, COLOURS)
    assert not put_right.counts
    if size >= 56:
        image, put_right = _decode(_bmp(colours, size, [*masks, 255 << alpha]))
        assert (image == decoding.FILL).all() and put_right.counts.total() == 1


@pytest.mark.parametrize("size", [40, 108])
def test_a_bmp_without_masks_is_not_transparent(size):
    pixels = np.dstack([COLOURS[..., ::-1], np.zeros((1, 2), np.uint8)]).view("<u4")
    np.testing.assert_array_equal(_decode(_bmp(pixels, size, []))[0], COLOURS)


def test_lists_of_a_tiff_that_lie_outside_of_it_say_nothing():
    data = _tiff(COLOURS, orientation=3)
    at = data.index(struct.pack("<HHI", 258, 3, 3)) + 8
    cut = data[:at] + b"\xff" * 4 + data[at + 4 :]
    header = read_header(cut)
    assert (header.size, header.orientation, header.bits) == ((1, 2), 3, 1)
    assert read_header(data).bits == 8


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
