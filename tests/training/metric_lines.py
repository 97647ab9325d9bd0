"""The lines of a run's metrics.jsonl."""

import json

# What a clock gives: the only entries of a line that may differ between two runs.
TIMES = ("first_step_seconds", "images_per_second", "data_wait")


def read_lines(workdir):
    """The lines as dicts, without `TIMES`."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
