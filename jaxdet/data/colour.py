"""Changes to an image's colours; RGB uint8 in and out."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])


def scale_colour(
    image: UInt8[np.ndarray, "H W 3"], *, brightness: float, contrast: float, saturation: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Multiplies brightness, contrast and saturation; 1 leaves each as it is.

    All three are linear in a pixel's colour, so one 3 x 4 matrix does them.
    """
    grey = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    mean = float(_LUMA @ cv2.mean(image)[:3])
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return cv2.transform(image, np.concatenate([matrix, offset], axis=1))


def scale_hsv(
    image: UInt8[np.ndarray, "H W 3"], factors: Float[np.ndarray, "3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Multiplies hue, saturation and value; hue wraps at the full circle, the others end at 255.

    In OpenCV's steps, hue by 2 degrees: factors of 1 may change pixels a little,
    too. Products are rounded (YOLOX cuts them off). Hue is counted from red on, as
    in YOLOX: the further round the circle a colour is, the more it turns.

    Args:
        image: RGB.
        factors: of hue, saturation and value, at least 0.

    Reference: YOLOX 0.1, augment_hsv.
    """
    levels = np.round(np.outer(np.arange(256), factors))
    table = np.where([True, False, False], levels % 180, np.minimum(levels, 255))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB)
