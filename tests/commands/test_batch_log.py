"""The log of which images the batches have."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from data.drawn_data import ListSource, make_example

from jaxdet.commands import batch_log, opening


@pytest.fixture
def run(monkeypatch):
    """A run of four images, of which the order has the last first."""
    monkeypatch.setattr(opening, "order_of_run", lambda config, source: [3, 0, 2, 1])
    return opening.Run(None, (), None, None, ListSource([make_example([])] * 4))


def batches(count):
    for step in range(count):
        yield SimpleNamespace(index=np.arange(2 * step, 2 * step + 2))


def test_each_batch_has_a_line_with_its_images(run, tmp_path):
    for done in (0, 1):  # What is done again is written again.
        for batch in batch_log.logged(batches(2 - done), run, tmp_path, done):
            assert batch.index.shape == (2,)
    lines = map(json.loads, (tmp_path / "batches.0.jsonl").read_text().splitlines())
    first = {"step": 1, "places": [0, 1], "images": [3, 0]}
    assert list(lines) == [
        first,
        {"step": 2, "places": [2, 3], "images": [2, 1]},
        first | {"step": 2},
    ]


def test_a_full_disk_costs_lines_and_no_batch(run, tmp_path, caplog):
    file = tmp_path / "batches.0.jsonl"
    file.symlink_to("/dev/full")
    assert len(list(batch_log.logged(batches(2), run, tmp_path, 0))) == 2
    first, last = (record.getMessage() for record in caplog.records)
    assert first == f"warning: {file} is not written: No space left on device; the run goes on"
    assert last.startswith("warning: the last ") and last.endswith(f"bytes of {file} are lost")
