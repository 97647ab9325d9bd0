import errno
import io
import json
import os
import re
import struct

import cv2
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from training.metric_lines import read_lines

from jaxdet import whole_files
from jaxdet.training import log_lines, patient_files
from jaxdet.training.writer import Writer
from jaxdet.types import UserError


@pytest.fixture
def writer(tmp_path):
    opened = Writer(tmp_path, num_steps=10)
    yield opened
    opened.close()


def test_a_line_holds_the_step_and_its_numbers(writer, tmp_path):
    writer.scalars(3, {"loss": np.float32(0.5), "confusion": np.array([[1, 2], [3, 4]]), "n": 7})
    assert read_lines(tmp_path) == [
        {"step": 3, "loss": 0.5, "confusion": [[1, 2], [3, 4]], "n": 7},
    ]


def test_numbers_that_are_not_finite_become_null(writer, tmp_path):
    writer.scalars(3, {"loss": np.float32("nan"), "AP": float("inf")})
    assert read_lines(tmp_path) == [{"step": 3, "loss": None, "AP": None}]


def test_lines_beyond_the_step_and_broken_lines_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "AP": 1}\n{"step": 3}\n{"step": 1, "lo')
    log_lines.cut(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "AP": 1}\n'


@pytest.mark.parametrize("end", [b'{"ste', b'{"ste\n', b"\xff\xfe\n"])
def test_a_last_line_that_is_no_json_is_cut(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + end)
    log_lines.cut(path, 2)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"step": null}',
        b'{"step": 1e999}',
        b'{"step": 1, "a": "\xed\xa0\x80"}',
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is damaged"):
        log_lines.cut(path, 2)
    assert path.read_bytes() == before


def test_a_resumed_run_continues_the_lines(tmp_path):
    for start_step, steps in [(0, (2, 4, 6)), (4, (6, 8))]:
        writer = Writer(tmp_path, start_step=start_step)
        for step in steps:
            writer.scalars(step, {"start": start_step})
        writer.close()
    assert [(line["step"], line["start"]) for line in read_lines(tmp_path)] == [
        (2, 0), (4, 0), (6, 4), (8, 4),
    ]  # fmt: skip


def test_results_go_to_eval_json_and_flat_into_a_line(writer, tmp_path):
    results = {"AP": 0.5, "APs": float("nan"), "per_class": {"cat": {"AP": 0.5}}}
    writer.results(8, results)
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written == {"AP": 0.5, "APs": None, "per_class": {"cat": {"AP": 0.5}}}
    assert read_lines(tmp_path) == [
        {"step": 8, "eval/AP": 0.5, "eval/APs": None, "eval/per_class/cat/AP": 0.5}
    ]


def test_pictures_are_files_in_rgb_and_tensorboard_has_them_too(writer, tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = 255
    writer.pictures(5, [("val/a b.jpg", pixels)])
    writer.close()
    (file,) = (tmp_path / "pictures").iterdir()
    assert file.name == "0000005_val_a_b.jpg.png"
    np.testing.assert_array_equal(cv2.imread(str(file))[0, 0], (0, 0, 255))
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"pictures/val_a_b.jpg" in events.read_bytes()
    assert file.read_bytes() in events.read_bytes()


@pytest.mark.parametrize("letter", ["a", "\u00e4"])
def test_names_that_are_too_long_for_a_file_stay_apart(writer, tmp_path, letter):
    names = [letter * (249 // len(letter.encode())) + end for end in ("1", "2")]
    writer.pictures(5, [(name, np.zeros((2, 2, 3), np.uint8)) for name in names])
    files = [path.name for path in (tmp_path / "pictures").iterdir()]
    assert len(files) == 2
    assert all(name.startswith(f"0000005_{letter * 9}") for name in files)
    assert all(len(name.encode()) <= 143 for name in files), "what encrypted folders take"


def refuse(path, text):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """Takes so many bytes more of what is written to these files, and no byte else."""

    def __init__(self, room):
        self.room = room

    def open(self, path, mode, buffering=-1):
        file, disk = io.FileIO(path, mode.replace("b", "")), self

        class File:
            def write(self, data):
                taken = min(disk.room, len(data))
                if data and not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.room -= taken
                return file.write(data[:taken])

            close = file.close

        return File()


def test_a_full_disk_costs_no_line_and_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    disk = FullDisk(room=150)
    monkeypatch.setattr(patient_files, "open", disk.open, raising=False)
    monkeypatch.setattr(whole_files, "replace", refuse)
    writer = Writer(tmp_path)
    for step in range(40):  # TensorBoard's queue takes ten.
        writer.scalars(step, {"loss": 0.5})
    writer.results(40, {"AP": 0.5})
    assert not (tmp_path / "eval.json").exists() and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    disk.room = 10**6
    writer.scalars(41, {"loss": 0.25})
    writer.close()
    steps = [line["step"] for line in read_lines(tmp_path)]
    assert steps == [*range(41), 41]
    assert json.loads((tmp_path / "eval.json").read_text()) == {"AP": 0.5}
    (events,) = tmp_path.glob("events.out.tfevents.*")
    values = [v for event in read_events(events) for v in event.summary.value if v.tag == "loss"]
    assert [v.simple_value for v in values] == [*[0.5] * 40, 0.25]
    said = [record.getMessage() for record in caplog.records]
    assert all(": No space left on device; the run goes on" in line for line in said)
    files = [line.split()[1].rpartition("/")[2] for line in said]
    assert len(set(files)) == len(files), "once of each file"
    assert {"metrics.jsonl", "eval.json"} <= set(files)


def test_what_a_full_disk_takes_a_part_of_is_whole_in_the_end(tmp_path, monkeypatch, caplog):
    disk = FullDisk(room=4)
    monkeypatch.setattr(patient_files, "open", disk.open, raising=False)
    file = patient_files.PatientFile(tmp_path / "log", "wb")
    file.write(b"0123456789")
    file.flush()
    assert (tmp_path / "log").read_bytes() == b"0123"
    disk.room = 99
    file.close()
    assert (tmp_path / "log").read_bytes() == b"0123456789"
    assert len(caplog.records) == 1


def read_events(path):
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_pictures_that_cannot_be_written_are_left_out(writer, tmp_path, caplog):
    (tmp_path / "pictures").write_text("in the way")
    for step in (1, 2):
        writer.pictures(step, [("a", np.zeros((2, 2, 3), np.uint8))] * 2)
    (line,) = (record.getMessage() for record in caplog.records)
    assert re.search("pictures is not written: File exists; the run goes on", line)


def test_other_processes_write_nothing(tmp_path):
    writer = Writer(tmp_path / "run", active=False)
    writer.advance()
    writer.scalars(1, {"loss": 1.0})
    writer.results(1, {"AP": 1.0})
    writer.pictures(1, [("a", np.zeros((2, 2, 3), np.uint8))])
    writer.show({"loss": 1.0})
    writer.say("hello")
    writer.close()
    assert not (tmp_path / "run").exists()
