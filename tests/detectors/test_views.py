"""Prediction on several views of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import views
from jaxdet.detectors.settings import Suppress
from jaxdet.types import Detections, Detector, Images, Proposals, UserError

SUPPRESS = Suppress(score_threshold=0.1, iou_threshold=0.5, max_detections=4, max_candidates=40)
MERGE = views.merger(SUPPRESS, num_classes=2)


def make(predict, merge=MERGE):
    return Detector(init=None, loss=None, predict=predict, merge=merge)


def find_bright(variables, images):
    """A detector that sees left and right alike: the box around what is bright."""
    bright = images.pixels[..., 0] > 200

    def one(mask):
        rows, columns = jnp.any(mask, axis=1), jnp.any(mask, axis=0)
        first = [jnp.argmax(side) for side in (columns, rows)]
        last = [len(side) - jnp.argmax(side[::-1]) for side in (columns, rows)]
        return jnp.array([*first, *last], jnp.float32)

    boxes = jax.vmap(one)(bright)[:, None]
    count = boxes.shape[:2]
    return Detections(boxes, jnp.full(count, 0.9), jnp.ones(count, int), jnp.ones(count, bool))


def find_image(variables, images):
    """Finds the whole image, and is surer of larger ones."""
    height, width = images.sizes[:, 0], images.sizes[:, 1]
    boxes = jnp.stack([0 * width, 0 * width, width, height], axis=1)[:, None].astype(jnp.float32)
    scores = jnp.minimum(width[:, None] / 100, 1.0)
    return Detections(boxes, scores, jnp.zeros(scores.shape, int), scores > 0)


def draw_images():
    """Two images that do not fill their canvas, each with a bright thing off its middle."""
    pixels = np.full((2, 32, 64, 3), 255, np.uint8)  # What lies beside them is bright, too.
    sizes = np.array([[20, 50], [32, 40]], np.int32)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:height, :width] = 10
    beside = pixels.copy()
    beside[beside == 255] = 0
    beside[0, 3:9, 5:17], beside[1, 10:30, 30:40] = 250, 250
    return Images(jnp.asarray(beside), jnp.asarray(sizes), jnp.ones(2))


def test_a_detector_that_sees_both_sides_alike_finds_the_same_in_a_mirror():
    detector = views.with_views(make(find_bright), flip=True)
    found = jax.jit(detector.predict)({}, draw_images())

    assert found.valid.tolist() == [[True, False, False, False]] * 2
    np.testing.assert_array_equal(found.boxes[:, 0], [[5, 3, 17, 9], [30, 10, 40, 30]])
    assert found.labels[:, 0].tolist() == [1, 1]


def test_a_mirror_turns_the_image_and_leaves_the_padding():
    shown = jax.jit(views._mirror)(draw_images()).pixels

    plain = draw_images().pixels
    np.testing.assert_array_equal(shown[0, :, :50], plain[0, :, :50][:, ::-1])
    np.testing.assert_array_equal(shown[:, :, 50:], plain[:, :, 50:])


def test_scales_come_back_to_the_canvas():
    seen = []

    def predict(variables, images):
        seen.append(images.pixels.shape[1:3])
        return find_image(variables, images)

    detector = views.with_views(make(predict), scales=(0.5, 1.0, 1.6))
    found = jax.jit(detector.predict)({}, draw_images())

    assert seen == [(32, 32), (32, 64), (64, 128)]  # 51 x 102 filled up to multiples of 32.
    assert found.valid.sum() == 2, "three views of one thing are one"
    # At 1.6 the first image is 32 x 80 pixels (of 31.875 x 79.69): within its own again.
    np.testing.assert_allclose(found.boxes[:, 0], [[0, 0, 50, 20], [0, 0, 40, 32]], atol=0.3)
    assert (found.boxes[:, 0, 2] <= draw_images().sizes[:, 1]).all()
    np.testing.assert_allclose(found.scores[:, 0], [0.8, 0.64])


def test_views_are_merged_as_by_hand():
    boxes = np.float32(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 6],
            [0, 0, 10, 4],
            [0, 0, 10, 10],
            [50, 0, 60, 10],
            [9, 9, 9, 9],
        ]
    )
    found = Detections(
        boxes=jnp.asarray(boxes),
        scores=jnp.array([0.6, 0.9, 0.3, 0.5, 0.05, 0.99]),
        labels=jnp.array([0, 0, 0, 1, 0, 0]),
        valid=jnp.array([True] * 5 + [False]),
    )
    # Of class 0 the .9 has an IoU of .6 with the .6, which falls, and of .67 with the .3, which
    # falls, too. The .5 is of another class, the .05 below the threshold, the last one no box.
    merged = jax.jit(MERGE)(found)
    np.testing.assert_allclose(merged.scores, [0.9, 0.5, 0, 0])
    assert merged.labels.tolist() == [0, 1, 0, 0] and merged.valid.tolist() == [
        True,
        True,
        False,
        False,
    ]
    np.testing.assert_array_equal(merged.boxes[:2], boxes[[1, 3]])
    best = jax.jit(views.merger(SUPPRESS, num_classes=2, best_class=True))(found)
    jax.tree.map(np.testing.assert_array_equal, best, merged)


def test_given_proposals_are_mirrored_and_scaled_with_their_image():
    def give_back(variables, images):
        boxes, scores, valid = images.proposals
        return Detections(boxes, scores, jnp.zeros(valid.shape, int), valid)

    boxes = jnp.array([[[5, 3, 17, 9]], [[30, 10, 40, 30]]], jnp.float32)
    proposals = Proposals(boxes, jnp.full((2, 1), 0.7), jnp.ones((2, 1), bool))
    images = draw_images()._replace(proposals=proposals)
    detector = views.with_views(make(give_back), flip=True, scales=(0.5, 1.0))
    found = jax.jit(detector.predict)({}, images)
    assert found.valid.sum() == 2
    np.testing.assert_allclose(found.boxes[:, :1], boxes, atol=1e-5)


def test_the_image_as_it_is_needs_nothing_new():
    detector = make(find_image)

    assert views.with_views(detector) is detector
    assert views.with_views(detector, scales=[1.0]) is detector
    assert views.with_views(make(find_image, merge=None)).merge is None


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_scales_out_of_range_are_refused(scales):
    with pytest.raises(UserError, match="different numbers above 0, found"):
        views.with_views(make(find_image), scales=scales)


def test_a_detector_that_cannot_merge_is_refused():
    with pytest.raises(UserError, match="no `merge`"):
        views.with_views(make(find_image, merge=None), flip=True)
