"""Compute the distance of images and tensors from a reference: PSNR, SSIM and SQNR."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]

IDENTICAL = 200.0
"""The ratio in dB that is returned where there is no error."""


def psnr(image: Array, reference: Array, peak: float = 1.0) -> float:
    """Compute the peak signal-to-noise ratio in dB, by default of images in [0, 1]; 200 where they are identical."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return min(IDENTICAL, 10 * math.log10(peak**2 / error)) if error else IDENTICAL


def ssim(image: Array, reference: Array) -> float:
    """Compute the mean structural similarity of images [H, W, C] in [0, 1].

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13, with the
    Gaussian window of deviation 1.5 and the constants of section III.
    """

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(values, sigma=(1.5, 1.5, 0), truncate=3.5), dtype=np.float64)

    a, b = image.astype(np.float64), reference.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def sqnr(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Compute the signal-to-quantization-noise ratio in dB; 200 where there is no error."""
    signal, error = np.sum(reference.astype(np.float64) ** 2), np.sum((value.astype(np.float64) - reference) ** 2)
    return float(min(IDENTICAL, 10 * math.log10(signal / error))) if error and signal else IDENTICAL
