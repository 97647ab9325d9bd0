"""Files that are there whole, or not at all."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from prediction import tiny_model

from jaxdet import interop, model_file, whole_files
from jaxdet.data import proposal_files
from jaxdet.data.proposal_shape import Content
from jaxdet.report import page

ROOM = 64  # Bytes; what is written is longer.
PROPOSALS = Content(
    np.array(["0"]), np.array([50]), np.zeros((50, 4), "float32"), np.zeros(50, "float32")
)


@contextmanager
def full_disk():
    """No file gets longer than `ROOM`: writing on raises OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "name, write",
    [
        ("text", lambda path: whole_files.replace(path, "ä" * ROOM)),
        ("bytes", lambda path: whole_files.replace(path, b"a" * (ROOM + 1))),
        ("a.json", lambda path: whole_files.write_json(path, list(range(ROOM)))),
        ("a.html", lambda path: page.write(path, "<p>" * ROOM)),
        ("a.npz", lambda path: interop.save_file(path, {"a": np.arange(ROOM)})),
        ("a.safetensors", lambda path: interop.save_file(path, {"a": np.arange(ROOM)})),
        ("proposals.npz", lambda path: proposal_files._save(PROPOSALS, path)),
        ("model.safetensors", lambda path: model_file.write(path, tiny_model.draw_contents())),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_no_half_one(name, write, tmp_path):
    file = tmp_path / name
    file.write_text("old")
    with full_disk(), pytest.raises(OSError):
        write(file)

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.read_bytes() == b"old"
    write(file)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.stat().st_size > ROOM


def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path):
    whole_files.replace(tmp_path / "a", "ä\n")
    whole_files.replace(tmp_path / "b", b"\xff\r\n")

    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\xff\r\n"
