import logging

import pytest

from jaxdet.data.sources.text import read_list
from jaxdet.text_files import read_text
from jaxdet.types import UserError

KNOWN = {"p0": 1, "p1": 1, "my photo 1": 1, "v1.0": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_text_is_read_in_the_encodings_that_programs_write(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes("p0 größer\r\n".encode(encoding))
    assert read_text(path) == "p0 größer\r\n"


@pytest.mark.parametrize(
    "data, found",
    [
        ("größer".encode("latin-1"), "0xf6 at 2"),
        (b"\xef\xbb\xbfcat\n\xe9\n", "0xe9 at 7"),  # A place counts from the file's first byte.
        (b"\xff\xfea\0\x01\xdc", "0x01 at 4"),  # Half a pair.
        (b"\xef\xbb\xbfcat\0", "0x00 at 6"),
        ("\ufeffc\0t".encode("utf-16-le"), "0x00 at 4"),  # The zeros of other letters are none.
        ("cat\0".encode("utf-16-be"), "0x00 at 6"),
    ],
)
def test_what_is_no_text_is_refused_with_the_place(tmp_path, data, found):
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"list.txt: wanted text in UTF-8 .* the byte {found}: "):
        read_text(path)


@pytest.mark.parametrize(
    "text, names",
    [
        ("p0\np1\n", ["p0", "p1"]),
        ("p0\r\n\r\n  p1", ["p0", "p1"]),
        ("p0.jpg\nfolder/p1.JPG", ["p0", "p1"]),
        ("/data/JPEGImages/p0.jpg\nJPEGImages\\p1", ["p0", "p1"]),
        ("p0  1\np1 -1\nmy photo 1", ["p0", "my photo 1"]),
        ("p0 0\np1 -1", ["p0"]),
        ("p0\t1\np1\t-1\nan old photo \t 1", ["p0", "an old photo"]),
        ("v1.0\nv1.0.jpg", ["v1.0"]),
        ("other.name", ["other.name"]),
        ("1\n-1", ["1", "-1"]),
    ],
)
def test_a_list_has_a_name_a_line(tmp_path, text, names):
    path = tmp_path / "list.txt"
    path.write_text(text)
    assert read_list(path, KNOWN, [".jpg"]) == names


def test_a_name_that_is_listed_twice_is_taken_once_and_said(tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("p1\np0\np1\np1.jpg")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        assert read_list(path, KNOWN, [".jpg"]) == ["p1", "p0"]
    assert "2 of 4 names are listed more than once, such as 'p1'" in caplog.messages[0]


@pytest.mark.parametrize("text, found", [("\n \n", "an empty file"), ("p0 -1", "1 with the flag")])
def test_a_list_of_nothing_is_refused(tmp_path, text, found):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=f"wanted names of images, one a line; found {found}"):
        read_list(path, KNOWN, [".jpg"])
