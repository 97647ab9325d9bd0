"""Images of a source made ready for a batch: read, cleaned, resized or composed, augmented."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxdet.data import transforms
from jaxdet.data.loader import Loader
from jaxdet.data.mosaic import Composition, compose
from jaxdet.data.transforms import Augmentation, UnreadableImage
from jaxdet.types import Example, Source, UserError


class TrainImages(NamedTuple):
    """How training images are made; the settings are those of `pipeline.train_batches`."""

    source: Source
    canvas: tuple[int, int]
    resize: tuple[int | tuple[int, ...], int]
    max_proposals: int
    use_difficult: bool
    augmentation: Augmentation
    composition: Composition

    def make(
        self, indices: Iterable[int], rng: np.random.Generator, loader: Loader, *, final: bool
    ) -> tuple[Example, float]:
        """The first image that can be read, changed at random.

        Args:
            indices: into the source.
            rng: of all draws.
            loader: counts images that cannot be read.
            final: whether there are no mosaics any more.

        Returns:
            The example on the canvas, and canvas pixels per original pixel.

        Raises:
            UserError: if no image can be read, or if proposals are missing.
        """
        example = self._read(indices, loader)
        # Without mosaics no number is drawn for them: plain images stay what they were.
        chance = 0.0 if final else self.composition.mosaic
        if chance > 0 and rng.random() < chance:
            example, scale = self._compose(example, rng, loader), 1.0
        else:
            scale = self._draw_scale(example, rng)
            zoom_range = self.augmentation.zoom_range
            example, zoom = transforms.random_zoom(example, rng, zoom_range=zoom_range)
            scale *= zoom
            example = transforms.resize(example, scale)
        return transforms.augment(example, rng, settings=self.augmentation), scale

    def _compose(self, example, rng, loader):
        """A mosaic of the image and others, which are drawn from the whole source."""
        count = len(self.source)

        def fit(image):
            return transforms.resize(image, self._draw_scale(image, rng))

        def draw():
            start = int(rng.integers(count))
            return fit(self._read(((start + k) % count for k in range(count)), loader))

        return compose(fit(example), draw, rng, canvas=self.canvas, settings=self.composition)

    def _read(self, indices, loader):
        """The first example that can be decoded, clean and with the flags that training sees."""
        for index in indices:
            try:
                example = transforms.decode(self.source[index])
            except (UnreadableImage, OSError) as error:
                loader.note_unreadable(error, "replaced by the next image")
                continue
            example = transforms.clean(take_proposals(example, self.max_proposals))
            if self.use_difficult:
                return example
            return example._replace(crowd=example.crowd | example.difficult)
        raise UserError(f"none of the {len(self.source)} images can be read")

    def _draw_scale(self, example, rng):
        short = int(rng.choice(np.atleast_1d(self.resize[0])))
        return find_scale(example, (short, self.resize[1]), self.canvas)


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


def find_scale(
    example: Example, resize: tuple[int | tuple[int, ...], int], canvas: tuple[int, int]
) -> float:
    """The scale of a decoded image; of several short sides the largest counts."""
    short, long = int(max(np.atleast_1d(resize[0]))), resize[1]
    return transforms.fit_scale(example.image.shape[:2], short=short, long=long, canvas=canvas)
