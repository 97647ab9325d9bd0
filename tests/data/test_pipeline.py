import logging
import threading
from contextlib import closing
from itertools import islice

import jax
import numpy as np
import pytest
from drawn_data import (
    ListSource,
    draw,
    encode,
    make_example,
    with_exif_orientation,
    with_proposals,
    write_voc,
)

from jaxdet.data import proposal_files, transforms
from jaxdet.data.loader import Loader
from jaxdet.data.mosaic import Composition
from jaxdet.data.pipeline import eval_batches, spread, train_batches
from jaxdet.data.sources.voc import read_voc
from jaxdet.data.train_images import TrainImages
from jaxdet.data.transforms import Augmentation
from jaxdet.types import UserError

SETTINGS = {"batch_size": 4, "seed": 3, "canvas": (40, 60), "resize": (40, 60), "max_boxes": 3}
ALL_RANDOM = {
    "vertical_flip": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "zoom_range": (0.8, 1.3),
    "resize": ((30, 35, 40), 60),
}
COMPOSED = {"mosaic": 1.0, "affine_zoom": (0.8, 1.2), "max_boxes": 8}


def _take(count, source, **settings):
    with closing(train_batches(source, **SETTINGS | settings)) as batches:
        return list(islice(batches, count))


def _rows(batches):
    """All batches joined: arrays of (images, ...)."""
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def _assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def source():
    """Eleven images; image i shows a box that is i pixels wider than 8."""
    return ListSource(
        make_example([[10, 8, 18 + i, 28]], labels=[i % 3], id=f"image {i}") for i in range(11)
    )


def test_a_batch_holds_what_the_contract_says():
    boxes = [[2, 2, 12, 12], [20, 4, 50, 14], [5, 20, 25, 38]]
    example = make_example(
        boxes, labels=[2, 1, 0], crowd=[False, True, False], difficult=[False, False, True]
    )
    (batch,) = _take(
        1, ListSource([example]), batch_size=6, max_boxes=5, canvas=(96, 128), resize=(80, 120),
        horizontal_flip=0.0,
    )  # fmt: skip
    assert batch.images.pixels.shape == (6, 96, 128, 3)
    assert batch.images.pixels.dtype == np.uint8
    assert batch.images.proposals is None
    np.testing.assert_array_equal(batch.images.sizes, np.full((6, 2), (80, 120)))
    np.testing.assert_array_equal(batch.images.scales, np.full(6, 2.0, np.float32))
    assert np.all(batch.images.pixels[:, 80:] == 114)
    assert np.all(batch.images.pixels[:, :, 120:] == 114)
    assert batch.images.pixels[5, 10, 10].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(batch.boxes[5, :3], np.array(boxes) * 2)
    assert not batch.boxes[:, 3:].any()
    assert batch.labels[0].tolist() == [2, 1, 0, 0, 0]
    assert batch.valid[0].tolist() == [True, False, False, False, False]
    assert batch.crowd[0].tolist() == [False, True, True, False, False]
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5]
    types = [batch.boxes, batch.labels, batch.valid, batch.crowd, batch.index, batch.images.sizes]
    assert [str(a.dtype) for a in types] == ["float32", "int32", "bool", "bool", "uint32", "int32"]


def test_pixels_stay_floats_on_demand_but_where_colours_change_and_in_mosaics():
    rng = np.random.default_rng(0)
    example = make_example([[2, 2, 12, 12]])
    example = example._replace(image=rng.integers(0, 256, (40, 60, 3)).astype(np.uint8))
    floats = {"resize_rule": "torchvision", "resize": (30, 55)}
    wanted = transforms.resize(example, 0.75, "torchvision").image
    assert not np.array_equal(wanted, np.rint(wanted))

    (plain,) = _take(1, ListSource([example]), **floats, horizontal_flip=0.0)
    assert plain.images.pixels.dtype == np.float32
    np.testing.assert_array_equal(plain.images.pixels[2, :30, :45], wanted)
    assert np.all(plain.images.pixels[:, 30:] == 114) and np.all(plain.images.sizes == (30, 45))
    for changes in ({"brightness": 0.2}, {"hsv": (0.1, 0.1, 0.1)}, COMPOSED):
        (batch,) = _take(1, ListSource([example]), **floats, **changes)
        assert batch.images.pixels.dtype == np.float32
        np.testing.assert_array_equal(batch.images.pixels, np.rint(batch.images.pixels))

    with closing(eval_batches(ListSource([example]), **EVAL | floats)) as batches:
        images, _, _ = next(batches)
    np.testing.assert_array_equal(images.pixels[0, :30, :45], wanted)


def test_difficult_objects_are_learnt_on_demand():
    example = make_example([[2, 2, 12, 12], [20, 4, 50, 14]], difficult=[True, False])
    (batch,) = _take(1, ListSource([example]), use_difficult=True)
    assert batch.valid[0].tolist() == [True, True, False]
    assert not batch.crowd.any()


def test_every_epoch_shows_each_image_once_in_another_order(source):
    widths = _rows(_take(11, source, horizontal_flip=0.0)).boxes[:, 0]
    shown = (widths[:, 2] - widths[:, 0] - 8).astype(int).reshape(4, 11)
    for epoch in shown:
        assert sorted(epoch) == list(range(11))
    assert len({tuple(epoch) for epoch in shown}) == 4


def test_a_batch_depends_on_the_seed_and_its_number_only(source):
    whole = _rows(_take(6, source, **ALL_RANDOM))
    assert len({image.tobytes() for image in whole.images.pixels}) == 24
    for num_threads in (1, 7):
        _assert_equal(_rows(_take(6, source, **ALL_RANDOM, num_threads=num_threads)), whole)
    later = _rows(_take(2, source, **ALL_RANDOM, start_step=4))
    _assert_equal(later, jax.tree.map(lambda a: a[16:], whole))


def test_another_seed_gives_another_order_and_other_draws(source):
    same = {"horizontal_flip": 0.0}
    assert _shown(_take(3, source, **same)) != _shown(_take(3, source, **same, seed=4))
    single = ListSource(source.examples[:1])
    first, second = (_rows(_take(3, single, **ALL_RANDOM, seed=seed)) for seed in (3, 4))
    assert np.any(first.images.pixels != second.images.pixels)


def test_processes_share_each_batch_without_changing_it(source):
    whole = _take(3, source, **ALL_RANDOM)
    parts = [_take(3, source, **ALL_RANDOM, process_index=p, process_count=2) for p in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        _assert_equal(jax.tree.map(lambda *a: np.concatenate(a), *shares), batch)


def test_plain_images_draw_for_themselves_only(source):
    batch = _rows(_take(3, ListSource([source[2]]), **ALL_RANDOM))
    settings = {name: value for name, value in ALL_RANDOM.items() if name != "resize"}
    for place, pixels in enumerate(batch.images.pixels):
        rng = np.random.default_rng((SETTINGS["seed"], place))
        example = transforms.decode(source[2])
        scale = rng.choice([30, 35, 40]) / 40
        example, zoom = transforms.random_zoom(example, rng, zoom_range=settings["zoom_range"])
        example = transforms.resize(example, scale * zoom)
        example = transforms.augment(example, rng, settings=transforms.Augmentation(**settings))
        height, width = example.image.shape[:2]
        np.testing.assert_array_equal(pixels[:height, :width], example.image)
        assert batch.images.sizes[place].tolist() == [height, width]


def test_mosaics_depend_on_the_seed_and_the_number_of_the_batch_only(source):
    settings = {**ALL_RANDOM, **COMPOSED, "mosaic": 0.8, "mixup": 0.5, "final_start": 3}
    whole = _rows(_take(4, source, **settings))
    for num_threads in (1, 7):
        _assert_equal(_rows(_take(4, source, **settings, num_threads=num_threads)), whole)
    for start in (1, 3):
        later = _rows(_take(4 - start, source, **settings, start_step=start))
        _assert_equal(later, jax.tree.map(lambda a, s=start: a[4 * s :], whole))
    parts = [_take(4, source, **settings, process_index=p, process_count=2) for p in range(2)]
    shares = [share for batch in zip(*parts, strict=True) for share in batch]
    _assert_equal(_rows(shares), whole)


def test_final_batches_are_those_of_a_run_without_mosaics(source):
    plain = _rows(_take(3, source, **ALL_RANDOM, max_boxes=8))
    settings = {**ALL_RANDOM, **COMPOSED, "mixup": 1.0}
    found = _rows(_take(3, source, **settings, final_start=2))
    _assert_equal(*(jax.tree.map(lambda a: a[8:], rows) for rows in (found, plain)))
    _assert_equal(_rows(_take(3, source, **settings, final_start=0)), plain)
    never = _rows(_take(3, source, **settings))
    _assert_equal(*(jax.tree.map(lambda a: a[:8], rows) for rows in (found, never)))
    for ours, others in zip(never.images.pixels, plain.images.pixels, strict=True):
        assert np.any(ours != others)


def test_mosaics_fill_the_canvas_at_scale_one_and_at_the_rate_given(source):
    batch = _rows(_take(20, source, **COMPOSED | {"mosaic": 0.3}, resize=(20, 60)))
    composed = batch.images.scales == 1
    assert 0.2 < composed.mean() < 0.4
    assert np.all(batch.images.sizes[composed] == (40, 60))
    assert np.all(batch.images.sizes[~composed] == (20, 30))
    assert batch.index.tolist() == list(range(80))


def test_mosaics_are_of_the_whole_source_and_their_boxes_are_tight():
    examples = [make_example([[15, 10, 45, 30]], labels=[k]) for k in range(3)]
    settings = {**COMPOSED, "rotation": 0.0, "shear": 0.0}
    batch = _rows(_take(12, ListSource([*examples, make_example([])]), **settings))
    counts = np.bincount(batch.labels[batch.valid], minlength=3)
    assert counts.sum() > 40 and np.all(counts > 0.6 * counts.mean())
    for row, slot in np.argwhere(batch.valid):
        box, label = batch.boxes[row, slot], batch.labels[row, slot]
        # The colour ends at the box; other objects are farther away than 4 pixels.
        left, top = np.maximum(box[:2].astype(int) - 4, 0)
        right, bottom = box[2:].astype(int) + 4
        pixels = batch.images.pixels[row, top:bottom, left:right].astype(int)
        strong = pixels[..., label] - np.delete(pixels, label, axis=-1).max(-1) > 127
        rows, columns = np.flatnonzero(strong.any(1)), np.flatnonzero(strong.any(0))
        found = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
        np.testing.assert_allclose(box, found, atol=1)


def test_images_of_mosaics_are_resized_like_others():
    example = make_example([[15, 10, 45, 30]])
    settings = {**COMPOSED, "rotation": 0.0, "shear": 0.0, "affine_zoom": (1.0, 1.0)}
    batch = _rows(_take(20, ListSource([example]), **settings, resize=((20, 24), 60)))
    sides = (batch.boxes[..., 2:] - batch.boxes[..., :2])[batch.valid].round(3)
    whole = {(15, 10), (18, 12)}
    assert whole & set(map(tuple, sides.tolist())) == whole and np.all(sides <= (18, 12))


def test_difficult_and_crowd_objects_of_mosaics_are_crowd():
    flags = {"labels": [0, 1, 2], "difficult": [True, False, False], "crowd": [False, True, False]}
    source = ListSource([make_example([[2, 2, 20, 38], [22, 2, 38, 38], [40, 2, 58, 38]], **flags)])
    for use_difficult, learnt in ((False, {2}), (True, {0, 2})):
        settings = {**COMPOSED, "mixup": 1.0, "max_boxes": 20, "use_difficult": use_difficult}
        batch = _rows(_take(5, source, **settings))
        assert set(batch.labels[batch.valid]) == learnt
        assert set(batch.labels[batch.crowd]) == {0, 1, 2} - learnt
    # What shows no other objects is not mixed in.
    ignored = ListSource([source[0]._replace(crowd=np.ones(3, bool))])
    settings = {**COMPOSED, "max_boxes": 20, "affine_zoom": (1.0, 1.0), "rotation": 0.0}
    mixed, alone = (_rows(_take(3, ignored, **settings, mixup=m)) for m in (1.0, 0.0))
    np.testing.assert_array_equal((mixed.valid | mixed.crowd).sum(), alone.crowd.sum())


def test_images_that_show_nothing_are_not_decoded_to_be_mixed_in(monkeypatch):
    decode, decoded = transforms.decode_share, []

    def note(example, **settings):
        if example.id in ("empty", "shown"):  # Threads of earlier tests may still decode theirs.
            decoded.append(example.id)
        return decode(example, **settings)

    monkeypatch.setattr(transforms, "decode_share", note)
    source = ListSource([make_example([], id="empty")] * 7)
    source.examples[3] = make_example([[10, 8, 50, 32]], id="shown")
    images = TrainImages(
        source, canvas=(40, 60), resize=(40, 60), resize_rule="rounded", max_proposals=0,
            use_difficult=False, exif="boxes", reduced_decoding=False,
        augmentation=Augmentation(), composition=Composition(mosaic=1.0, mixup=1.0),
    )  # fmt: skip
    loader = Loader(lambda n, loader: n, start=0, stop=1, num_threads=1)
    mixed = 0
    for seed in range(20):
        decoded.clear()
        images.make(range(7), np.random.default_rng(seed), loader, final=False)
        assert len(decoded) == 4 or decoded[4:] == ["shown"]
        mixed += len(decoded) == 5
    assert 10 < mixed < 20


def test_small_objects_are_left_out_of_plain_and_composed_images():
    boxes = [[2, 2, 12, 8], [20, 4, 50, 14], [5, 20, 25, 38], [40, 30, 44, 34]]
    source = ListSource([make_example(boxes, labels=[0, 1, 2, 0], crowd=[False] * 3 + [True])])
    settings = {"canvas": (80, 120), "resize": (80, 120), "max_boxes": 4, "horizontal_flip": 1.0}
    batch = _rows(_take(1, source, **settings, min_side=20))
    # Twice as large: 12, 20, 36 and 8 pixels. The crowd stays.
    shown = [[70, 40, 110, 76], [32, 60, 40, 68], [0] * 4, [0] * 4]
    np.testing.assert_array_equal(batch.boxes[0], shown)
    assert batch.labels[0].tolist() == [2, 0, 0, 0]
    assert batch.valid[0].tolist() == [True, False, False, False]
    assert batch.crowd[0].tolist() == [False, True, False, False]
    # Those that are too small take no slot, and an image of which none is left is background.
    batch = _rows(_take(1, source, **settings | {"max_boxes": 1}, min_side=20))
    assert batch.labels[:, 0].tolist() == [2] * 4
    assert not _rows(_take(1, source, **settings, min_side=36)).valid.any()

    composed = {**COMPOSED, "mixup": 1.0, "max_boxes": 30}
    every, kept = (_rows(_take(5, source, **composed, min_side=side)) for side in (0.0, 11.0))
    np.testing.assert_array_equal(every.images.pixels, kept.images.pixels)
    large = every.valid & ((every.boxes[..., 2:] - every.boxes[..., :2]).min(-1) > 11)
    assert 0 < large.sum() < every.valid.sum() and every.crowd.sum() == kept.crowd.sum()
    for row in range(20):
        found = kept.boxes[row][kept.valid[row]]
        np.testing.assert_array_equal(found, every.boxes[row][large[row]])


def test_unreadable_images_of_mosaics_give_way_to_the_next(source, caplog):
    examples = [make_example([[10, 8, 50, 32]], labels=[k], id=f"image {k}") for k in range(3)]
    examples[1:1] = [examples[0]._replace(image=b"damaged", id="torn"), OSError("gone")]
    with caplog.at_level(logging.WARNING, "jaxdet"):
        batches = train_batches(
            ListSource(examples), **SETTINGS | COMPOSED, mixup=1.0, num_threads=1
        )
        with closing(batches):
            batch = _rows(list(islice(batches, 12)))
    # The two before green give way to it: it is drawn three times in five, not once.
    counts = np.bincount(batch.labels[batch.valid], minlength=3)
    assert counts[1] > 1.7 * max(counts[0], counts[2]) > 0
    assert batches.unreadable > 50
    gone, torn = sorted(record.message for record in caplog.records)
    assert gone == "gone: replaced by the next image"
    assert torn.startswith("torn: not an image, or a damaged one (7 bytes; ")
    assert torn.endswith("begins with b'damaged'): replaced by the next image")


def test_boxes_follow_their_objects_through_all_changes():
    example = make_example([[10, 8, 34, 28]])
    batch = _rows(_take(10, ListSource([example]), **ALL_RANDOM, canvas=(50, 70)))
    for pixels, boxes, valid in zip(batch.images.pixels, batch.boxes, batch.valid, strict=True):
        if valid[0]:
            red = pixels[..., 0].astype(int) - pixels[..., 1] > 80
            rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes[0], found, atol=1)
    assert batch.valid[:, 0].mean() > 0.9


@pytest.mark.parametrize("orientation, zoom", [(1, (1.0, 1.0)), (6, (1.0, 1.0)), (1, (0.5, 1.4))])
def test_boxes_follow_pictures_that_are_decoded_to_a_part(orientation, zoom):
    """A large JPEG of odd sides; the boxes, proposals and scales are those of the whole one."""
    boxes, size = [[130, 33, 301, 187]], (243, 381)
    stored = draw(size, boxes)
    stored = np.rot90(stored) if orientation == 6 else stored
    jpeg = with_exif_orientation(encode(stored), orientation)
    example = make_example(boxes, size=size)._replace(image=jpeg)
    # The second is below a pixel of what is decoded, a quarter of the sides.
    source = ListSource([with_proposals(example, [*boxes, [190, 120, 193, 122]])])
    whole, part = (
        _rows(_take(4, source, zoom_range=zoom, max_proposals=2, reduced_decoding=reduced))
        for reduced in (False, True)
    )
    difference = np.abs(part.images.pixels.astype(int) - whole.images.pixels)
    assert 0 < difference.mean() < 3, "other pixels, of the same picture"
    np.testing.assert_array_equal(part.valid, whole.valid)
    # A window begins and ends at pixels of what was decoded.
    np.testing.assert_allclose(part.boxes, whole.boxes, atol=0.6 if zoom[1] == 1 else 1.2)
    np.testing.assert_allclose(part.images.scales, whole.images.scales, rtol=0.01)
    np.testing.assert_allclose(part.images.proposals.boxes[:, 0], part.boxes[:, 0], atol=1e-4)
    np.testing.assert_array_equal(part.images.proposals.valid, whole.images.proposals.valid)
    assert part.images.proposals.valid[:, 1].sum() > 8
    for pixels, (box, *_) in zip(part.images.pixels, part.boxes, strict=True):
        red = pixels[..., 0].astype(int) - pixels[..., 1] > 80
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, found, atol=1)


@pytest.mark.parametrize("exif", ["boxes", "never"])
def test_pictures_that_stay_unturned_are_decoded_to_what_is_enough_for_them(exif):
    """Of the turned picture, 300 x 100, a quarter would be enough; of 100 x 300 it is .6."""
    example = make_example([[100, 20, 160, 80]], size=(100, 300))
    jpeg = with_exif_orientation(encode(draw(example.size, example.boxes)), 6)
    source = ListSource([example._replace(image=jpeg)])
    sides = {"canvas": (60, 180), "resize": (60, 180), "exif": exif}
    whole, part = (_take(1, source, **sides, reduced_decoding=red)[0] for red in (False, True))
    np.testing.assert_array_equal(part.images.pixels, whole.images.pixels)


@pytest.mark.parametrize(
    "size, settings",
    [
        # For 20 pixels half of the sides would be enough.
        ((60, 90), {"resize": ((20, 40, 30), 60)}),
        # At a zoom of 1 half would be, and more so at .5.
        ((100, 150), {"zoom_range": (0.5, 1.4)}),
    ],
)
def test_pictures_are_decoded_to_what_is_enough_for_the_largest_draw(size, settings):
    example = make_example([[10, 12, 50, 40]], size=size)
    source = ListSource([example._replace(image=encode(draw(size, example.boxes)))])
    whole, part = (
        _rows(_take(2, source, **settings, reduced_decoding=reduced)) for reduced in (False, True)
    )
    assert len(np.unique(whole.images.scales)) > 1, "several draws"
    np.testing.assert_array_equal(part.images.pixels, whole.images.pixels)


def test_reduced_decoding_is_refused_beside_torchvisions_resize(source):
    with pytest.raises(UserError, match="reduced_decoding wants data.resize_rule 'rounded'"):
        _take(1, source, reduced_decoding=True, resize_rule="torchvision")


def test_mosaics_of_pictures_that_are_decoded_to_a_part_are_tight():
    example = make_example([[130, 33, 301, 187]], size=(243, 381))
    example = example._replace(image=encode(draw(example.size, example.boxes)))
    settings = {**COMPOSED, "rotation": 0.0, "shear": 0.0}
    whole, part = (
        _rows(_take(3, ListSource([example]), **settings, reduced_decoding=reduced))
        for reduced in (False, True)
    )
    np.testing.assert_array_equal(part.valid, whole.valid)
    np.testing.assert_allclose(part.boxes, whole.boxes, atol=0.8)
    difference = np.abs(part.images.pixels.astype(int) - whole.images.pixels)
    assert 0 < difference.mean() < 3


def test_several_short_sides_are_all_drawn(source):
    sizes = _rows(_take(10, source, resize=((30, 40), 60))).images.sizes
    assert {tuple(size) for size in sizes} == {(30, 45), (40, 60)}


def test_an_unreadable_image_is_replaced_by_the_next_in_the_order(source, caplog):
    order = _shown(_take(6, source))
    broken = list(source.examples)
    broken[4] = broken[4]._replace(image=b"damaged")
    broken[7] = OSError("image 7 is gone")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        batches = train_batches(ListSource(broken), **SETTINGS, num_threads=2)
        with closing(batches):
            found = _shown(list(islice(batches, 6)))
    expected = order.copy()
    for place in reversed(range(len(order) - 1)):
        if expected[place] in (4, 7):
            expected[place] = expected[place + 1]
    assert found[:-1] == expected[:-1]
    assert batches.unreadable >= 4
    messages = sorted(record.message for record in caplog.records)
    assert len(messages) == 2
    assert messages[0].startswith("image 4: not an image, or a damaged one (7 bytes; ")
    assert messages[0].endswith("): replaced by the next image")
    assert messages[1] == "image 7 is gone: replaced by the next image"


def _shown(batches):
    """The numbers of the images in the batches, told from the width of their boxes."""
    boxes = _rows(batches).boxes[:, 0]
    return (boxes[:, 2] - boxes[:, 0] - 8).astype(int).tolist()


def test_no_readable_image_is_a_user_error():
    source = ListSource([make_example([])._replace(image=b"damaged")] * 3)
    with pytest.raises(UserError, match="none of the 3 images for the canvas 40 x 60 can be read"):
        _take(1, source)


def test_more_objects_than_slots_are_counted_and_said_once(caplog):
    boxes = [[0, 0, 5 + k, 5 + k] for k in range(5)]
    with caplog.at_level(logging.WARNING, "jaxdet"):
        batches = train_batches(ListSource([make_example(boxes, id="full")]), **SETTINGS)
        with closing(batches):
            batch = next(batches)
            next(batches)
    np.testing.assert_array_equal(np.sort(batch.boxes[0, :, 3]), [7, 8, 9])
    assert batches.left_out >= 2 * 4 * 2
    assert [record.message for record in caplog.records] == [
        "full has 2 objects more than data.max_boxes=3; the largest are kept (said once)"
    ]


def test_images_without_objects_are_kept_or_not(source):
    mixed = ListSource([*source.examples[:2], make_example([]), make_example([])])
    assert (_rows(_take(4, mixed)).valid.sum(1) == 0).sum() == 8
    assert _rows(_take(4, mixed, keep_empty=False)).valid.any(1).all()
    with pytest.raises(UserError, match="no image to train on .*keep_empty is False"):
        _take(1, ListSource([make_example([])]), keep_empty=False)


EVAL = {"batch_size": 4, "canvas": (50, 60), "resize": (40, 60)}


def _evaluate(source, **settings):
    with closing(eval_batches(source, **EVAL | settings)) as batches:
        return list(batches), batches


def test_evaluation_shows_every_image_once_in_order(source):
    found, _ = _evaluate(source)
    assert [len(examples) for _, examples, _ in found] == [4, 4, 3]
    assert [e.id for _, examples, _ in found for e in examples] == [f"image {i}" for i in range(11)]
    for images, examples, _ in found:
        assert images.pixels.shape == (4, 50, 60, 3)
        for row, example in enumerate(examples):
            assert example.image == b""
            x1, y1, x2, y2 = example.boxes[0].astype(int)
            inside = images.pixels[row, y1:y2, x1:x2]
            assert (inside.max(-1) == 255).all() and (inside.min(-1) == 0).all()
    last = found[-1][0]
    assert last.sizes[2:].tolist() == [[40, 60], [50, 60]]
    assert np.all(last.pixels[3] == 114)


def test_evaluation_keeps_the_original_images_on_demand(source):
    (_, examples, _), *_ = _evaluate(source, keep_images=True, resize=(20, 60))[0]
    for given, example in zip(source, examples, strict=False):
        np.testing.assert_array_equal(example.image, transforms.decode(given).image)


def test_evaluation_takes_objects_as_they_are_and_training_cleans_them():
    boxes = [[10, 8, 30, 28], [50, 30, 70, 50], [10, 10, 10, 20]]
    example = make_example(boxes, labels=[0, 1, 2])
    source = ListSource([example._replace(image=make_example([]).image)])
    (_, (evaluated,), _), *_ = _evaluate(source)[0]
    np.testing.assert_array_equal(evaluated.boxes, boxes)
    (batch,) = _take(1, source, horizontal_flip=0.0)
    np.testing.assert_array_equal(batch.boxes[0], [boxes[0], [50, 30, 60, 40], [0] * 4])
    assert batch.valid[0].tolist() == [True, True, False]


def test_evaluation_keeps_what_unreadable_images_show_and_counts_them(source, caplog):
    broken = list(source.examples)
    broken[1] = broken[1]._replace(image=b"damaged")
    with caplog.at_level(logging.WARNING, "jaxdet"):
        found, batches = _evaluate(ListSource(broken))
    _, examples, places = found[0]
    assert [e.id for e in examples] == ["image 0", "image 2", "image 3"]
    assert places == [0, 2, 3]
    assert np.all(found[0][0].pixels[3] == 114)
    assert batches.unreadable == 1
    assert list(batches.lost) == [1]
    assert (batches.lost[1].id, batches.lost[1].image) == ("image 1", b"")
    np.testing.assert_array_equal(batches.lost[1].boxes, broken[1].boxes)
    assert caplog.records[0].message.endswith("nothing is found on it")


@pytest.mark.parametrize(
    "num_images, max_images, chosen",
    [(8, 3, [0, 2, 5]), (3, 0, [0, 1, 2]), (2, 9, [0, 1]), (0, 3, [])],
)
def test_images_to_evaluate_are_spread_evenly(num_images, max_images, chosen):
    assert spread(num_images, max_images) == chosen


@pytest.mark.parametrize("max_images", [0, 4, 99])
def test_processes_share_the_images_of_an_evaluation(source, max_images):
    broken = ListSource(source.examples)
    broken.examples[8] = broken.examples[8]._replace(image=b"damaged")

    def gather(index, count):
        settings = {"process_index": index, "process_count": count, "max_images": max_images}
        found, batches = _evaluate(broken, batch_size=2, **settings)
        shown = {
            place: (images.pixels[row], example.id)
            for images, examples, places in found
            for row, (example, place) in enumerate(zip(examples, places, strict=True))
        }
        return shown, {place: example.id for place, example in batches.lost.items()}

    whole, lost = gather(0, 1)
    assert sorted([*whole, *lost]) == list(range(max_images % 99 or 11)) and len(lost) == 1
    for count in (2, 3, 12):
        shares = [gather(index, count) for index in range(count)]
        assert sum(len(own) for own, _ in shares) == len(whole), "each once"
        for name, wanted in enumerate((whole, lost)):
            joined = {k: v for share in shares for k, v in share[name].items()}
            assert joined.keys() == wanted.keys()
            for place in wanted:
                _assert_equal(joined[place], wanted[place])
    with pytest.raises(ValueError, match="process_index wants 0 to 1, found 2"):
        gather(2, 2)


@pytest.mark.parametrize(
    "count, ids", [(1, [0]), (4, [0, 2, 5, 8]), (11, range(11)), (99, range(11))]
)
def test_evaluation_takes_an_even_part(source, count, ids):
    found, _ = _evaluate(source, max_images=count)
    assert [e.id for _, examples, _ in found for e in examples] == [f"image {i}" for i in ids]


def test_evaluation_takes_the_largest_short_side_and_no_object_is_needed():
    found, _ = _evaluate(ListSource([make_example([])]), resize=((20, 30), 60))
    assert found[0][0].sizes[0].tolist() == [30, 45]


def test_evaluation_of_an_empty_source_ends_at_once():
    assert _evaluate(ListSource([]))[0] == []


def test_a_closed_loader_ends_its_threads(source):
    before = set(threading.enumerate())
    batches = train_batches(source, **SETTINGS)
    next(batches)
    ours = set(threading.enumerate()) - before
    assert ours
    batches.close()
    for thread in ours:
        thread.join(timeout=10)  # It ends with the batch that it is making.
        assert not thread.is_alive()


def test_files_go_the_whole_way(tmp_path):
    images = {f"i{k}": ((40, 60), [("cat", (5, 5, 20, 20))]) for k in range(3)}
    source = read_voc(root=write_voc(tmp_path, images), split="train")
    (tmp_path / "JPEGImages/i1.jpg").unlink()
    (batch,) = _take(1, source)
    assert batch.valid.sum() == 4


@pytest.fixture(scope="module")
def proposing(source):
    """The eleven images; image i has i proposals, of which the first is its object's box."""
    return ListSource(
        with_proposals(e, [e.boxes[0], *([[k, k, 30 + k, 20 + k] for k in range(10)])][:i])
        for i, e in enumerate(source)
    )


def test_a_batch_holds_the_best_proposals_and_says_which_are_real():
    boxes = [[2, 2, 12, 12], [50, 30, 70, 50], [70, 0, 90, 9], [5, 20, 25, 38]]
    example = with_proposals(make_example([]), boxes, scores=[0.75, 0.5, 0.25, 0.125])
    settings = {"canvas": (96, 128), "resize": (80, 120), "horizontal_flip": 0.0}
    (batch,) = _take(1, ListSource([example]), max_proposals=5, **settings)
    found = batch.images.proposals
    assert (found.boxes.shape, found.scores.shape, found.valid.shape) == (
        (4, 5, 4),
        (4, 5),
        (4, 5),
    )
    assert [str(a.dtype) for a in found] == ["float32", "float32", "bool"]
    # The third lies outside; the resize doubles the others.
    kept = [[4, 4, 24, 24], [100, 60, 120, 80], [10, 40, 50, 76], [0] * 4, [0] * 4]
    np.testing.assert_array_equal(found.boxes, np.tile(np.float32(kept), (4, 1, 1)))
    assert found.scores[3].tolist() == [0.75, 0.5, 0.125, 0, 0]
    assert found.valid[1].tolist() == [True, True, True, False, False]
    (batch,) = _take(1, ListSource([example]), max_proposals=2, **settings)
    np.testing.assert_array_equal(batch.images.proposals.boxes[2], kept[:2])
    assert batch.images.proposals.valid.all()


def test_proposals_that_are_not_wanted_are_left_out(proposing):
    unscored = [example._replace(proposal_scores=None) for example in proposing]
    (batch,) = _take(1, ListSource(unscored))
    assert batch.images.proposals is None
    (images, examples, _), *_ = _evaluate(proposing)[0]
    assert images.proposals is None
    assert examples[3].proposals.shape == (3, 4)


def test_images_without_proposals_are_refused_with_the_keys_to_set(source):
    message = (
        "image image 0 has no scored proposals, but data.max_proposals is 5: "
        "name their file in data.proposals, or set data.max_proposals to 0"
    )
    without = source.examples[0]
    for example in (without, without._replace(proposals=np.zeros((1, 4), np.float32))):
        with pytest.raises(UserError) as error:
            _take(1, ListSource([example]), max_proposals=5)
        assert str(error.value) == message
    with pytest.raises(UserError) as error:
        _evaluate(source, max_proposals=5)
    assert str(error.value) == message


def test_a_batch_with_proposals_depends_on_the_seed_and_its_number_only(proposing):
    settings = {**ALL_RANDOM, "max_proposals": 4}
    whole = _rows(_take(6, proposing, **settings))
    assert set(whole.images.proposals.valid.sum(1)) == {0, 1, 2, 3, 4}
    for num_threads in (1, 7):
        _assert_equal(_rows(_take(6, proposing, **settings, num_threads=num_threads)), whole)
    parts = [_take(6, proposing, **settings, process_index=p, process_count=2) for p in range(2)]
    shares = [share for batch in zip(*parts, strict=True) for share in batch]
    _assert_equal(_rows(shares), whole)
    without = _rows(_take(6, proposing, **ALL_RANDOM))
    _assert_equal(without, whole._replace(images=whole.images._replace(proposals=None)))


def test_proposals_follow_the_objects_through_all_changes(proposing):
    batch = _rows(_take(10, proposing, **ALL_RANDOM, max_proposals=1, canvas=(50, 70)))
    found = batch.images.proposals
    both = found.valid[:, 0] & batch.valid[:, 0]
    assert both.sum() > 30
    np.testing.assert_array_equal(found.boxes[both, 0], batch.boxes[both, 0])
    assert not found.boxes[~found.valid].any() and not found.scores[~found.valid].any()


def test_evaluation_resizes_proposals_and_keeps_the_original_ones():
    boxes = [[-10, 2, 12, 12], [70, 0, 90, 9], [20, 10, 60, 40]]
    examples = [with_proposals(make_example([[0, 0, 9, 9]], id=k), boxes) for k in range(3)]
    examples[1] = examples[1]._replace(image=b"damaged")
    ((images, shown, places),) = _evaluate(ListSource(examples), resize=(20, 30), max_proposals=3)[
        0
    ]
    assert [e.id for e in shown] == places == [0, 2]
    for example in shown:
        np.testing.assert_array_equal(example.proposals, boxes)
        assert example.proposal_scores.tolist() == [1, 0.875, 0.75]
    found = images.proposals
    resized = [[0, 1, 6, 6], [10, 5, 30, 20], [0] * 4]
    np.testing.assert_array_equal(found.boxes[:2], [resized, resized])
    assert found.scores[1].tolist() == [1, 0.75, 0]
    assert found.valid[0].tolist() == [True, True, False]
    # The last rows: the damaged image's, and one that fills up the batch.
    assert found.valid.shape == (4, 3)
    assert not found.boxes[2:].any() and not found.scores[2:].any() and not found.valid[2:].any()


def test_a_proposals_file_goes_the_whole_way(tmp_path):
    images = {f"i{k}": ((40, 60), [("cat", (5, 5, 20, 20))]) for k in range(3)}
    source = read_voc(root=write_voc(tmp_path, images), split="train")
    boxes = [np.float32([[k, 0, 10 + k, 10], [0, 0, 5, 5]]) for k in range(3)]
    proposal_files.write(
        tmp_path / "p.npz", ["i2", "i1", "i0"], boxes[::-1], [np.array([2.0, 1])] * 3
    )
    source = proposal_files.WithProposals(source, tmp_path / "p.npz")
    (batch,) = _take(1, source, batch_size=3, keep_empty=False, max_proposals=2, vertical_flip=0.0)
    assert batch.images.proposals.valid.all()
    (images, examples, _), *_ = _evaluate(source, max_proposals=2)[0]
    assert [e.id for e in examples] == ["i0", "i1", "i2"]
    np.testing.assert_array_equal(images.proposals.boxes[:3], boxes)


def test_blood_cells_fill_their_batches(bccd):
    source = read_voc(root=bccd, split="test", classes=("RBC", "WBC", "Platelets"))
    found, _ = _evaluate(source, batch_size=24, canvas=(240, 320), resize=(240, 320))
    assert sum(len(examples) for _, examples, _ in found) == 72
    assert all((images.sizes == (240, 320)).all() for images, _, _ in found)
    # White cells are the violet ones: greener values are lower inside than around.
    for images, examples, _ in found:
        for pixels, example in zip(images.pixels, examples, strict=True):
            for x1, y1, x2, y2 in (example.boxes[example.labels == 1] / 2).astype(int):
                assert pixels[y1:y2, x1:x2, 1].mean() < pixels[..., 1].mean()
