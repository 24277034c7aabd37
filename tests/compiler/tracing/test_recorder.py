"""Operators on symbolic tensors are recorded; all else runs."""

from __future__ import annotations

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.ir.program import Ref
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import Image, Tensor


def test_arithmetic_is_recorded_and_constants_run() -> None:
    recorder = Recorder(FAKES)
    x = recorder.array("x", Tensor((2, 3)))
    with recorder:
        two = (torch.ones(3) + 1).sum() / 3
        x * two + torch.arange(3.0)
    first, second = recorder.ops
    assert (first.operator, first.args) == ("aten.mul.Tensor", (Ref("x"), 2.0))
    (table,) = recorder.tables.values()
    assert second.args == (Ref(first.results[0].name), Ref(table.name))
    assert table.data is not None and table.data.tolist() == [0.0, 1.0, 2.0]


def test_an_interpolation_is_the_arithmetic_that_it_stands_for() -> None:
    recorder = Recorder(FAKES)
    x, y = (recorder.array(name, Tensor((2,))) for name in "xy")
    with recorder:
        torch.lerp(x, y, 0.25)
    assert [op.operator for op in recorder.ops] == ["aten.sub.Tensor", "aten.mul.Tensor", "aten.add.Tensor"]


def test_an_image_alone_has_a_range() -> None:
    recorder = Recorder(FAKES)
    assert recorder.array("image", Image((1, 3, 2, 2))).bounds == (0.0, 1.0)
    assert recorder.array("x", Tensor((1, 3, 2, 2))).bounds is None


def test_noise_of_other_kinds_and_types_is_refused() -> None:
    with pytest.raises(CaptureError, match="random values of a kind that programs do not have"), Recorder(FAKES):
        torch.randperm(3)
    with pytest.raises(CaptureError, match=r"computes noise in torch\.float64"), Recorder(FAKES):
        torch.randn(3, dtype=torch.float64)
