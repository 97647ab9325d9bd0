"""An iterator that makes its elements ahead of time, and counts what went wrong."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain

from jaxdet.data.decoding import PutRight
from jaxdet.types import Example


class Loader(Iterator):
    """An iterator whose elements are made ahead of time by threads.

    Attributes:
        unreadable: number of images that could not be read so far, each time
            that one was met. May run ahead of what was handed out.
        left_out: number of objects that found no slot so far.
        put_right: counts what was done to pictures of unusual kinds so far.
        lost: the images that no batch of an evaluation has because they cannot be
            read, by their places: what is annotated on them, or None where the
            source does not know it without reading them.
    """

    def __init__(
        self, make: Callable[[int, "Loader"], Any], *, start: int, stop: int, num_threads: int
    ):
        """Starts no thread yet.

        Args:
            make: `(n, loader) -> element`, called from several threads.
            start: the first n.
            stop: one past the last n.
            num_threads: elements made at the same time.
        """
        self.unreadable = 0
        self.left_out = 0
        self.lost: dict[int, Example | None] = {}
        self.put_right = PutRight()
        self._said = set()
        self._lock = threading.Lock()
        # The buffer counts elements, here whole batches: one for each thread is enough.
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        places = grain.MapDataset.range(start, stop)
        self._iterator = iter(places.map(lambda n: make(n, self)).to_iter_dataset(options))

    def __next__(self):
        """The next element, in order whatever the number of threads."""
        return next(self._iterator)

    def close(self) -> None:
        """Stops the threads. The loader cannot be used afterwards."""
        self._iterator.close()

    def note_unreadable(self, error: Exception, consequence: str) -> None:
        """Counts an image that cannot be read and says so once for each image."""
        with self._lock:
            self.unreadable += 1
            self._say_once(str(error), "%s: %s", error, consequence)

    def note_left_out(self, example: Example, left_out: int, max_boxes: int) -> None:
        """Counts objects without a slot and says so once."""
        if left_out:
            with self._lock:
                self.left_out += left_out
                self._say_once(
                    "max_boxes",
                    "%s has %d objects more than data.max_boxes=%d; the largest are kept "
                    "(said once)",
                    example.id,
                    left_out,
                    max_boxes,
                )

    def _say_once(self, key, message, *arguments):
        if key not in self._said:
            self._said.add(key)
            logging.getLogger("jaxdet").warning(message, *arguments)
