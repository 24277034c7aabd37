"""Four-bit values are packed as the ONNX library packs them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from diffc.compiler.backends.onnx.packing import packed


@pytest.mark.parametrize("count", [8, 7, 1])
def test_onnx_reads_the_values_that_were_packed(count: int) -> None:
    values = np.arange(-8, 8, dtype=np.int8)[::2][:count]
    data = packed(values)
    assert data.dtype == np.uint8 and len(data) == (count + 1) // 2
    tensor = helper.make_tensor("x", onnx.TensorProto.INT4, [count], data.tobytes(), raw=True)
    assert numpy_helper.to_array(tensor).astype(np.int8).tolist() == values.tolist()
