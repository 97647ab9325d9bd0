"""Faster R-CNN: a region proposal network, and Fast R-CNN on its proposals.

Features -> RPN and its losses (`rpn.py`) -> proposals -> regions and their
losses (`fast_rcnn.py`); both stages read the same features.

Reference: Ren et al., Faster R-CNN, arXiv:1506.01497; Lin et al., FPN,
arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxdet.detectors import anchor_grid, fast_rcnn, features, views
from jaxdet.detectors import rpn as first
from jaxdet.detectors.fast_rcnn import RoIStage
from jaxdet.detectors.rpn import RPNStage
from jaxdet.detectors.settings import Pixels
from jaxdet.models import FPN, ResNet
from jaxdet.types import Detector, Metrics


class FasterRCNN(features.Network):
    """Backbone, neck and both heads.

    Attributes are those of `features.Network`, and:
        rpn_head: that of the first stage.
        box_head: that of the second.
        bins: bins an axis of a pooled region.
    """

    rpn_head: nn.Module
    box_head: nn.Module
    bins: int

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        pyramid = self.features(x, train=False)
        self.rpn_head(pyramid)
        self.box_head(fast_rcnn.blank_region(pyramid, self.bins))


def faster_rcnn(
    *,
    num_classes: int,
    pixels: Pixels = Pixels(),
    backbone: nn.Module = ResNet(),
    neck: nn.Module | None = FPN(),
    rpn: RPNStage = RPNStage(),
    roi: RoIStage = RoIStage(),
    dtype: str = "float32",
    remat: str = "none",
) -> Detector:
    """Faster R-CNN, on an FPN or on the maps of a backbone alone.

    Args:
        num_classes: K, without background.
        pixels: how they reach the network.
        backbone: see `features.Network`; "frozen" norms want pretrained weights.
        neck: see there, too.
        rpn: the first stage, which makes proposals.
        roi: the second, which classifies and refines them.
        dtype: of the networks' computation, "float32" or "bfloat16".
        remat: what the backward pass computes again to save memory: "none", the
            "blocks" of the backbone, or "all": those, the neck and the heads.

    Raises:
        ValueError: for settings that do not work; many show only when `loss` or
            `predict` is traced.
    """
    heads = first.make_head(rpn), fast_rcnn.make_head(roi, num_classes)
    network = FasterRCNN(backbone, neck, *heads, roi.pool.output_size)
    network = features.prepare(network, dtype=dtype, remat=remat)
    strides = features.strides_of(network)

    def loss(variables, batch, key, *, final=False, axis_name=None):
        """Total loss of the batch; the mean over devices is that of the global batch."""
        del final  # Nothing in it changes while it trains.
        keys = jax.vmap(jax.random.split)(jax.vmap(partial(jax.random.fold_in, key))(batch.index))
        pyramid, batch_stats = features.extract(
            network, pixels, variables, batch.images, train=True, axis_name=axis_name
        )

        logits, deltas = features.apply_head(network, "rpn_head", variables, pyramid)
        anchors = first.make_anchors(rpn, pyramid, strides, batch.images)
        targets = first.batch_targets(rpn, keys[:, 0], anchors, batch)
        terms = first.rpn_losses(rpn, logits, deltas, anchors, targets, axis_name=axis_name)
        counts = first.rpn_counts(rpn, logits, targets)
        proposals = first.propose(rpn, rpn.train, logits, deltas, anchors, batch.images)

        regions = fast_rcnn.batch_targets(roi, num_classes, keys[:, 1], proposals, batch.objects)
        pooled = fast_rcnn.pool(roi.pool, pyramid, strides, regions.rois)
        logits, deltas = features.apply_head(network, "box_head", variables, pooled, keys[:, 1])
        terms |= fast_rcnn.region_losses(roi, logits, deltas, regions, axis_name=axis_name)
        metrics = fast_rcnn.region_metrics(roi, logits, regions, proposals, axis_name=axis_name)

        metrics = Metrics(terms | metrics.means, counts | metrics.counts)
        return sum(terms.values()), (metrics, batch_stats)

    def predict(variables, images):
        """Detections of every image, best first, in canvas pixels."""
        pyramid, _ = features.extract(network, pixels, variables, images, train=False)
        logits, deltas = features.apply_head(network, "rpn_head", variables, pyramid)
        anchors = first.make_anchors(rpn, pyramid, strides, images)
        proposals = first.propose(rpn, rpn.test, logits, deltas, anchors, images)
        pooled = fast_rcnn.pool(roi.pool, pyramid, strides, proposals.boxes)
        logits, deltas = features.apply_head(network, "box_head", variables, pooled)
        one = partial(fast_rcnn.detections, roi)
        return jax.vmap(one)(logits, deltas, proposals, images.sizes)

    return features.make_detector(
        network,
        pixels,
        loss,
        predict,
        matrices=first.matrices(rpn) | fast_rcnn.matrices(roi),
        assign=anchor_grid.assigner(network, pixels, rpn.anchors, rpn.inside, rpn.assign),
        merge=views.merger(roi.suppress, num_classes),
    )
