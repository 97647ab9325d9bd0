import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.evaluation.runner import restore_boxes, run
from jaxdet.types import Detections, Example, Images


def make_images(numbers, sizes=None):
    """Images that `predict` tells apart by a number, written to `scales`."""
    numbers = np.asarray(numbers, np.float32)
    sizes = np.full((len(numbers), 2), 8) if sizes is None else np.asarray(sizes)
    return Images(np.zeros((len(numbers), 8, 8, 3), np.uint8), sizes, numbers)


def make_example(id, size=(480, 640)):
    empty = np.zeros(0)
    return Example(
        id=id,
        image=b"",
        boxes=np.zeros((0, 4), np.float32),
        labels=empty.astype(np.int32),
        crowd=empty.astype(bool),
        difficult=empty.astype(bool),
        area=empty,
        size=size,
    )


@jax.jit
def predict(images):
    """Three boxes an image, the middle one invalid; the score is the image's number."""
    count = len(images.scales)
    boxes = jnp.array([[8.0, 16, 24, 32], [1, 1, 2, 2], [-5, 0, 9000, 9000]])
    return Detections(
        jnp.broadcast_to(boxes, (count, 3, 4)),
        jnp.broadcast_to(images.scales[:, None], (count, 3)),
        jnp.broadcast_to(jnp.array([2, 1, 0]), (count, 3)),
        jnp.broadcast_to(jnp.array([True, False, True]), (count, 3)),
    )


def test_boxes_come_back_in_original_pixels_clipped_to_the_image():
    boxes = np.array([[8, 16, 24, 32], [-5, 3, 90, 95]], np.float32)

    restored = restore_boxes(boxes, content=np.array([50, 75]), size=(100, 150))

    np.testing.assert_array_equal(restored, [[16, 32, 48, 64], [0, 6, 150, 100]])
    assert restored.dtype == np.float32


def test_each_axis_is_restored_by_its_own_ratio():
    # A width of 333 at scale .3 is 99.9, rounded to 100: the far edge comes back exactly.
    boxes = np.array([[0, 0, 100, 30]], np.float32)

    restored = restore_boxes(boxes, content=np.array([30, 100]), size=(100, 333))

    np.testing.assert_array_equal(restored, [[0, 0, 333, 100]])


def test_restoring_no_boxes_gives_none():
    nothing = np.zeros((0, 4), np.float32)

    assert restore_boxes(nothing, content=np.array([1, 1]), size=(1, 1)).shape == (0, 4)


def test_run_undoes_the_resize_of_each_image_and_drops_the_invalid():
    images = make_images([0.5, 0.9], [[240, 320], [20, 40]])

    rows = [make_example("a"), make_example("b", size=(10, 20))]

    found = run(predict, [(images, rows, [0, 1])])

    assert [found[place][0].id for place in range(2)] == ["a", "b"]
    detections = [found[place][1] for place in range(2)]
    np.testing.assert_array_equal(detections[0].boxes, [[16, 32, 48, 64], [0, 0, 640, 480]])
    np.testing.assert_array_equal(detections[1].boxes, [[4, 8, 12, 10], [0, 0, 20, 10]])
    np.testing.assert_array_equal(detections[1].scores, np.float32([0.9, 0.9]))
    np.testing.assert_array_equal(detections[1].labels, [2, 0])


def test_run_gives_what_is_found_by_places_and_drops_padding():
    places = [3, 0, 7, 1]
    first = make_images([3, 0, 7, 1]), [make_example(i) for i in places], places
    second = make_images([5, 6, 1, 1]), [make_example(5)], [5]

    found = run(predict, iter([first, second]))

    assert sorted(found) == [0, 1, 3, 5, 7]
    assert all(example.id == place for place, (example, _) in found.items())
    assert all(detections.scores[0] == place for place, (_, detections) in found.items())


def test_run_over_nothing_gives_nothing():
    assert run(predict, []) == {}


def test_the_next_batch_is_dispatched_before_the_last_is_fetched():
    events = []

    class Fetched:
        def __init__(self, number, array):
            self.number, self.array = number, array

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return self.array

    def dispatch(images):
        number = int(images.scales[0])
        events.append(f"predict {number}")
        boxes, scores, labels, valid = (np.asarray(field) for field in predict(images))
        return Detections(Fetched(number, boxes), scores, labels, valid)

    run(dispatch, ((make_images([i]), [make_example(i)], [i]) for i in (1, 2, 3)))

    assert events == ["predict 1", "predict 2", "fetch 1", "predict 3", "fetch 2", "fetch 3"]


def test_more_examples_than_images_are_refused():
    with pytest.raises(ValueError, match="3 examples in a batch of 2 images"):
        run(predict, [(make_images([1, 1]), [make_example(i) for i in range(3)], range(3))])
