"""Grain pipelines: shuffle, decode, augment, pad and batch in loader threads.

The order of the whole run is fixed first. Place p of that order always shows
the same image, changed by the same random draws; batch n is made of places
n * batch_size and up, and only then divided among processes. Where there are
several canvases, each image belongs to one, and each batch is of one.
"""

import numpy as np

from jaxdet.data import canvases, padding, transforms
from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.loader import Loader
from jaxdet.data.order import Order
from jaxdet.data.proposal_files import take_proposals
from jaxdet.data.ranges import (
    check_at_least,
    check_canvases,
    check_division,
    check_exif,
    check_process,
    check_resize,
    check_resize_rule,
    check_steps,
    check_train_settings,
    divide_augmentation,
)
from jaxdet.data.sources.parts import NonEmpty
from jaxdet.data.train_images import TrainImages
from jaxdet.types import Source, UserError

# More batches than a run can have; the order itself never ends.
_FOREVER = 2**40


def trainable(source: Source, *, keep_empty: bool, use_difficult: bool) -> Source:
    """The examples of a source that training uses.

    Args:
        source: the examples.
        keep_empty: see `train_batches`, as `use_difficult`.
        use_difficult: likewise.

    Raises:
        UserError: if none is left.
    """
    if not keep_empty:
        source = NonEmpty(source, use_difficult=use_difficult)
    if len(source) == 0:
        raise UserError(f"no image to train on (data.keep_empty is {keep_empty})")
    return source


def order_of_run(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    canvas: tuple[int, int],
    more_canvases: tuple[tuple[int, int], ...],
    resize: tuple[int | tuple[int, ...], int],
) -> Order:
    """Which images each batch has, and on which canvas; arguments as for `train_batches`.

    Raises:
        UserError: see `canvases.check_source`.
    """
    kinds = canvases.kinds_of(source, canvases.every(canvas, more_canvases), resize)
    return Order(kinds, seed=seed, batch_size=batch_size)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
    max_boxes: int,
    more_canvases: tuple[tuple[int, int], ...] = (),
    resize_rule: str = "rounded",
    max_proposals: int = 0,
    start_step: int = 0,
    keep_empty: bool = True,
    use_difficult: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    exif: str = "boxes",
    reduced_decoding: bool = False,
    final_start: int | None = None,
    **augmentation: float | str | tuple[float, ...],
) -> Loader:
    """Gives augmented batches without end, reshuffled in every epoch.

    The images of batch n, their order and canvas, their random draws and `index`
    depend on the source, `seed`, `batch_size` and n only. Images that cannot be read are
    replaced by the next one of that canvas in the order, and counted. Boxes are cleaned by
    `transforms.clean`. A mosaic fills its canvas at scale 1; the images that it
    is composed with are drawn evenly from the whole source, whatever the order.

    Args:
        source: the examples.
        batch_size: images of a batch over all processes.
        seed: 0 or more.
        canvas: (height, width) that images are padded to.
        resize: (short, long) sides as in `transforms.fit_scale`; with several
            several short sides one of them is drawn for each image.
        more_canvases: further ones, such as ((1344, 800),) beside a `canvas` of
            (800, 1344): each image is padded to the one on which it comes out
            largest, as annotated, and each batch is of one; () for none.
        resize_rule: how: `rounded` rounds sides and pixels, and averages them below
            half size; `torchvision` rounds sides down, and pixels stay floats, but
            in mosaics and where colours change.
        max_boxes: G, object slots of an image; the largest objects are kept.
        max_proposals: P, slots for given proposals; the best are kept, of those
            that are in the picture. With 0 the batches have none.
        start_step: n of the first batch.
        keep_empty: whether images without an object to learn, and those with a side below 32
            pixels, are used, too; see `parts.NonEmpty`.
        use_difficult: whether difficult objects are learnt; else they are crowd.
        process_index: which process this is, of `process_count`.
        process_count: number of processes that share each batch.
        num_threads: threads, each of which makes a batch at a time.
        exif: when pictures are turned as their EXIF says: by "boxes" where the
            annotated size fits the turned one, "always" or "never"; TFDS's never are.
        reduced_decoding: whether JPEGs of which a half, a quarter or an eighth of the sides is
            enough for the canvas are decoded to that: up to twice as fast, other pixels.
        final_start: batches from this n on are made without mosaics, as if those
            were off; None for never.
        **augmentation: fields of `transforms.Augmentation`, whose `zoom_range` is
            for images that become no mosaic, and of `mosaic.Composition`.

    Returns:
        Batches of NumPy arrays, of this process's images. A slot is `valid`, or
        `crowd`, or zeros and neither.

    Raises:
        UserError: for settings out of range, or if no image is left; from the
            loader, if `max_proposals` is above 0 and an example has none.
        ValueError: if `start_step` or `final_start` is below 0.
    """
    check_train_settings(
        canvas=canvas,
        resize=resize,
        more_canvases=more_canvases,
        resize_rule=resize_rule,
        max_boxes=max_boxes,
        max_proposals=max_proposals,
        keep_empty=keep_empty,
        use_difficult=use_difficult,
        num_threads=num_threads,
        exif=exif,
        reduced_decoding=reduced_decoding,
        **augmentation,
    )
    check_division(batch_size, process_count)
    check_at_least(0, seed=seed)
    check_steps(start_step=start_step, final_start=0 if final_start is None else final_start)
    composition, settings = divide_augmentation(augmentation)
    source = trainable(source, keep_empty=keep_empty, use_difficult=use_difficult)
    sides = {"canvas": canvas, "more_canvases": more_canvases, "resize": resize}
    order = order_of_run(source, batch_size=batch_size, seed=seed, **sides)
    rows = batch_size // process_count
    makers = [
        TrainImages(
            source=source,
            canvas=each,
            resize=resize,
            resize_rule=resize_rule,
            max_proposals=max_proposals,
            use_difficult=use_difficult,
            augmentation=settings,
            composition=composition,
            exif=exif,
            reduced_decoding=reduced_decoding,
        )
        for each in canvases.every(canvas, more_canvases)
    ]

    def make(step, loader):
        images = makers[order.kind(step)]
        batch = padding.blank_batch(rows, images.canvas, max_boxes, max_proposals, resize_rule)
        final = final_start is not None and step >= final_start
        for row in range(rows):
            place = step * batch_size + process_index * rows + row
            rng = np.random.default_rng((seed, place))
            example, scale = images.make(order.candidates(place), rng, loader, final=final)
            example, left_out = transforms.limit_objects(example, max_boxes)
            loader.note_left_out(example, left_out, max_boxes)
            padding.write_image(batch.images, row, example, scale)
            padding.write_objects(batch, row, example, place)
        return batch

    return Loader(make, start=start_step, stop=_FOREVER, num_threads=num_threads)


def spread(num_images: int, max_images: int) -> list[int]:
    """Which of so many images are evaluated: all for 0, else so many at most, spread evenly."""
    count = min(max_images or num_images, num_images)
    return [i * num_images // count for i in range(count)]


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
    more_canvases: tuple[tuple[int, int], ...] = (),
    resize_rule: str = "rounded",
    max_proposals: int = 0,
    max_images: int = 0,
    keep_images: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    exif: str = "boxes",
) -> Loader:
    """Gives every image once.

    Image i of n that are evaluated has the place i. A process gives, and reads, every
    `process_count`-th of them, and may give fewer batches than another.

    Args:
        source: the examples.
        batch_size: images of a batch of this process.
        canvas: (height, width) that images are padded to.
        resize: (short, long) sides; of several short sides the largest counts.
        more_canvases: further ones, as in `train_batches`. Each batch is of one, and
            the images come in order on each.
        resize_rule: as in `train_batches`.
        max_proposals: as in `train_batches`.
        max_images: above 0, so many images at most, spread evenly.
        keep_images: whether the Examples carry their original RGB pixels, for
            drawing; else their `image` is empty, so that they can be collected.
        process_index: which process this is, of `process_count`.
        process_count: number of processes that share the images.
        num_threads: threads, each of which makes a batch at a time.
        exif: as in `train_batches`.

    Returns:
        Triples of Images, the Examples of the batch in that order, and the place of
        each. Boxes, proposals and size are the original's, as the source gives them.
        Rows without an Example are blank: at the end, and in place of images that
        cannot be read, which are left out, counted, and kept in the loader's `lost`.

    Raises:
        UserError: for settings out of range; from the loader, if
            `max_proposals` is above 0 and an example has none.
    """
    check_at_least(0, max_proposals=max_proposals)
    check_at_least(1, num_threads=num_threads, batch_size=batch_size)
    check_process(process_index, process_count)
    check_canvases(canvas, more_canvases)
    check_resize(resize)
    check_resize_rule(resize_rule)
    check_exif(exif)
    chosen = spread(len(source), max_images)
    every = canvases.every(canvas, more_canvases)
    kinds = canvases.kinds_of(source, every, resize)
    batches = []
    for kind, own_canvas in enumerate(every):
        own = range(process_index, len(chosen), process_count)
        own = [place for place in own if kinds[chosen[place]] == kind]
        starts = range(0, len(own), batch_size)
        batches += [(own_canvas, own[i : i + batch_size]) for i in starts]

    def make(step, loader):
        own_canvas, own = batches[step]
        images = padding.blank_images(batch_size, own_canvas, max_proposals, resize_rule)
        examples, places = [], []
        for place in own:
            example, index = None, chosen[place]
            try:
                example = source[index]
                example = transforms.decode(example, exif=exif, put_right=loader.put_right)
            except (UnreadableImage, OSError) as error:
                if example is None and hasattr(source, "annotations"):
                    example = source.annotations()[index]
                loader.lost[place] = example and example._replace(image=b"")
                loader.note_unreadable(error, "nothing is found on it")
                continue
            shown = take_proposals(example, max_proposals)
            padding.fit_image(images, len(examples), shown, resize, resize_rule)
            examples.append(example if keep_images else example._replace(image=b""))
            places.append(place)
        return images, examples, places

    return Loader(make, start=0, stop=len(batches), num_threads=num_threads)
