"""Pack four-bit values as ONNX stores them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(quantized: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack two quantized values into a byte, the first in its low half."""
    flat = np.asarray(quantized).reshape(-1).astype(np.uint8) & 0xF
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)
