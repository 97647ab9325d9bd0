"""From a trained detector to boxes on photographs.

inputs      what is asked: files, folders, arrays -> decoded examples
predictor   the detector with its weights, which turns examples into what is found on them
found       what is found on one image

OpenCV is needed for all of it, arrays too: the images are resized by the same
code as in an evaluation. With as many images at once the detections are the same to
the last bit.
"""

from jaxdet.prediction.found import Found
from jaxdet.prediction.predictor import Predictor

__all__ = ["Found", "Predictor"]
