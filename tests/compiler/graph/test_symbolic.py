"""Open sizes are read from the tensors without values that a graph was captured with."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from diffc.compiler.errors import VerifyError
from diffc.compiler.graph.export import type_of
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.graph.symbolic import (
    concrete,
    counted_sizes,
    counts,
    dynamic_axes,
    elements,
    is_open,
    mode_of,
    ranges,
    typical,
)
from tests.open_program import LEAST, MOST, open_like


def test_open_sizes_have_bounds_and_a_typical_value() -> None:
    fixed, tokens = torch.zeros(2, 3), open_like((1, None, 16))[0]
    assert is_open(tokens) and not is_open(fixed) and not is_open("text")
    assert [typical(size) for size in tokens.shape] == [1, 7, 16] and elements(tokens) == 7 * 16
    assert [tensor.shape for tensor in concrete([fixed, tokens])] == [(2, 3), (1, 7, 16)]
    without, axes = dynamic_axes([fixed, tokens])
    assert without is None and axes is not None and (axes[1].min, axes[1].max) == (LEAST, MOST)
    [bounds] = ranges([fixed, tokens]).values()
    assert (int(bounds.lower), int(bounds.upper)) == (LEAST, MOST)
    assert mode_of([fixed, tokens], fx.Graph()) is tokens.fake_mode  # type: ignore[attr-defined]


def test_values_decide_sizes_in_a_mode_that_has_symbols() -> None:
    def selected(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]

    graph = fx.symbolic_trace(selected).graph
    assert not counts(graph) and mode_of([], graph) is FAKES
    graph.call_function(torch.ops.aten.nonzero.default, (next(iter(graph.nodes)),))
    assert counts(graph) and mode_of([], graph) is not FAKES
    tensor = FAKES.from_tensor(torch.zeros(4))
    with pytest.raises(DynamicOutputShapeException), FAKES:
        selected(tensor)
    with counted_sizes(FAKES), FAKES:
        [size] = selected(tensor).shape
    assert isinstance(size, torch.SymInt) and FAKES.shape_env is None


def test_an_open_size_has_no_fixed_type() -> None:
    with pytest.raises(VerifyError, match="has a size that each request decides"):
        type_of(open_like((1, None))[0])
