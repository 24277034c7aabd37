"""Trace the call that an entry of the zoo stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import transformers
from torch import nn

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Number, RequestInput, Text
from diffc.compiler.tracing.trace import trace
from diffc.passes import NORMAL_FORM
from tests.zoo import Entry

CALLBACK = "callback_on_step_end"


def traced(entry: Entry) -> Program:
    """Trace the call that an entry stands for; pictures and other conditions are constants of it."""
    pipeline = entry.pipeline
    told = CALLBACK in inspect.signature(type(pipeline).__call__).parameters
    asked: dict[str, RequestInput] = {name: Text(1) for name in entry.texts}
    if entry.guidance:
        asked[entry.guidance] = Number(float(entry.request[entry.guidance]))
    fixed = {key: value for key, value in entry.request.items() if key not in asked} | {"return_dict": False}

    def call(on_step: Callable[..., None] = lambda _: None, **request: Any) -> Any:
        def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step(values.get("latents"))
            return values

        drawn = pipeline(**request, **fixed, **({CALLBACK: after} if told else {}))
        return drawn[0] if isinstance(drawn, tuple) else drawn

    modules = {key: c for key, c in pipeline.components.items() if isinstance(c, nn.Module)}
    tokenizers = {
        key: c for key, c in pipeline.components.items() if isinstance(c, transformers.PreTrainedTokenizerBase)
    }
    calls = ComponentCalls()
    step = "on_step" if told else None
    program = trace(call, modules, asked, calls=calls, tokenizers=tokenizers, on_step=step)
    return run(calls.graphs([program])[0], NORMAL_FORM)
