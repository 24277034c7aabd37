"""Name the lengths of a component's call by the component."""

from __future__ import annotations

import pytest

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Size, Type, Value
from diffc.compiler.tracing.open_signatures import Span, localized

L0, L1 = Size.of("L0"), Size.of("L1")
SPANS = {"L0": Span(40, 500, 50), "L1": Span(40, 600, 52)}


def port(*shape: int | Size) -> Value:
    return Value("x", Type("float32", shape))


def test_calls_with_different_texts_have_one_signature() -> None:
    calls = [localized([port(1, L - 34, 8)], [port(1, L + 30, 8)], [2 * L], SPANS) for L in (L0, L1)]
    shapes = [[value.type.shape for value in (*call.inputs, *call.outputs)] for call in calls]
    size = Size.of("S0")
    assert shapes[0] == shapes[1] == [(1, size, 8), (1, size + 64, 8)]
    assert calls[0].leaves == calls[1].leaves == (2 * size + 68,)
    assert [call.lengths["S0"] for call in calls] == [Span(6, 466, 16), Span(6, 566, 18)]


def test_sums_of_lengths_are_sizes_of_their_own() -> None:
    call = localized([port(L0 + L1), port(L1)], [port(L0)], [], SPANS)
    assert [value.type.shape for value in call.inputs] == [(Size.of("S0"),), (Size.of("S1"),)]
    assert call.outputs[0].type.shape == (Size.of("S0") - Size.of("S1"),)


def test_a_size_that_no_port_has_is_refused() -> None:
    with pytest.raises(CaptureError, match="no tensor among its arguments"):
        localized([port(1, 8)], [port(1, L0)], [], SPANS)
