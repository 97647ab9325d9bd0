"""Which images make each batch of a run: a function of the seed and the batch's number alone."""

import bisect
import functools
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int


class Order:
    """The order of the images of a run, without end.

    Each kind of images has a stream of its own, in which every one comes once an epoch, and
    a batch has images of one kind, the next of its stream. Batches of the kinds come as if in
    every epoch the images of all kinds were met one by one, shuffled, and a batch was given
    as soon as there were enough of a kind; so there are of each as many as it has images, and
    what is left at the end of an epoch waits for the next. With one kind the batches are
    slices of one shuffled order.
    """

    def __init__(self, kinds: Int[np.ndarray, " N"], *, seed: int, batch_size: int):
        """Takes the images and nothing else of a run.

        Args:
            kinds: of each image, 0 or more; at least one image.
            seed: 0 or more.
            batch_size: images of a batch over all processes.
        """
        self._kinds, self._seed, self._batch_size = kinds, seed, batch_size
        self._members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
        self._streams = [
            grain.MapDataset.range(len(own)).shuffle(seed=seed).repeat() if len(own) else None
            for own in self._members
        ]
        self._counts = np.array([len(own) for own in self._members])
        self._in_epoch = functools.lru_cache(maxsize=2)(self._kinds_in_epoch)

    def kind(self, step: int) -> int:
        """The kind of the images of a step."""
        return self._locate(step)[0]

    def __getitem__(self, place: int) -> int:
        """The image at place `step * batch_size + row` of the run."""
        return next(self.candidates(place))

    def candidates(self, place: int) -> Iterator[int]:
        """The image at a place, then those of its kind that take its place, each at least once."""
        step, row = divmod(place, self._batch_size)
        kind, number = self._locate(step)
        members, stream = self._members[kind], self._streams[kind]
        first = number * self._batch_size + row
        # Twice as many as there are: these hold a whole epoch, wherever they begin.
        return (int(members[stream[first + k]]) for k in range(2 * len(members)))

    def _locate(self, step):
        """The kind of a step, and how many steps of that kind there were before."""
        kinds = np.flatnonzero(self._counts)
        if len(kinds) == 1:
            return int(kinds[0]), step
        # An epoch has at most one batch of each kind less than its images make.
        longest = (step + 1 + len(kinds)) * self._batch_size // len(self._kinds) + 1
        ends = range(longest + 1)
        epoch = bisect.bisect_right(ends, step, key=lambda end: self._before(end).sum()) - 1
        before = self._before(epoch)
        own = self._in_epoch(epoch)[: step - before.sum() + 1]
        kind = int(own[-1])
        return kind, int(before[kind] + np.sum(own[:-1] == kind))

    def _before(self, epoch):
        """How many batches of each kind are full before an epoch."""
        return epoch * self._counts // self._batch_size

    def _kinds_in_epoch(self, epoch):
        """The kinds of the batches that are full in an epoch, in order."""
        met = np.random.default_rng((self._seed, epoch)).permutation(self._kinds)
        full = np.zeros(len(met), bool)
        for kind, count in enumerate(self._counts):
            number = epoch * count + np.arange(count) + 1
            full[met == kind] = number % self._batch_size == 0
        return met[full]
