import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.detectors import anchor_grid, anchor_reach
from jaxdet.detectors.assigned import Assigned, Level
from jaxdet.detectors.settings import AnchorGrid, Inside
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops.boxes import pairwise_iou
from jaxdet.types import Images

CELLS, STRIDES, CANVAS = [(8, 12), (4, 6), (1, 1)], [8, 16, 64], (64, 96)
SIZES = np.array([(64, 96), (33, 96), (60, 41), (20, 20)])


@pytest.mark.parametrize(
    "grid, inside",
    [
        (AnchorGrid(scales=(1.0, 1.7), ratios=(0.5, 1.0, 2.0)), Inside()),
        (
            AnchorGrid(scales=(2.0,), centre=0.5, whole_cells=True),
            Inside(allowed_border=0.0, count_touching=True),
        ),
        (AnchorGrid(scales=(1.0,), centre=0.5, whole_cells=True), Inside()),
        (AnchorGrid(scales=(1.5,), divisor=8), Inside(allowed_border=3.0)),
        (AnchorGrid(scales=(1.3,), rounded=True), Inside(allowed_border=0.0)),
    ],
)
def test_the_best_overlap_is_that_with_all_anchors_that_may_train(grid, inside):
    rng = np.random.default_rng(0)
    sizes = SIZES[rng.integers(len(SIZES), size=300)]
    corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1) * sizes[:, None, ::-1]
    boxes = corners.reshape(-1, 4)
    maps = [jax.ShapeDtypeStruct((1, *cells, 1), np.float32) for cells in CELLS]
    images = Images(jax.ShapeDtypeStruct((1, *CANVAS, 3), np.uint8), SIZES, np.ones(4))
    anchors = anchor_grid.make_anchors(maps, images, strides=STRIDES, **vars(grid))
    levels = tuple(map(Level, STRIDES, CELLS, anchors.level_sizes))
    assigned = Assigned(np.asarray(anchors.boxes), None, None, levels)

    found = anchor_reach.best_overlaps(boxes, sizes, assigned, grid=grid, inside=inside)

    overlaps = np.asarray(pairwise_iou(jnp.asarray(boxes, jnp.float32), anchors.boxes))
    for size, covered in zip(SIZES, np.asarray(anchors.valid), strict=True):
        may = covered & np.asarray(
            anchor_ops.inside_image(anchors.boxes, jnp.asarray(size), **vars(inside))
        )
        own = (sizes == size).all(axis=1)
        wanted = np.where(may, overlaps[own], 0).max(axis=1)
        np.testing.assert_allclose(found[own], wanted, atol=1e-5)
    assert found.max() > 0.6


def test_anchors_of_a_cell_are_told_by_their_size():
    boxes = anchor_ops.pyramid_anchors([(2, 3)], [4], scales=(2.0,), ratios=(1.0, 4.0))
    assigned = Assigned(boxes, None, None, (Level(4, (2, 3), 12),))
    np.testing.assert_allclose(anchor_reach.base_sizes(assigned), [[8, 8], [16, 4]])
