"""Compute Pillow's weights: they add up to one unit, and nearest pixels are those that Pillow takes."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from diffc.compiler.tracing.pillow_filters import FILTERS, UNIT, nearest, weights


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", [3, 11, 40])
def test_weights_add_up_to_a_unit(resample: int, size: int) -> None:
    matrix = weights(resample, 17, 1.5, 16.25, size)
    assert matrix.shape == (size, 17)
    assert np.array_equal(matrix, np.rint(matrix))
    assert np.abs(matrix.sum(1) - UNIT).max() <= 17, "each is rounded"


@pytest.mark.parametrize(("start", "end", "size"), [(0.0, 17.0, 5), (0.0, 17.0, 40), (2.5, 13.0, 7)])
def test_the_nearest_pixels_are_those_of_pillow(start: float, end: float, size: int) -> None:
    row = PIL.Image.fromarray(np.arange(17, dtype=np.uint8)[None])
    resized = row.resize((size, 1), PIL.Image.Resampling.NEAREST, (start, 0, end, 1))
    assert nearest(17, start, end, size) == np.asarray(resized)[0].tolist()
