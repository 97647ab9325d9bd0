"""jaxdet: object detection as pure, jitted JAX functions on fixed-size padded arrays."""

from jaxdet.types import Batch, Detections, Detector, Images, Proposals

__all__ = ["Batch", "Detections", "Detector", "Images", "Proposals"]
