import math

import numpy as np
import pytest

from jaxdet.data.sources.values import number, side


@pytest.mark.parametrize("value", [1.5, "1.5", " 1.5\n", "15e-1", np.float32(1.5)])
def test_a_number_may_be_text(value):
    assert number(value) == 1.5


@pytest.mark.parametrize("value", [None, "", "x", "1_0", "nan", "inf", "1e39", -1e39, 10**400, []])
def test_what_float32_cannot_hold_is_no_number(value):
    assert math.isnan(number(value))
    assert side(value) == 0


@pytest.mark.parametrize("value, pixels", [(60, 60), ("60.0", 60), (0.5, 0), (-3, 0), (1e30, 0)])
def test_a_side_is_whole_pixels_or_0(value, pixels):
    assert side(value) == pixels
