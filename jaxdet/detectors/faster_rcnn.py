"""Faster R-CNN: a region proposal network, and Fast R-CNN on its proposals.

Features -> RPN and its losses (`rpn.py`) -> proposals -> regions and their
losses (`fast_rcnn.py`); both stages read the same features.

Reference: Ren et al., Faster R-CNN, arXiv:1506.01497; Lin et al., FPN,
arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdet.detectors import fast_rcnn, features, rpn
from jaxdet.types import Batch, Detections, Detector, Images, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(rpn.Settings, fast_rcnn.Settings):
    """Keyword arguments of `faster_rcnn`: those of `rpn` and of `fast_rcnn`."""


class FasterRCNN(rpn.RPN, fast_rcnn.FastRCNN):
    """Backbone, neck and both heads; `settings` are those of `faster_rcnn`."""

    num_levels = features.Network.num_levels  # The RPN reads all of them.

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.rpn(self.features(x, train=False))
        self.roi(fast_rcnn.blank_regions(self.settings))


def faster_rcnn(**settings: Any) -> Detector:
    """Faster R-CNN with a ResNet-FPN or VGG-16 backbone.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
    """
    s = Settings(**settings)
    init = partial(features.initialize, FasterRCNN(s))
    return Detector(init, partial(_loss, s), partial(_predict, s))


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, final=False, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del final  # Nothing in it changes while it trains.
    network = FasterRCNN(s, axis_name)
    keys = jax.vmap(jax.random.split)(jax.vmap(partial(jax.random.fold_in, key))(batch.index))

    x = features.normalize(s, batch.images)
    pyramid, batch_stats = features.extract(network, variables, x, train=True)
    logits, deltas, anchors = rpn.forward(s, network, variables, pyramid, batch.images.sizes)
    targets = rpn.batch_targets(s, keys[:, 0], anchors, batch)
    terms = rpn.rpn_losses(s, logits, deltas, anchors, targets, axis_name=axis_name)

    proposals = rpn.propose(s, logits, deltas, anchors, batch.images, train=True)
    region_terms, regions = fast_rcnn.region_losses(
        s, network, variables, pyramid, keys[:, 1], proposals, batch.objects, axis_name=axis_name
    )
    terms |= region_terms
    counts = rpn.rpn_counts(s, logits, targets) | regions.counts
    return sum(terms.values()), (Metrics(terms | regions.means, counts), batch_stats)


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Detections of every image, best first, in canvas pixels."""
    network = FasterRCNN(s)
    x = features.normalize(s, images)
    pyramid, _ = features.extract(network, variables, x, train=False)
    logits, deltas, anchors = rpn.forward(s, network, variables, pyramid, images.sizes)
    proposals = rpn.propose(s, logits, deltas, anchors, images, train=False)
    return fast_rcnn.detect(s, network, variables, pyramid, proposals, images.sizes)
