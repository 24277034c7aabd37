"""A symbolic tensor has the type of the real one, and refuses to be read."""

from __future__ import annotations

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.tracing.symbolic_tensor import Symbolic


def symbolic(*shape: int) -> Symbolic:
    """Return a symbolic tensor named x."""
    return Symbolic(FAKES.from_tensor(torch.zeros(shape)), "x")


def test_it_has_the_type_of_the_real_tensor() -> None:
    x, real = symbolic(2, 3), torch.zeros(2, 3)
    assert (x.shape, x.dtype, x.device, x.stride()) == (real.shape, real.dtype, real.device, real.stride())
    assert "x: " in repr(x)


def test_it_cannot_be_read_after_its_trace() -> None:
    with pytest.raises(CaptureError, match="after its trace has ended"):
        symbolic(2, 3) + 1


def test_a_number_in_a_range_answers_comparisons() -> None:
    x = symbolic()
    x.bounds = (0.0, 1.0)
    assert not x.item() < 0
    assert x.item() <= 1
