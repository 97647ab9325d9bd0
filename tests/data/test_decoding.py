import pathlib
import runpy
import struct
import zlib
from contextlib import closing

import cv2
import numpy as np
import pytest
import simplejpeg
from drawn_data import ListSource, draw, encode, make_example, with_exif_orientation, write_voc

from jaxdet.commands import ending
from jaxdet.data import decoding, transforms
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.picture_headers import Header, read_header
from jaxdet.data.pipeline import eval_batches, train_batches
from jaxdet.data.sources.voc import read_voc
from jaxdet.data.transforms import Augmentation
from jaxdet.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
BUGS = pathlib.Path(__file__).parent / "bugs"
FUZZ = runpy.run_path(str(ROOT / "benchmarks" / "fuzz_pictures.py"))
FILES = FUZZ["pictures_of_all_kinds"]()
SETTINGS = dict(canvas=(72, 96), resize=(72, 96), num_threads=1)


def _decode(data, *, rotate=True, put_right=None):
    return decoding.decode_bytes(data, rotate=rotate, name="p0", put_right=put_right)


def _difference(image, other):
    return np.abs(image.astype(int) - other).mean()


def _png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def _tiff(pixels):
    return cv2.imencode(".tiff", pixels)[1].tobytes()


RGB_JPEG = _decode(FILES["JPEG"])
RGB, GREY = _decode(FILES["PNG"]), _decode(FILES["PNG, grey"])
BITS = np.where(GREY > 127, 255, 0)
RAMP = np.linspace(0, 1, RGB.shape[1])[None, :, None]
# Kind -> what it shows, how far off at most, in grey levels on average, and what is put right.
SHOWN = {
    "JPEG": (RGB, 2, None),
    "JPEG, progressive": (RGB, 2, None),
    "JPEG, restarts": (RGB, 2, None),
    "JPEG, grey": (GREY, 1, None),
    "JPEG, CMYK": (RGB * (230 / 255), 2, None),
    "PNG": (RGB, 0, None),
    "PNG, grey": (GREY, 0, None),
    "PNG, 1 bit": (BITS, 0, None),
    "PNG, palette": (None, 0, None),
    "PNG, palette with transparency": (None, 0, "what is transparent shows grey 114"),
    "PNG, grey and alpha": (GREY * RAMP + 114 * (1 - RAMP), 1, "what is transparent shows"),
    "PNG, RGBA": (RGB * RAMP + 114 * (1 - RAMP), 1, "what is transparent shows grey 114"),
    "PNG, 16 bits": (RGB, 0, None),
    "PNG, 12 in 16 bits": (RGB, 0, "none above 4095, are taken as 12 bits"),
    "PNG, RGBA of 16 bits": (RGB * RAMP + 114 * (1 - RAMP), 1, "what is transparent shows"),
    "TIFF": (RGB, 0, None),
    "TIFF, 1 bit": (BITS, 0, None),
    "TIFF, 10 in 16 bits": (RGB, 0, "none above 1023, are taken as 10 bits"),
    "TIFF, floats of 0 to 1": (RGB, 2, "floating-point values are taken as 0 to 1"),
    "TIFF, grey floats of 0 to 255": (GREY, 0, None),
    "TIFF, 16 bits, white is 0": (GREY, 0, None),
    "BMP": (RGB, 0, None),
    "WebP": (RGB, 4, None),
    "WebP, with alpha": (RGB * RAMP + 114 * (1 - RAMP), 1, "what is transparent shows grey 114"),
    "GIF": (RGB, 20, None),
    "PPM": (RGB, 0, None),
    "PGM, 14 in 16 bits": (GREY, 0, "none above 16383, are taken as 14 bits"),
    "PBM": (BITS, 0, None),
    "JPEG 2000": (RGB, 1, None),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_shows_what_was_drawn(kind):
    shown, tolerance, done = SHOWN[kind]
    put_right = PutRight()
    image = _decode(FILES[kind], put_right=put_right)
    assert (image.shape, image.dtype) == (RGB.shape, np.uint8)
    if shown is None:  # OpenCV reads palettes; here it is to be told whether one is transparent.
        shown = cv2.imdecode(np.frombuffer(FILES[kind], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        if done:
            index = GREY[..., 0] >> 4
            shown = np.where(index[..., None] == 0, 114, shown)
            shown = np.where(index[..., None] == 1, (shown * 128.0 + 114 * 127) / 255, shown)
            tolerance = 0.2
    assert _difference(image, shown) <= tolerance
    assert bool(put_right.counts) == bool(done) and all(done in k for k in put_right.counts)


def test_pictures_of_12_bits_are_stretched_and_counted():
    source = read_voc(root=str(BUGS / "voc-12-bit"), split="train")
    with closing(eval_batches(source, batch_size=4, keep_images=True, **SETTINGS)) as batches:
        ((_, examples, _),) = list(batches)
    assert [example.image.max() for example in examples] == [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED).max() >> 4 for path in source.paths
    ]
    assert min(example.image.mean() for example in examples) > 32, "no longer black"
    assert batches.put_right.counts == {
        "16-bit values, none above 4095, are taken as 12 bits": len(source)
    }


def test_a_jpeg_that_is_damaged_inside_counts_as_unreadable(caplog):
    source = read_voc(root=str(BUGS / "voc-damaged-jpeg"), split="train")
    with closing(eval_batches(source, batch_size=4, **SETTINGS)) as batches:
        ((_, examples, places),) = list(batches)
    assert places == [1, 2, 3]
    assert [example.id for example in examples] == ["p1", "p2", "p3"]
    assert batches.unreadable == 1
    assert "p0: not an image, or a damaged one" in caplog.text
    with closing(train_batches(source, batch_size=8, seed=0, max_boxes=8, **SETTINGS)) as batches:
        next(batches)
    assert batches.unreadable >= 1


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.startswith("JPEG")][:4])
@pytest.mark.parametrize("damage", ["cut", "zeros", "hole", "cut, with an end"])
def test_damage_to_a_jpeg_is_seen_wherever_the_rest_is_whole(kind, damage):
    data = FILES[kind]
    third = len(data) // 3
    damaged = {
        "cut": data[: 2 * third],
        "zeros": data[: 2 * third] + bytes(len(data) - 2 * third - 2) + data[-2:],
        "hole": data[: 2 * third] + data[2 * third + third // 2 :],
        "cut, with an end": data[: 2 * third] + data[-2:],
    }[damage]
    with pytest.raises(UnreadableImage, match=r"p0: not an image, or a damaged one .*JPEG"):
        _decode(damaged)


def test_a_jpeg_whose_end_is_padded_is_whole():
    data = FILES["JPEG"]
    np.testing.assert_array_equal(_decode(data[:-2] + bytes(40) + data[-2:]), _decode(data))


def test_a_jpeg_with_an_unknown_version_or_colour_transform_is_whole():
    jpeg = FILES["JPEG"]
    version = jpeg.index(b"JFIF\0") + 5
    np.testing.assert_array_equal(_decode(jpeg[:version] + b"\3" + jpeg[version + 1 :]), RGB_JPEG)
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\5"
    np.testing.assert_array_equal(_decode(jpeg[:2] + adobe + jpeg[end:]), RGB_JPEG)
    with pytest.raises(UnreadableImage, match="JPEG; "):
        _decode((jpeg[:2] + adobe + jpeg[end:])[:-300])


def test_a_transparent_entry_of_a_grey_png_is_not_looked_at():
    png = FILES["PNG, grey"]
    data = b"tRNS" + GREY[0, 0, 0].tobytes().rjust(2, b"\0")
    part = struct.pack(">I", 2) + data + struct.pack(">I", zlib.crc32(data))
    at = png.index(b"IDAT") - 4
    np.testing.assert_array_equal(_decode(png[:at] + part + png[at:]), GREY)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WebP", "PPM", "JPEG 2000", "BMP", "PNG"])
def test_a_file_that_is_cut_short_is_unreadable_and_yet_may_have_a_size(kind):
    cut = FILES[kind][: len(FILES[kind]) * 9 // 10]
    with pytest.raises(UnreadableImage, match=r"^p0: not an image, or a damaged one"):
        _decode(cut)
    assert decoding.size_of(FILES[kind], name="p0") == RGB.shape[:2]
    if kind not in ("WebP", "TIFF"):  # They say it behind, or nowhere without their pixels.
        assert decoding.size_of(cut, name="p0") == RGB.shape[:2]


@pytest.mark.parametrize("place", [2**32, 2**64 - 1])
def test_what_points_beyond_any_file_says_nothing_and_the_rest_is_heeded(place):
    big = b"II+\0\x08\0\0\0" + struct.pack("<Q", place)
    assert read_header(big) == Header("TIFF")
    with pytest.raises(UnreadableImage, match="OpenCV cannot decode it"):
        _decode(big)
    png = FILES["PNG"][:33] + FUZZ["_chunk"](b"eXIf", big) + FILES["PNG"][33:]
    assert read_header(png) == Header("PNG", RGB.shape[:2])
    np.testing.assert_array_equal(_decode(png), RGB)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_is_told_without_decoding_as_viewers_show_it(orientation, monkeypatch):
    jpeg = with_exif_orientation(FILES["JPEG"], orientation)
    wanted = _decode(jpeg).shape[:2]
    monkeypatch.setattr(decoding, "read", None)
    assert decoding.size_of(jpeg, name="p0") == wanted


@pytest.mark.parametrize("factor", ["411", "420", "422", "440", "444"])
def test_jpegs_have_the_pixels_that_opencv_gives(factor):
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
    settings = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    data = cv2.imencode(".jpg", RGB, settings)[1]
    np.testing.assert_array_equal(
        _decode(data.tobytes()), cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    )


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_opencv_turns_them(orientation):
    data = with_exif_orientation(FILES["JPEG"], orientation)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(_decode(data), expected)
    np.testing.assert_array_equal(_decode(data, rotate=False), _decode(FILES["JPEG"]))
    # The block of EXIF is the same in a PNG; a TIFF has the tag itself.
    block = data[12 : 12 + 26]
    png = FILES["PNG"][:33] + FUZZ["_chunk"](b"eXIf", block) + FILES["PNG"][33:]
    turned = decoding.Stored(
        RGB, orientation if 1 <= orientation <= 8 else 1, RGB.shape[:2]
    ).turned()
    np.testing.assert_array_equal(_decode(png), turned)
    np.testing.assert_array_equal(_decode(png, rotate=False), RGB)
    rows = RGB[..., 1].astype(np.uint16) * 257
    tiff = FUZZ["write_tiff"](rows, orientation=orientation if 1 <= orientation <= 8 else 1)
    np.testing.assert_array_equal(_decode(tiff)[..., 0], turned[..., 1])
    np.testing.assert_array_equal(_decode(tiff, rotate=False)[..., 0], RGB[..., 1])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_depth_is_the_least_that_holds_the_largest_value(bits):
    top = 2**bits - 1
    pixels = np.array([[0, top, top // 4 + 1, 1]], np.uint16)
    put_right = PutRight()
    image = _decode(_png(pixels), put_right=put_right)
    assert image[0, :, 0].tolist() == [0, 255, 64, int(bits == 8)]
    assert put_right.counts.total() == (bits < 16)


@pytest.mark.parametrize(
    "values, shown",
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([-0.004, 0.2, 1.004], [0, 51, 255]),
        ([0, 100.4, 255], [0, 100, 255]),
        ([0, 0, 0], [0, 0, 0]),
        ([0, 1, 5], None),  # Neither 0 to 1 nor 0 to 255.
        ([0, 1, 300], None),
        ([-0.5, 0, 1], None),
        ([0, np.nan, 1], None),
        ([0, np.inf, 1], None),
    ],
)
def test_floats_are_of_0_to_1_or_0_to_255_and_else_refused(values, shown):
    data = _tiff(np.array([values], np.float32))
    if shown is None:
        with pytest.raises(UnreadableImage, match="^p0: floating-point values from .* wanted 0 to"):
            _decode(data)
    else:
        assert _decode(data)[0, :, 0].tolist() == shown


@pytest.mark.parametrize(
    "data, line",
    [
        (b"", r"0 bytes; wanted JPEG, PNG, .*; the file is empty"),
        (b"<html>not found</html>", r"it begins with b'<html>not fo'"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", r"kind HEIC, .* `magick photo.heic photo.jpg`"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", r"kind AVIF, .* `magick photo.avif photo.jpg`"),
        (b"\xff\xd8\xff", "not an image, or a damaged one"),
        (FILES["PNG"][:-40], "PNG; it is cut short"),
        (FILES["PNG"][:99] + b"?" + FILES["PNG"][100:], "part IDAT has a wrong checksum"),
        (FILES["BMP"][:-2000], "BMP; OpenCV cannot decode it"),
        (_tiff(np.full((2, 2), -1, np.int16)), "values from -1 to -1; wanted 0 to 65535"),
        (_tiff(np.full((2, 2), 70000, np.int32)), "values from 70000 to 70000; wanted 0 to 65535"),
    ],
)
def test_what_is_no_picture_says_why(data, line):
    with pytest.raises(UnreadableImage, match=f"^p0: .*{line}"):
        _decode(data)


# Where a file says its width and height, and how.
SIDES = {
    "PNG": (16, ">II"),
    "BMP": (18, "<ii"),
    "GIF": (6, "<HH"),
    "JPEG": (FILES["JPEG"].index(b"\xff\xc0") + 5, ">HH"),
    "JPEG 2000": (FILES["JPEG 2000"].index(b"\xff\x51") + 6, ">II"),
}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "JPEG 2000", "PPM", "TIFF"])
def test_a_file_that_says_too_many_pixels_is_not_decoded(kind, monkeypatch):
    if kind == "PPM":
        data = b"P6 # by hand\n60000 60000\n255\n" + bytes(99)
    elif kind == "TIFF":
        tag = struct.pack("<HHI", 257, 4, 1)
        data = FILES["TIFF, 1 bit"].replace(tag + b"\x2d\0\0\0", tag + struct.pack("<I", 10**9))
    else:
        data, (place, form) = bytearray(FILES[kind]), SIDES[kind]
        struct.pack_into(form, data, place, 60000, 60000)
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(UnreadableImage, match="^p0: says that it has .* x .* pixels"):
        _decode(bytes(data))


def test_each_kind_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(PutRight, "_said", set())
    put_right = PutRight()
    for name in ("a", "b"):
        put_right.add(name, "it is green")
    PutRight().add("c", "it is green")
    assert [record.message for record in caplog.records] == [
        "a: it is green (said once; others are counted)"
    ]
    assert put_right.counts == {"it is green": 2}


def _lying(size):
    """An example of a size whose file is 40 high and 60 wide, and to be turned by EXIF."""
    data = with_exif_orientation(encode(draw((40, 60), [[12, 6, 40, 30]])), 6)
    return make_example([], size=size, id="photo")._replace(image=data)


@pytest.mark.parametrize("exif, accepted", [("boxes", {40, 60}), ("always", {60}), ("never", {40})])
def test_exif_is_followed_as_the_setting_says(exif, accepted):
    for size in ((40, 60), (60, 40)):
        if size[0] in accepted:
            assert transforms.decode(_lying(size), exif=exif).image.shape[:2] == size
        else:
            with pytest.raises(UnreadableImage, match=rf"40 x 60, .* 60 x 40 \(data.exif={exif}\)"):
                transforms.decode(_lying(size), exif=exif)
    with pytest.raises(UnreadableImage) as error:
        transforms.decode(_lying((50, 70)), exif=exif)
    assert str(error.value) == (
        "photo: annotated as 50 x 70 (height x width), but the image is 40 x 60, "
        f"turned by EXIF 60 x 40 (data.exif={exif})"
    )


def test_the_exif_setting_reaches_training_mosaics_and_evaluation():
    source = ListSource([_lying((40, 60)), make_example([[10, 8, 50, 32]], id="plain")])
    for exif, unreadable in (("boxes", 0), ("never", 0), ("always", 1)):
        with closing(eval_batches(source, batch_size=2, exif=exif, **SETTINGS)) as batches:
            assert sum(len(examples) for _, examples, _ in batches) == 2 - unreadable
        for mosaic in (0.0, 1.0):
            settings = dict(batch_size=4, seed=0, max_boxes=8, mosaic=mosaic, exif=exif)
            with closing(train_batches(source, **settings, **SETTINGS)) as batches:
                next(batches)
            assert (batches.unreadable > 0) == bool(unreadable)
    with pytest.raises(UserError, match="data.exif wants one of boxes, always, never; found 'no'"):
        eval_batches(source, batch_size=2, exif="no", **SETTINGS)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 3)])
def test_pictures_of_any_size_fit_the_canvas(size):
    pixels = np.full((*size, 3), 200, np.uint8)
    for suffix in (".png", ".jpg"):
        example = make_example([[0, 0, size[1], size[0]]], size=(40, 60))
        example = example._replace(image=encode(pixels, suffix), size=size)
        source = ListSource([example] * 4)
        with closing(eval_batches(source, batch_size=1, **SETTINGS)) as batches:
            images, _, _ = next(batches)
        height, width = images.sizes[0]
        assert (images.pixels[0, :height, :width] == 200).all()
        for mosaic in (0.0, 1.0):
            settings = dict(batch_size=1, seed=0, max_boxes=8, mosaic=mosaic)
            augmentation = Augmentation(zoom_range=(1.5, 2.0), saturation=0.5, hsv=(0.1, 0.1, 0.1))
            with closing(
                train_batches(source, **settings, **SETTINGS, **augmentation._asdict())
            ) as batches:
                assert next(batches).images.pixels.shape == (1, 72, 96, 3)


def test_all_endings_of_pictures_are_found(tmp_path):
    names = [f"p{k}" for k in range(len(decoding.SUFFIXES))]
    root = pathlib.Path(write_voc(tmp_path, {name: ((45, 61), []) for name in names}))
    for name, suffix in zip(names, decoding.SUFFIXES, strict=True):
        path = root / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(FILES["BMP"])  # What it is, its content says.
        path.rename(path.with_suffix(suffix.upper()))
    source = read_voc(root=str(root), split="train", classes=("cell",))
    assert all(
        (transforms.decode(example).image == RGB).all()
        for example in map(source.__getitem__, range(len(names)))
    )


def test_a_folder_named_as_a_picture_counts_as_unreadable(tmp_path):
    root = pathlib.Path(write_voc(tmp_path, {"p0": ((45, 61), [])}))
    (root / "JPEGImages" / "p0.jpg").unlink()
    (root / "JPEGImages" / "p0.jpg").mkdir()
    source = read_voc(root=str(root), split="train", classes=("cell",))
    with closing(eval_batches(source, batch_size=1, **SETTINGS)) as batches:
        assert [examples for _, examples, _ in batches] == [[]]
    assert batches.unreadable == 1


def test_damaged_pictures_come_to_an_image_or_to_unreadable():
    outcomes = [
        FUZZ["outcome"](data, number)
        for number, data in enumerate(FUZZ["damaged_pictures"](600, seed=1))
    ]
    assert 60 < outcomes.count("an image") < 300


@pytest.mark.parametrize("asked", [True, False])
def test_opencv_is_silent_in_a_command_and_then_as_before(monkeypatch, asked):
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    if asked:
        monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")
    logs = cv2 if hasattr(cv2, "getLogLevel") else cv2.utils.logging
    before = logs.getLogLevel()
    assert before != 0, "importing jaxdet silences nothing"
    with pytest.raises(SystemExit), ending.in_one_line(["command"]):
        assert logs.getLogLevel() == (before if asked else 0)
        raise UserError("a mistake")
    assert logs.getLogLevel() == before


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (64, 48), (481, 639)])
def test_jpegs_are_decoded_to_the_least_share_that_is_enough(size):
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8), size[::-1])
    jpeg, png = encode(pixels), _png(pixels)
    whole = decoding.read(jpeg, name="p0").pixels
    for least, share in [(2.0, 1), (0.51, 1), (0.5, 0.5), (0.26, 0.5), (0.2, 0.25), (0.01, 0.125)]:
        stored = decoding.read(jpeg, name="p0", wanted=lambda s, o=least: o)
        assert stored.size == size
        assert stored.pixels.shape[:2] == tuple(-(-side * share // 1) for side in size)
        small = cv2.resize(whole, stored.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
        if min(stored.pixels.shape[:2]) > 5:
            assert _difference(stored.pixels, small) < 3
        assert decoding.read(png, name="p0", wanted=lambda s, o=least: o).pixels.shape == (*size, 3)


def test_what_is_decoded_is_enough_whichever_way_the_picture_is_turned():
    jpeg = with_exif_orientation(encode(draw((40, 64), [])), 6)
    for enough in ((64, 40), (40, 64)):
        stored = decoding.read(
            jpeg, name="p0", wanted=lambda size, enough=enough: 0.5 if size == enough else 0.1
        )
        assert (stored.size, stored.turned_size(), stored.share) == ((40, 64), (64, 40), 0.5)
        assert stored.turned().shape[:2] == (32, 20)


def test_grey_jpegs_are_decoded_to_a_share_too():
    jpeg = cv2.imencode(".jpg", draw((40, 64), [[4, 4, 30, 30]])[..., 0])[1].tobytes()
    assert decoding.read(jpeg, name="p0", wanted=lambda size: 0.4).pixels.shape == (20, 32, 3)


def test_cmyk_jpegs_are_decoded_to_a_share_too():
    whole = _decode(FILES["JPEG, CMYK"])
    stored = decoding.read(FILES["JPEG, CMYK"], name="p0", wanted=lambda size: 0.5)
    assert (stored.share, stored.pixels.shape) == (0.5, (23, 31, 3))
    small = whole[:44, :60].reshape(22, 2, 30, 2, 3).mean((1, 3))
    assert _difference(stored.pixels[:22, :30], small) < 1


def test_a_damaged_jpeg_is_refused_at_any_share():
    jpeg = encode(draw((64, 96), [[10, 10, 50, 50]]))
    for share in decoding.SHARES:
        with pytest.raises(UnreadableImage, match="damaged one"):
            decoding.read(jpeg[: len(jpeg) // 2], name="p0", wanted=lambda size, o=share: o)
