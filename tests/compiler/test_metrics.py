"""Distances of arrays whose distance is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffc.compiler.metrics import psnr, sqnr, ssim


def constant(value: float) -> np.ndarray:
    return np.full((16, 16, 3), value, np.float32)


def test_psnr_is_20_db_at_an_error_of_a_tenth_of_the_peak() -> None:
    assert psnr(constant(0.5), constant(0.4)) == pytest.approx(20, abs=1e-4)
    assert psnr(constant(5.0), constant(4.0), peak=10.0) == pytest.approx(20)


def test_equal_arrays_have_the_ratio_that_stands_for_no_error() -> None:
    assert psnr(constant(0.5), constant(0.5)) == sqnr(constant(0.5), constant(0.5)) == 200
    assert ssim(constant(0.5), constant(0.5)) == pytest.approx(1)


def test_ssim_of_constant_images_is_its_luminance_term() -> None:
    a, b, c1 = 0.25, 0.75, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(constant(a), constant(b)) == pytest.approx(expected, rel=1e-6)


def test_ssim_sees_structure_where_psnr_does_not() -> None:
    stripes = np.zeros((16, 16, 3), np.float32)
    stripes[::2] = 1
    grey, inverse = np.full_like(stripes, 0.5), 1 - stripes
    assert ssim(inverse, stripes) < -0.9 < ssim(grey, stripes)


def test_sqnr_is_the_ratio_of_energies() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert sqnr(reference + np.array([0.3, 0.4], np.float32), reference) == pytest.approx(20, abs=1e-4)
    assert sqnr(10 * (reference + np.array([0.3, 0.4], np.float32)), 10 * reference) == pytest.approx(20, abs=1e-4)
