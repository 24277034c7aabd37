"""Run a function once with symbolic tensors and texts, and record its operations on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.export import one_layout
from diffc.compiler.ir.program import Guard, Input, Op, Program, Table
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.global_generators import global_generators_unused
from diffc.compiler.tracing.image_functions import recorded_images
from diffc.compiler.tracing.length_fit import LengthTrace
from diffc.compiler.tracing.mask_functions import with_mask_functions
from diffc.compiler.tracing.opaque_components import OpaqueComponents
from diffc.compiler.tracing.pipeline_errors import pipeline_errors
from diffc.compiler.tracing.random_values import unchecked_distributions
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import Image, Number, RequestInput, Tensor, Text, declared
from diffc.compiler.tracing.spawned_seeds import recorded_seeds
from diffc.compiler.tracing.symbolic_array import tensors_of
from diffc.compiler.tracing.symbolic_scalar import Scalar
from diffc.compiler.tracing.symbolic_text import Texts
from diffc.compiler.tracing.text_functions import recorded_functions
from diffc.compiler.tracing.text_proof import Recorded, prove
from diffc.compiler.tracing.tokenizer_calls import Receive, RequestTexts, TokenizerCalls


@dataclass(frozen=True)
class Run:
    """Hold the recording of one run, and its calls of tokenizers."""

    ops: list[Op]
    tables: dict[str, Table]
    guards: list[Guard]
    outputs: list[str]
    texts: TokenizerCalls

    def line_of_length(self, program: Program) -> str | None:
        """Return a line of the function on which the number of a text's tokens decides what the program computes."""
        open_lines = (self.texts.open.get(value.name) for op in program.ops for value in op.results)
        return next((line for line in (*self.texts.lengths.questions, *open_lines) if line is not None), None)

    def live(self, inputs: tuple[Input, ...]) -> Program:
        """Return what the run has recorded, without operations that no output needs."""
        return Program("", inputs, (), (), tuple(self.tables.values()), tuple(self.ops), tuple(self.outputs)).live()

    def counted(self, inputs: tuple[Input, ...], calls: ComponentCalls) -> LengthTrace:
        """Return the run as one of several that differ in the numbers of tokens."""
        return LengthTrace({n.name: n.at for n in self.texts.lengths.lengths.values()}, self.live(inputs), calls)


@dataclass(frozen=True, kw_only=True)
class TracedFunction:
    """Hold a function with its components, tokenizers and inputs, and run it symbolically.

    ``on_step`` names the parameter of the function that takes a callable, and ``seeds`` are those of its generators.
    """

    function: Callable[..., Any]
    components: Mapping[str, nn.Module]
    inputs: Mapping[str, RequestInput]
    calls: ComponentCalls
    tokenizers: Mapping[str, Any]
    on_step: str | None = None
    seeds: Collection[int] = ()

    @property
    def ports(self) -> tuple[Input, ...]:
        """Return the inputs as a program declares them."""
        return tuple(declared(key, item) for key, item in self.inputs.items())

    @property
    def defaults(self) -> dict[str, float]:
        """Return the defaults of the scalars."""
        return {key: item.default for key, item in self.inputs.items() if isinstance(item, Number)}

    def run(
        self,
        texts: RequestTexts,
        scalars: Mapping[str, float] = MappingProxyType({}),
        *,
        limit: float = math.inf,
        calls: ComponentCalls | None = None,
    ) -> Run:
        """Run the function with some scalars of other values than their defaults, and at most ``limit`` operations."""
        calls = calls or self.calls

        def once() -> Run:
            received = TokenizerCalls(Recorder(calls.fake_mode, self.seeds, limit), self.inputs, texts)
            return self._run(received, self.defaults | dict(scalars), calls)

        return with_mask_functions(once)

    def first_run(self) -> tuple[Run, RequestTexts]:
        """Run the function for the first time; with strings where it takes no others, as those written in C do."""
        texts = RequestTexts(Texts())
        try:
            return self.run(texts), texts
        except CaptureError as error:
            if not any(isinstance(item, Text) for item in self.inputs.values()):
                raise
            if not isinstance(error.__cause__, TypeError):
                raise
        texts = RequestTexts(Texts(as_strings=True))
        return self.run(texts), texts

    def recorded(self) -> Program:
        """Return what one run records, for the defaults of the scalars and assumed numbers of tokens."""
        return self.first_run()[0].live(self.ports)

    def proved_run(self) -> tuple[Run, RequestTexts]:
        """Run the function, and prove what becomes of the texts where it is not recorded exactly."""
        first, texts = self.first_run()
        if texts.symbols.are_exact:
            return first, texts

        def probe(strings: Mapping[str, str], receive: Receive) -> Sequence[Op]:
            return self.run(replace(texts, probes=strings, receive=receive)).ops

        keys = [key for key, item in self.inputs.items() if isinstance(item, Text)]
        recorded = Recorded(first.texts.calls, first.ops, keys, texts.symbols.absent)
        proved = prove(recorded, probe, lambda name, text: self.tokenizers[name].tokenize(text))
        texts = replace(texts, proved=proved)
        return (self.run(texts) if proved else first), texts

    def _run(self, texts: TokenizerCalls, scalars: Mapping[str, float], calls: ComponentCalls) -> Run:
        recorder, guards = texts.recorder, list[Guard]()
        opaque = OpaqueComponents(recorder, calls, self.components)
        request: dict[str, Any] = {key: Scalar(value, key, guards) for key, value in scalars.items()}
        request |= texts.request
        request |= {
            key: recorder.array(key, item) for key, item in self.inputs.items() if isinstance(item, Image | Tensor)
        }
        if self.on_step:
            request[self.on_step] = recorder.step
        with ExitStack() as stack:
            stack.enter_context(opaque.recorded())
            for name, tokenizer in self.tokenizers.items():
                stack.enter_context(texts.recorded(name, tokenizer))
            stack.enter_context(recorded_functions(texts.texts))
            stack.enter_context(recorded_images())
            stack.enter_context(recorder.written.read())
            stack.enter_context(recorded_seeds(recorder.spawned))
            stack.enter_context(torch.no_grad())
            stack.enter_context(one_layout())
            stack.enter_context(global_generators_unused())
            stack.enter_context(unchecked_distributions())
            stack.enter_context(pipeline_errors())
            stack.enter_context(recorder)
            result = self.function(**request)
            outputs = recorder.results(tensors_of(result))
        if not outputs:
            raise CaptureError(
                "the sampler returns nothing that depends on the request or on noise", fix="return a tensor"
            )
        return Run(texts.checked(), recorder.tables, guards, outputs, texts)
