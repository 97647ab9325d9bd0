import numpy as np
import pytest
from drawn_data import ListSource, make_example

from jaxdet.data import inventory, pipeline

SETTINGS = {"canvas": (40, 60), "resize": (40, 60), "max_boxes": 3, "use_difficult": False}


def count(examples, **changes):
    return inventory.count(examples, 3, **SETTINGS | changes)


def left_out(found):
    numbers = found.left_out.sum(axis=0).tolist()
    return {reason: n for reason, n in zip(inventory.REASONS, numbers, strict=True) if n}


GOOD = (2, 2, 12, 12)


@pytest.mark.parametrize(
    "box, keywords, reason",
    [
        ((2, 2, 12, 2), {}, "no area"),
        ((12, 2, 2, 12), {}, "no area"),
        ((np.nan, 2, 12, 12), {}, "no area"),
        ((70, 2, 80, 12), {}, "outside the image"),
        ((59.5, 2, 80, 12), {}, "outside the image"),
        (GOOD, {"crowd": [True, False]}, "crowd"),
        (GOOD, {"difficult": [True, False]}, "difficult"),
    ],
)
def test_an_object_that_is_not_learnt_has_a_reason(box, keywords, reason):
    example = make_example([box, GOOD], **keywords) if np.isfinite(box).all() else make_nan(box)
    found = count([example])
    assert left_out(found) == {reason: 1}
    assert found.objects.tolist() == [1, 0, 0]
    assert (found.images, found.empty, found.total) == (1, 0, 2)


def make_nan(box):
    example = make_example([GOOD, GOOD])
    return example._replace(boxes=np.array([box, GOOD], np.float32))


def test_difficult_objects_may_be_learnt():
    found = count([make_example([GOOD], difficult=[True])], use_difficult=True)
    assert left_out(found) == {} and found.objects[0] == 1


def learnt(source, **changes):
    """The labels that a training really has in its first batch."""
    settings = {"horizontal_flip": 0.0} | SETTINGS | changes
    loader = pipeline.train_batches(source, batch_size=len(source), seed=0, **settings)
    batch = next(loader)
    loader.close()
    return np.sort(batch.labels[batch.valid]).tolist()


@pytest.mark.parametrize(
    "settings, small",
    [
        ({}, 0),
        ({"min_side": 0.6}, 1),
        ({"min_side": 2}, 2),
        ({"min_side": 2, "canvas": (120, 60), "resize": (60, 120)}, 1),
        ({"min_side": 8}, 3),
        # Some draws leave it out, and others do not.
        ({"min_side": 2, "resize": ((20, 60), 120), "canvas": (120, 60)}, 1),
        ({"min_side": 2, "zoom_range": (1.6, 1.7)}, 1),
        ({"min_side": 2, "zoom_range": (0.2, 0.25)}, 3),
    ],
)
def test_objects_up_to_the_least_side_are_left_out_as_training_does_it(settings, small):
    """The image is a third as large on the canvas: 0.5, 1.3 and 4 pixels."""
    boxes = [(30, 30, 31.5, 70), (20, 40, 60, 44), (20, 50, 32, 62)]
    source = ListSource([make_example(boxes, labels=[0, 1, 2], size=(120, 60))])
    found = count(list(source), **settings)
    assert left_out(found) == ({"up to data.min_side": small} if small else {})
    if "zoom_range" not in settings:  # That also cuts off, at random.
        assert learnt(source, **settings) == np.repeat(range(3), found.objects).tolist()


@pytest.mark.parametrize(
    "settings, small",
    [
        ({"affine_zoom": (0.1, 9.0)}, 1),
        ({"affine_zoom": (0.1, 9.0), "mosaic": 0.5}, 0),
        ({"affine_zoom": (0.1, 1.5), "mosaic": 0.5}, 1),
        ({"affine_zoom": (0.1, 1.5), "mosaic": 0.5, "mixup": 0.5, "mixup_zoom": (1, 2.1)}, 0),
    ],
)
def test_mosaics_may_make_an_object_large_enough(settings, small):
    found = count([make_example([(2, 2, 6, 12)])], min_side=8, **settings)
    assert left_out(found) == ({"up to data.min_side": 1} if small else {})


def test_objects_too_small_to_learn_leave_the_slots_to_others():
    boxes = [(0, 0, 4, 40), (0, 0, 9, 9), (9, 9, 18, 18), (20, 20, 29, 29)]
    assert left_out(count([make_example(boxes)], min_side=8)) == {"up to data.min_side": 1}


@pytest.mark.parametrize("side, kept", [(31, 1), (32, 2)])
def test_images_that_are_too_small_teach_nothing_where_those_without_objects_do_not(side, kept):
    source = ListSource([make_example([GOOD], size=(side, 60)), make_example([GOOD])])
    assert left_out(count(list(source))) == {}
    found = count(list(source), keep_empty=False)
    assert left_out(found) == ({"in an image below 32 pixels": 1} if kept < 2 else {})
    assert found.objects.tolist() == [kept, 0, 0]
    assert len(pipeline.trainable(source, keep_empty=False, use_difficult=False)) == kept


def test_the_smallest_objects_find_no_slot():
    many = [(0, 0, side, side) for side in (9, 5, 7, 6, 8)]
    found = count([make_example(many, labels=[0, 1, 0, 2, 0]), make_example([GOOD])])
    assert left_out(found) == {"no slot": 2}
    assert found.objects.tolist() == [4, 0, 0]


def test_images_without_objects_and_boxes_over_an_edge_are_counted():
    crowd = make_example([GOOD], crowd=[True])
    edge = make_example([(50, 2, 61, 12), (-3, 2, 12, 12), GOOD, (50, 2, 60.4, 12)])
    found = count([make_example([]), crowd, edge], max_boxes=9)
    assert (found.images, found.empty, found.over_edge) == (3, 2, 2)


def test_nothing_is_counted_of_nothing():
    found = count([])
    assert (found.images, found.total, found.over_edge) == (0, 0, 0)


def test_the_table_has_a_column_for_each_split():
    examples = [make_example([GOOD, (70, 2, 80, 12)], labels=[1, 0]), make_example([])]
    splits = {"train": count(examples), "val": count(examples[1:])}
    assert inventory.table(splits, ("red", "green", "blue")).splitlines() == [
        "                     train  val",
        "images                   2    1",
        "  without objects        1    1",
        "objects                  1    0",
        "  red                    0    0",
        "  green                  1    0",
        "  blue                   0    0",
        "left out                 1    0",
        "  outside the image      1    0",
        "boxes over an edge       1    0",
    ]


def test_the_table_of_many_classes_shows_the_most_and_the_least_frequent():
    objects = np.arange(80)
    found = inventory.Inventory(1, 0, objects, np.zeros((80, len(inventory.REASONS)), int), 0)
    lines = inventory.table({"train": found}, [f"c{i}" for i in range(80)]).splitlines()
    assert len(lines) < 20
    assert any("c79 " in line for line in lines) and any("c0 " in line for line in lines)
    assert "80 classes" in "".join(lines)


def test_what_is_probably_a_mistake_is_said():
    edge = make_example([(50, 2, 90, 12), (-30, 2, 12, 12), GOOD])
    said = inventory.warnings(count([edge]), "train", ("red", "green", "blue"))
    assert said[0].startswith("2 of 3 boxes of train reach over an edge of their image: were")
    assert said[1] == "train has no object to learn of 2 classes: green, blue"


@pytest.mark.parametrize(
    "example, message",
    [
        (make_example([]), "train: there is no object on any of 1 images"),
        (
            make_example([GOOD], crowd=[True]),
            "of 1 objects 1 crowd; iscrowd or ignore is 1 everywhere",
        ),
        (make_example([(70, 2, 80, 12)]), "nothing to learn: of 1 objects 1 outside the image"),
        (make_example([(2, 2, 10, 20)]), "nothing to learn: of 1 objects 1 up to data.min_side"),
        (make_example([GOOD], size=(20, 90)), "of 1 objects 1 in an image below 32 pixels"),
    ],
)
def test_nothing_at_all_to_learn_is_said(example, message):
    found = count([example], min_side=8, keep_empty=False)
    (said,) = inventory.warnings(found, "train", ("red", "green", "blue"))
    assert message in said
