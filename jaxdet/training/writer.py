"""What a run leaves behind to look at: metrics.jsonl, eval.json, TensorBoard, pictures, a bar."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from flax.traverse_util import flatten_dict
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from jaxdet import whole_files
from jaxdet.training import log_lines, patient_files

# Seconds between two drawings of the bar; a log file gets a line each time.
BAR_SECONDS, BAR_SECONDS_IN_FILE = 0.5, 30.0
MAX_NAME = 100  # Bytes of a picture's name; file systems take 143 or 255 with all around it.


class Writer:
    """Writes the logs of one run; on all processes but the first it does nothing.

    A disk that is full or gone does not end the run: there is a line in the log,
    lines and results are tried again with the next ones, pictures are left out.
    """

    def __init__(
        self, workdir: str | Path, *, start_step: int = 0, num_steps: int = 0, active: bool = True
    ):
        """Opens the logs and cuts what lies beyond `start_step`.

        A run that was killed and resumed so leaves the lines of an unbroken one.

        Args:
            workdir: folder of the run; made where it is missing.
            start_step: steps done so far.
            num_steps: steps in all, for the bar.
            active: False on all processes but the first.

        Raises:
            OSError: if the folder cannot be written to at all.
        """
        self._workdir, self._active = Path(workdir), active
        if not active:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        # Of a run that begins anew not even what was said of its start before.
        self._open_lines(start_step or -1)
        self._board = patient_files.open_board(self._workdir, purge_step=start_step + 1)
        self._refusals = patient_files.Refusals()
        self._results: Mapping[str, Any] | None = None  # That are not written yet.
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=BAR_SECONDS if sys.stderr.isatty() else BAR_SECONDS_IN_FILE,
        )

    def advance(self) -> None:
        """Moves the bar by one step."""
        if self._active:
            self._bar.update()

    def go_back(self, step: int) -> None:
        """Forgets what was logged after a step; the run goes on from there."""
        if self._active:
            self._lines.close()
            self._open_lines(step)
            start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
            self._board.file_writer.add_event(start)  # As a resumed run's file begins.
            self._bar.n = self._bar.last_print_n = step
            self._bar.refresh()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line, at once, and the scalars among the values to TensorBoard.

        Args:
            step: steps done.
            values: numbers or arrays of numbers; None and what is not finite
                become null in the line, and are left out of TensorBoard.
        """
        if not self._active:
            return
        self._lines.write(
            (json.dumps({"step": step, **whole_files.as_json(values)}) + "\n").encode()
        )
        self._lines.flush()
        self._write_results()
        for name, value in values.items():
            if value is not None and np.ndim(value) == 0 and math.isfinite(value):
                self._board.add_scalar(name, float(value), step)

    def show(self, values: Mapping[str, float]) -> None:
        """Shows numbers beside the bar."""
        if self._active:
            self._bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in values.items()))

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self._bar.write(line, file=sys.stderr)

    def results(self, step: int, results: Mapping[str, Any]) -> None:
        """Writes an evaluation: eval.json, a line, TensorBoard.

        Args:
            step: steps done.
            results: numbers, or dicts of them, by name.
        """
        if not self._active:
            return
        self._results = results
        self.scalars(step, flatten_dict({"eval": results}, sep="/"))

    def pictures(self, step: int, pictures: Sequence[tuple[str, np.ndarray]]) -> None:
        """Writes pictures to pictures/<step>_<name>.png and to TensorBoard.

        Args:
            step: steps done.
            pictures: names and RGB pixels, (height, width, 3) uint8.
        """
        if not self._active:
            return
        for name, pixels in pictures:
            name = _shorten(re.sub(r"[^\w.-]+", "_", name))
            png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
            file = self._workdir / "pictures" / f"{step:07d}_{name}.png"
            self._refusals.attempt(file.parent, partial(_write_picture, file, png))
            # SummaryWriter.add_image would need Pillow to encode it again.
            height, width, channels = pixels.shape
            image = Summary.Image(
                encoded_image_string=png, height=height, width=width, colorspace=channels
            )
            summary = Summary(value=[Summary.Value(tag=f"pictures/{name}", image=image)])
            self._board.file_writer.add_summary(summary, step)

    def close(self) -> None:
        """Closes the files; what is refused now is lost, with a line."""
        if self._active:
            self._active = False
            self._bar.close()
            self._write_results()
            self._board.close()
            self._lines.close()

    def _open_lines(self, last_step: int) -> None:
        lines = self._workdir / log_lines.NAME
        log_lines.cut(lines, last_step)
        self._lines = patient_files.PatientFile(lines)

    def _write_results(self) -> None:
        file, results = self._workdir / "eval.json", self._results
        if results is not None and self._refusals.attempt(
            file, lambda: whole_files.write_json(file, results)
        ):
            self._results = None


def _write_picture(file: Path, png: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    try:
        file.write_bytes(png)
    except OSError:
        file.unlink(missing_ok=True)  # Half of it is none.
        raise


def _shorten(name: str) -> str:
    """A name that file systems take, still of its own."""
    encoded = name.encode()
    if len(encoded) <= MAX_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: MAX_NAME - 9].decode(errors='ignore')}-{digest}"
