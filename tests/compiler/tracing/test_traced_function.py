"""Run functions symbolically, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffc.compiler.ir.program import Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Number, Tensor
from diffc.compiler.tracing.traced_function import TracedFunction


def function(sample: Callable[..., Any]) -> TracedFunction:
    """Hold a function of an array and a scalar."""
    inputs = {"x": Tensor((1, 2)), "scale": Number(2.0)}
    return TracedFunction(function=sample, components={}, inputs=inputs, calls=ComponentCalls(), tokenizers={})


def test_a_run_has_other_scalars_than_the_defaults_where_they_are_set() -> None:
    traced = function(lambda x, scale: x * scale)
    assert traced.defaults == {"scale": 2.0}
    first, texts = traced.first_run()
    assert [run.ops[0].args[1] for run in (first, traced.run(texts, {"scale": 3.0}))] == [2.0, 3.0]


def test_what_one_run_records_is_a_program_without_what_no_output_needs() -> None:
    def sample(x: torch.Tensor, scale: float) -> torch.Tensor:
        return x + 1 if (x * scale).shape == (1, 2) else x

    program = function(sample).recorded()
    assert [op.operator for op in program.ops] == ["aten.add.Tensor"]
    assert program.types()[program.outputs[0]] == Type("float32", (1, 2))
