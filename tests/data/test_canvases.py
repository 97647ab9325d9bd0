"""Several canvases: which image belongs to which, and which batch is of which."""

import itertools
from contextlib import closing

import jax
import numpy as np
import pytest
from drawn_data import ListSource, draw, encode, make_example

from jaxdet.data import canvases, inventory, ranges
from jaxdet.data.order import Order
from jaxdet.data.pipeline import eval_batches, train_batches
from jaxdet.types import UserError

LYING, UPRIGHT, SQUARE = (40, 64), (64, 40), (48, 48)
SIDES = {"canvas": LYING, "more_canvases": (UPRIGHT,), "resize": (40, 64)}
RUN = {**SIDES, "seed": 5, "batch_size": 4, "max_boxes": 3}


class Known(ListSource):
    """A source that knows its annotations without reading images."""

    def annotations(self):
        return [each._replace(image=b"") for each in self.examples]


@pytest.fixture(scope="module")
def source():
    """Thirteen images, every third of which is upright; image i shows a box as wide as i + 8."""
    return Known(
        make_example(
            [[2, 2, 10 + i, 20]], labels=[i % 3], size=(60, 30) if i % 3 == 2 else (30, 60), id=i
        )
        for i in range(13)
    )


def take(count, source, **settings):
    with closing(train_batches(source, **RUN | settings)) as batches:
        return list(itertools.islice(batches, count))


def widths(batch):
    """Which image each row of a batch is."""
    sides = (batch.boxes[:, 0, 2] - batch.boxes[:, 0, 0]) / batch.images.scales
    return (np.rint(sides) - 8).astype(int).tolist()


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    "size, kind, scale",
    [
        ((30, 60), 0, 64 / 60),
        ((60, 30), 1, 64 / 60),
        ((80, 82), 2, 48 / 82),  # On the others 40 / 80 and 40 / 82.
        ((82, 80), 2, 48 / 82),
        ((400, 20), 1, 64 / 400),
        ((0, 0), 2, 48),  # Nobody knows its size.
    ],
)
def test_an_image_belongs_where_it_comes_out_largest(size, kind, scale):
    kinds, scales = canvases.fit(np.array([size] * 2), (LYING, UPRIGHT, SQUARE), (48, 64))
    assert kinds.tolist() == [kind] * 2
    np.testing.assert_allclose(scales, [scale] * 2)


def test_of_equals_the_canvas_of_fewest_pixels_is_taken_and_of_these_the_first():
    small = np.array([(20, 20), (40, 40)])
    for every, wanted in (
        ((SQUARE, LYING, UPRIGHT), 0),
        (((60, 60), SQUARE, UPRIGHT), 1),
        ((UPRIGHT, LYING, (60, 60)), 0),
    ):
        kinds, scales = canvases.fit(small, every, ((20, 40), 99))
        assert kinds.tolist() == [wanted] * 2, every
        np.testing.assert_array_equal(scales, [2, 1])
    nothing = canvases.fit(np.zeros((0, 2)), (LYING, UPRIGHT), (40, 64))
    assert [len(each) for each in nothing] == [0, 0]


def slow_order(kinds, seed, batch_size, steps):
    """Meets the images of every epoch one by one; gives kind and number of each full batch."""
    waiting, given, found = {}, {}, []
    for epoch in itertools.count():
        for kind in np.random.default_rng((seed, epoch)).permutation(kinds).tolist():
            waiting[kind] = waiting.get(kind, 0) + 1
            if waiting[kind] == batch_size:
                found.append((kind, given.get(kind, 0)))
                waiting[kind], given[kind] = 0, given.get(kind, 0) + 1
                if len(found) == steps:
                    return found


@pytest.mark.parametrize("counts", [(90, 40), (2, 300), (50, 50, 50), (0, 70, 60)])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_batches_come_as_if_the_images_were_met_one_by_one(counts, batch_size):
    kinds = np.repeat(np.arange(len(counts)), counts)
    kinds = np.random.default_rng(0).permutation(kinds)
    order, steps = Order(kinds, seed=3, batch_size=batch_size), 60
    found = slow_order(kinds, 3, batch_size, steps)
    assert [order.kind(step) for step in range(steps)] == [kind for kind, _ in found]
    for kind, count in enumerate(counts):
        mine = [step for step in range(steps) if found[step][0] == kind]
        shown = [order[s * batch_size + row] for s in mine for row in range(batch_size)]
        whole = len(shown) // max(count, 1) * count
        for epoch in np.array(shown[:whole]).reshape(-1, max(count, 1)):
            assert sorted(epoch) == np.flatnonzero(kinds == kind).tolist()


def test_a_batch_is_of_one_canvas_and_an_epoch_shows_each_image_once(source):
    batches = take(13, source, horizontal_flip=0.0)
    shapes = [batch.images.pixels.shape[1:3] for batch in batches]
    assert shapes.count(LYING) == 9 and shapes.count(UPRIGHT) == 4, "as many as it has images"
    for canvas, members in ((LYING, {0, 1, 3, 4, 6, 7, 9, 10, 12}), (UPRIGHT, {2, 5, 8, 11})):
        own = [batch for batch in batches if batch.images.pixels.shape[1:3] == canvas]
        shown = sum(map(widths, own), [])
        for start in range(0, len(shown), len(members)):
            assert set(shown[start : start + len(members)]) == members
        assert all((batch.images.sizes.max(axis=1) == 64).all() for batch in own)
    assert [batch.index.tolist() for batch in batches[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_canvases_and_images_depend_on_the_seed_and_the_step_only(source):
    whole = take(12, source)
    for one, other in zip(take(12, source, num_threads=1), whole, strict=True):
        assert_equal(one, other)
    for start in (1, 11):
        assert_equal(take(1, source, start_step=start)[0], whole[start])
    shares = [take(12, source, process_index=k, process_count=2) for k in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_equal(jax.tree.map(lambda *rows: np.concatenate(rows), *parts), batch)
    other = [batch.images.pixels.shape for batch in take(12, source, seed=6)]
    assert other != [batch.images.pixels.shape for batch in whole]


def test_a_canvas_that_no_image_needs_changes_nothing(source):
    lying = Known(each for each in source.examples if each.size == (30, 60))
    for one, other in zip(take(5, lying), take(5, lying, more_canvases=()), strict=True):
        assert_equal(one, other)


def test_unreadable_images_give_way_to_the_next_of_their_canvas(source):
    broken = Known(source.examples)
    for i in (2, 5, 0):
        broken.examples[i] = broken.examples[i]._replace(image=b"damaged")
    batches = take(13, broken, horizontal_flip=0.0)
    whole = take(13, source, horizontal_flip=0.0)
    assert [b.images.pixels.shape for b in batches] == [b.images.pixels.shape for b in whole]
    upright = sum((widths(b) for b in batches if b.images.pixels.shape[1:3] == UPRIGHT), [])
    assert len(upright) == 16 and set(upright) == {8, 11}
    for i in (8, 11):
        broken.examples[i] = broken.examples[i]._replace(image=b"damaged")
    with pytest.raises(UserError, match="none of the 4 images for the canvas 64 x 40 can be read"):
        take(13, broken)


def test_mosaics_fill_the_canvas_of_their_batch(source):
    for batch in take(6, source, mosaic=1.0, max_boxes=20):
        assert (batch.images.sizes == batch.images.pixels.shape[1:3]).all()


def test_evaluation_shows_each_image_once_on_its_own_canvas(source):
    wrong = Known(source.examples)
    wrong.examples[4] = wrong.examples[4]._replace(size=(60, 30))  # It is 30 x 60.
    for count in (1, 3):
        seen = {}
        for index in range(count):
            settings = {"process_index": index, "process_count": count, "batch_size": 3}
            with closing(eval_batches(wrong, **SIDES, **settings)) as batches:
                for images, examples, places in batches:
                    canvas = images.pixels.shape[1:3]
                    for row, (example, place) in enumerate(zip(examples, places, strict=True)):
                        assert example.id == place and place not in seen
                        seen[place] = canvas, tuple(images.sizes[row].tolist())
        assert sorted(seen) == list(range(13))
        assert seen.pop(4) == (UPRIGHT, (20, 40)), "only smaller than it could be"
        for place, found in seen.items():
            wanted = (UPRIGHT, (64, 32)) if place % 3 == 2 else (LYING, (32, 64))
            assert found == wanted


def test_sources_that_do_not_know_their_sizes_are_refused(source):
    unknown = ListSource(source.examples)
    for batches in (train_batches, eval_batches):
        settings = RUN if batches is train_batches else {**SIDES, "batch_size": 2}
        with pytest.raises(UserError, match="^data.more_canvases wants a source that knows the"):
            batches(unknown, **settings)


@pytest.mark.parametrize(
    "more, message",
    [
        ((64, 40), "data.more_canvases wants a height and a width .* found 64"),
        (((64,),), r"data.more_canvases wants a height and a width .* found \(64,\)"),
        (((64, 0),), r"wants a height and a width of at least 1 pixel each, found \(64, 0\)"),
        ((LYING,), "data.more_canvases wants others than data.canvas"),
        ((UPRIGHT, [*UPRIGHT]), "data.more_canvases wants others than data.canvas"),
        (None, "data.more_canvases wants several canvases or none, found None"),
    ],
)
def test_what_are_no_canvases_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        ranges.check_canvases(LYING, more)


def test_loaders_refuse_what_are_no_canvases(source):
    wrong = {"more_canvases": (UPRIGHT, UPRIGHT)}
    with pytest.raises(UserError, match="data.more_canvases wants others"):
        take(1, source, **wrong)
    with pytest.raises(UserError, match="data.more_canvases wants others"):
        eval_batches(source, batch_size=1, **SIDES | wrong)


def test_the_table_says_how_many_images_each_canvas_has(source):
    settings = {**SIDES, "max_boxes": 3, "use_difficult": False}
    judged = inventory.judge(source.annotations(), **settings)
    np.testing.assert_allclose(judged.scales, 64 / 60)
    table = inventory.table({"train": inventory.add_up(judged, 3)}, source.class_names)
    assert "  on canvas 40 x 64      9\n  on canvas 64 x 40      4\n" in table
    one = inventory.count(source.annotations(), 3, **settings | {"more_canvases": ()})
    assert "canvas" not in inventory.table({"train": one}, source.class_names)


def test_pictures_are_decoded_to_what_is_enough_for_their_own_canvas():
    """Of the lying ones .4 is enough, of upright ones on that canvas .27; on theirs it is .6."""
    examples = [make_example([[20, 16, 70, 60]], size=s, id=s) for s in ((100, 150), (150, 100))]
    source = Known(
        example._replace(image=encode(draw(example.size, example.boxes))) for example in examples
    )
    settings = {"canvas": (40, 60), "more_canvases": ((90, 60),), "resize": (90, 90)}
    whole, part = (take(8, source, **settings, reduced_decoding=red) for red in (False, True))
    canvases_seen = set()
    for one, other in zip(whole, part, strict=True):
        canvas = one.images.pixels.shape[1:3]
        canvases_seen.add(canvas)
        difference = np.abs(other.images.pixels.astype(int) - one.images.pixels).mean()
        assert 0 < difference < 3 if canvas == (40, 60) else difference == 0
        np.testing.assert_array_equal(other.valid, one.valid)
        np.testing.assert_allclose(other.boxes, one.boxes, atol=0.6)
        np.testing.assert_allclose(other.images.scales, one.images.scales, rtol=0.01)
    assert canvases_seen == {(40, 60), (90, 60)}
