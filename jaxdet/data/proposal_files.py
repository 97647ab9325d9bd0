"""Proposals in a file: regions of every image of a split, found beforehand.

The file is a NumPy .npz with four arrays, for n images and m proposals in all:

    ids     (n,)    strings, `str(Example.id)`; each once, in any order.
    counts  (n,)    integers, the number of proposals of each image, 0 or more.
    boxes   (m, 4)  float32 [x1, y1, x2, y2], the images one after the other in
                    the order of `ids`. Pixels of the original image, x2 and y2
                    exclusive, x1 <= x2, y1 <= y2. They may reach out of the
                    image: the batches have them clipped.
    scores  (m,)    float32, falling within each image: its best comes first.

All numbers are finite. Other types of numbers, and whole numbers for ids, are read as these.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdet import whole_files
from jaxdet.data.proposal_shape import Content, check, read
from jaxdet.data.sources.parts import Part
from jaxdet.types import Example, Source, UserError


def write(
    file: str | Path,
    ids: Sequence[str | int],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
) -> None:
    """Writes the proposals of a split in one move: a kill leaves the old file, or none.

    Proposals are sorted, best first; equal scores stay in order. What is not
    finite is refused and not dropped: a network that gives it is broken.

    Args:
        file: the path, taken as it is; its folder is made where it is missing.
        ids: `Example.id` of each image.
        boxes: (p, 4) for each image, in pixels of the original image.
        scores: (p,) for each image.

    Raises:
        UserError: for lengths that disagree, an id given twice, numbers that are
            not finite, and corners out of order; nothing is written then.
    """
    if not len(ids) == len(boxes) == len(scores):
        raise UserError(f"{file}: {len(ids)} ids, {len(boxes)} boxes and {len(scores)} scores")
    counts = np.array([np.size(their) for their in scores], np.int64)
    content = Content(
        ids=np.array([str(i) for i in ids], np.str_),
        counts=counts,
        boxes=np.empty((counts.sum(), 4), np.float32),
        scores=np.empty(counts.sum(), np.float32),
    )
    ends = np.cumsum(counts)
    for i, (some, their) in enumerate(zip(boxes, scores, strict=True)):
        if np.shape(their) != (counts[i],) or np.shape(some) != (counts[i], 4):
            raise UserError(
                f"{file}: image {str(ids[i])!r} wants boxes (p, 4) and scores (p,), "
                f"found {np.shape(some)} and {np.shape(their)}"
            )
        order = np.argsort(-np.asarray(their, np.float32), kind="stable")
        content.boxes[ends[i] - counts[i] : ends[i]] = np.asarray(some)[order]
        content.scores[ends[i] - counts[i] : ends[i]] = np.asarray(their)[order]
    check(content, file)
    _save(content, Path(file))


class WithProposals(Part):
    """A source whose examples have the proposals of a file, and which knows all that it knew.

    Arrays of the examples are views of the file's, which is read once.
    """

    def __init__(self, source: Source, file: str | Path):
        """Reads the file, and looks whether it has all images of the source.

        A source that has a method `ids` is asked for them; of others only the
        number of images is compared, and the rest shows when an image is read.

        Raises:
            UserError: if there is no such file, it is not as described above,
                or it lacks images of the source.
        """
        super().__init__(source, range(len(source)))
        self._file = file
        ids, counts, self._boxes, self._scores = read(Path(file))
        self._row = {image_id: row for row, image_id in enumerate(ids.tolist())}
        self._ends = [0, *np.cumsum(counts).tolist()]
        self._check_images()

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, with its proposals.

        Raises:
            UserError: if the file lacks the image.
        """
        example = super().__getitem__(index)
        row = self._row.get(str(example.id))
        if row is None:
            raise UserError(f"{self._file}: no proposals for image {str(example.id)!r}")
        found = slice(self._ends[row], self._ends[row + 1])
        return example._replace(proposals=self._boxes[found], proposal_scores=self._scores[found])

    def _check_images(self):
        count, list_ids = len(self._source), getattr(self._source, "ids", None)
        if list_ids is not None:
            missing = [i for i in map(str, list_ids()) if i not in self._row]
            if missing:
                raise UserError(
                    f"{self._file}: no proposals for {len(missing)} of {count} images, "
                    f"first {missing[0]!r}"
                )
        elif len(self._row) < count:
            raise UserError(
                f"{self._file}: proposals for {len(self._row)} images only, the data has {count}"
            )


def take_proposals(example: Example, max_proposals: int) -> Example:
    """The example with the proposals that are wanted, or without the ones that are not.

    Raises:
        UserError: if there are none, but `max_proposals` is above 0.
    """
    if max_proposals == 0:
        return example._replace(proposals=None, proposal_scores=None)
    if example.proposals is None or example.proposal_scores is None:
        raise UserError(
            f"image {example.id} has no scored proposals, but data.max_proposals is "
            f"{max_proposals}: name their file in data.proposals, or set data.max_proposals to 0"
        )
    return example


def _save(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.replacing(path) as half, half.open("wb") as out:
        np.savez(out, **content._asdict())
