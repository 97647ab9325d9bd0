"""Which images the batches of a run have, as each process writes it down."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax

from jaxdet.commands import opening
from jaxdet.training import patient_files
from jaxdet.types import Batch

NAME = "batches.{process}.jsonl"  # In the workdir.


def logged(batches: Iterator[Batch], run: opening.Run, workdir: Path, done: int) -> Iterator[Batch]:
    """The same batches, each with a line in a file once it is asked for.

    The line has the `step`, the `places` of the rows in the order of the run, and the
    `images` there: their ids, or their numbers in the source where that knows no ids. One
    that cannot be read gives way to the next; the line names the first.

    Args:
        batches: of this process; closed with these.
        run: as opened.
        workdir: of the run; lines are added to a file there, so that a run which does
            steps again also writes them again.
        done: steps before the first batch.
    """
    source, order = run.source, opening.order_of_run(run.config, run.source)
    ids = source.ids() if hasattr(source, "ids") else range(len(source))
    path = workdir / NAME.format(process=jax.process_index())
    with closing(batches), closing(patient_files.PatientFile(path)) as file:
        for step, batch in enumerate(batches, done + 1):
            places = batch.index.tolist()
            line = {"step": step, "places": places, "images": [ids[order[p]] for p in places]}
            file.write((json.dumps(line) + "\n").encode())
            file.flush()
            yield batch
