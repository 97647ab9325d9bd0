"""Images of a source made ready for a batch: read, cleaned, resized or composed, augmented."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxdet.data import transforms
from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.loader import Loader
from jaxdet.data.mosaic import Composition, compose
from jaxdet.data.proposal_files import take_proposals
from jaxdet.data.transforms import Augmentation
from jaxdet.types import Example, Source, UserError


class TrainImages(NamedTuple):
    """How training images are made; the settings are those of `pipeline.train_batches`."""

    source: Source
    canvas: tuple[int, int]
    resize: tuple[int | tuple[int, ...], int]
    resize_rule: str
    max_proposals: int
    use_difficult: bool
    augmentation: Augmentation
    composition: Composition
    exif: str
    reduced_decoding: bool

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
        example, share = self._read(indices, loader)
        # Without mosaics no number is drawn for them: plain images stay what they were.
        chance = 0.0 if final else self.composition.mosaic
        if chance > 0 and rng.random() < chance:
            example, scale = self._compose(example, rng, loader), 1.0
        else:
            scale = self._scale(example.image.shape[:2], self._draw_short(rng))
            zoom_range = self.augmentation.zoom_range
            example, zoom = transforms.random_zoom(example, rng, zoom_range=zoom_range, share=share)
            example = transforms.resize(example, scale * zoom, self.resize_rule)
            scale *= zoom * share
        example = transforms.augment(example, rng, settings=self.augmentation)
        return transforms.drop_small(example, self.augmentation.min_side), scale

    def _compose(self, example, rng, loader):
        """A mosaic of the image and others, drawn from the whole source; its pixels are whole."""
        count = len(self.source)

        def fit(image, short):
            return transforms.resize(image, self._scale(image.image.shape[:2], short))

        def draw(to_show):
            start, short = int(rng.integers(count)), self._draw_short(rng)
            indices = ((start + k) % count for k in range(count))
            drawn, _ = self._read(indices, loader, to_show=to_show)
            return None if drawn is None else fit(drawn, short)

        first = fit(example, self._draw_short(rng))
        return compose(first, draw, rng, canvas=self.canvas, settings=self.composition)

    def _read(self, indices, loader, *, to_show=False):
        """The first example that can be decoded, clean and with the flags that training sees.

        With it comes the share of the picture's sides that was decoded. Where it is `to_show`
        an object and has none, there is nothing to decode, and None in its place.
        """
        tried = set()
        for index in indices:
            tried.add(index)
            try:
                example = take_proposals(self.source[index], self.max_proposals)
                if to_show and self._clean(example).crowd.all():
                    return None, 1.0
                example, share = transforms.decode_share(
                    example,
                    exif=self.exif,
                    put_right=loader.put_right,
                    wanted=self._largest_scale if self.reduced_decoding else None,
                )
                return transforms.move_to_share(self._clean(example), share), share
            except (UnreadableImage, OSError) as error:
                loader.note_unreadable(error, "replaced by the next image")
        height, width = self.canvas
        raise UserError(
            f"none of the {len(tried)} images for the canvas {height} x {width} can be read"
        )

    def _clean(self, example):
        example = transforms.clean(example)
        if self.use_difficult:
            return example
        return example._replace(crowd=example.crowd | example.difficult)

    def _draw_short(self, rng):
        return int(rng.choice(np.atleast_1d(self.resize[0])))

    def _scale(self, size, short):
        return transforms.fit_scale(size, short=short, long=self.resize[1], canvas=self.canvas)

    def _largest_scale(self, size):
        """Of all that may be drawn; what a mosaic zooms is resized before."""
        short = int(np.max(self.resize[0]))
        return self._scale(size, short) * max(1.0, self.augmentation.zoom_range[1])
