"""The input of a training in a benchmark: jaxdet's batches, and OpenCV alone as a floor."""

import itertools
from unittest import mock

import cv2
import numpy as np
import scenes
import worker

from jaxdet.data import pipeline
from jaxdet.types import Example


class Drawn:
    """The encoded pictures of `scenes`, as a source."""

    class_names = ("object",)

    def __init__(self, size: tuple[int, int]):
        """Draws them once."""
        self._files = scenes.draw_files(size)
        self._size = size

    def __len__(self) -> int:
        """So many that an epoch outlasts the benchmark."""
        return 100_000

    def __getitem__(self, index: int) -> Example:
        """A picture with 20 boxes."""
        rng = np.random.default_rng(index)
        boxes = scenes.draw_boxes(rng, (20,), self._size, least=24, most=min(self._size) / 2)
        flags = np.zeros(len(boxes), bool)
        return Example(
            id=index,
            image=self._files[index % len(self._files)],
            boxes=boxes,
            labels=np.zeros(len(boxes), np.int32),
            crowd=flags,
            difficult=flags,
            area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64),
            size=self._size,
        )


def batches(*, size, target, batch, count, threads, mosaic=0.0) -> worker.Work:
    """Decoded, resized, flipped, padded; or mosaics of four."""
    cv2.setNumThreads(1)  # The loader's threads are all that there are.
    canvas, resize = scenes.TARGETS[target]
    source = Drawn(tuple(size))

    def start():
        # A training's batches never end, and its loader would make some ahead, while the peer
        # is timed. Here it starts with the call, which takes a millisecond, and ends with it.
        with mock.patch.object(pipeline, "_FOREVER", count):
            loader = pipeline.train_batches(
                source,
                batch_size=batch,
                seed=0,
                canvas=canvas,
                resize=resize,
                max_boxes=100,
                num_threads=threads,
                horizontal_flip=0.5,
                mosaic=mosaic,
            )
        for _ in loader:
            pass
        loader.close()

    return worker.Work(start, lambda _: None, {"count": batch * count})


def opencv(*, size, target, batch, count, **_) -> worker.Work:
    """The least that a picture costs: decoded and resized by OpenCV, on one thread."""
    cv2.setNumThreads(1)
    files = itertools.cycle(scenes.draw_files(tuple(size)))
    _, (short, long) = scenes.TARGETS[target]
    scale = min(short / min(size), long / max(size))
    wanted = tuple(round(side * scale) for side in reversed(size))

    def start():
        for file in itertools.islice(files, batch * count):
            pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
            cv2.resize(pixels, wanted)

    return worker.Work(start, lambda _: None, {"count": batch * count})


if __name__ == "__main__":
    worker.serve({"batches": batches, "opencv": opencv})
