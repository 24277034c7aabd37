"""Execute a program in PyTorch, as a request of a prompt and a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from diffc.compiler.analysis.stages import calls
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.calibration.trajectory import Drawing, Sample
from diffc.compiler.errors import BuildError, CalibrationError
from diffc.compiler.graph.body import body_of, size
from diffc.compiler.graph.lazy_weights import bytes_to_settle, settled
from diffc.compiler.ir.evaluate import apply
from diffc.compiler.ir.program import Graph, Input, Literal, Op, Program, Ref, Value
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.memory import free_memory
from diffc.runtime.rng import Generator

NEGATIVE = "negative_prompt"


Call = Callable[[int, tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]
"""Gives the outputs of a graph, of the count of its calls before and what it is given."""


class ProgramRun:
    """Execute a program in PyTorch. Each graph is made ready when it is first called, until ``ready`` is closed."""

    def __init__(self, program: Program, tokenizers: Mapping[str, bytes]) -> None:
        self.program = program
        self.instead: Mapping[str, Call] = {}
        self.tokenizers = {name: Tokenizer(data, name) for name, data in tokenizers.items()}
        self.graphs = {graph.name: graph for graph in program.graphs}
        self.modules: dict[str, fx.GraphModule] = {}
        self.ready = ExitStack()
        self.scalars = {i.name: i.default for i in program.inputs if i.default is not None}
        self.calls = {name: len(calls(program, graph)) for name, graph in self.graphs.items()}

    @property
    def work(self) -> int:
        """Count the multiply-adds of a drawing."""
        return sum(self.calls[name] * _work(graph) for name, graph in self.graphs.items())

    def draw(self, prompt: str, seed: int, number: int) -> Drawing:
        """Run the program for one prompt."""
        texts, arrays = given(self.program, prompt, seed)
        values = {table.name: torch.as_tensor(table.data) for table in self.program.tables}
        values |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        samples, steps, seen = list[Sample](), list[torch.Tensor](), dict.fromkeys(self.graphs, 0)
        with torch.no_grad():
            for op in self.program.ops:
                if op.operator == "tokenize":
                    made = self._tokens(op, texts)
                elif op.operator == "noise":
                    continue
                elif op.operator == "step":
                    steps += apply(replace(op, operator="linear", results=(Value("latents"),)), values, self.scalars)
                    continue
                elif op.operator in self.graphs:
                    graph = self.graphs[op.operator]
                    feeds = feeds_of(op, graph, values)
                    step, of = seen[graph.name], self.calls[graph.name]
                    given_instead = self.instead.get(graph.name)
                    made = list(given_instead(step, feeds) if given_instead else self._module(graph)(*feeds))
                    _check_finite(graph, made, f"call {step + 1} of {of}, for the prompt {prompt!r}")
                    seen[graph.name] += 1
                    if size(graph):
                        samples.append(Sample(graph.name, step, of, number, feeds))
                else:
                    made = list(apply(op, values, self.scalars))
                values |= {value.name: tensor for value, tensor in zip(op.results, made, strict=False)}
        return Drawing(prompt, seed, tuple(samples), tuple(steps), values[self.program.outputs[0]])

    def _tokens(self, op: Op, texts: Mapping[str, Sequence[str]]) -> list[torch.Tensor]:
        (text,) = op.reads()
        options = {name: value for name, value in op.attrs if name != "tokenizer"}
        encoded = self.tokenizers[str(op.attr("tokenizer"))](texts[text], **options)  # type: ignore[arg-type]
        return [torch.from_numpy(array) for array in encoded]

    def _module(self, graph: Graph) -> fx.GraphModule:
        if graph.name not in self.modules:
            module = body_of(graph)
            _check_memory(graph, bytes_to_settle(module))
            self.ready.enter_context(settled(module))
            self.modules[graph.name] = module
        return self.modules[graph.name]


def feeds_of(op: Op, graph: Graph, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Give what an operation gives a graph, in the order of its ports."""
    attrs = dict(op.attrs)
    return tuple(_tensor(attrs[port.name], port, values) for port in graph.inputs)


def _tensor(literal: Literal, port: Value, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if isinstance(literal, Ref):
        return values[literal.name]
    return torch.tensor(literal, dtype=getattr(torch, port.type.dtype) if port.type else None)


def given(program: Program, prompt: str, seed: int) -> tuple[dict[str, list[str]], dict[str, NDArray[np.float32]]]:
    """Make the texts and tensors of a request: noise of a seed, smooth pictures, normal numbers for other tensors."""
    random = Generator(seed)
    texts = {i.name: [_text(i, prompt)] * i.type.shape[0] for i in program.inputs if i.type.dtype == "text"}
    noises = [value for op in program.ops if op.operator == "noise" for value in op.results]
    arrays = {value.name: random.randn(value.type.shape) for value in noises if value.type}
    arrays |= {i.name: _array(i, random) for i in program.inputs if i.type.dtype not in ("text", "scalar")}
    return texts, arrays


def _text(item: Input, prompt: str) -> str:
    return "" if item.name == NEGATIVE else prompt


def _array(item: Input, random: Generator) -> NDArray[np.float32]:
    if not item.is_picture:
        return random.randn(item.type.shape)
    _, channels, height, width = item.type.shape
    x, y = np.meshgrid(np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32))
    return np.broadcast_to(np.stack([x, y, 1 - x])[:channels], item.type.shape).astype(np.float32)


def _check_finite(graph: Graph, made: Sequence[torch.Tensor], where: str) -> None:
    for port, tensor in zip(graph.outputs, made, strict=False):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            what = f"{graph.name} gives NaN or infinity for {port.name} during calibration"
            raise CalibrationError(what, where=where, fix="build for fp32, or calibrate with other prompts")


def _check_memory(graph: Graph, needed: int) -> None:
    free = free_memory()
    if free is not None and free < needed:
        what = f"calibrating {graph.name} needs {needed / 1e9:.1f} GB of memory, and there are {free / 1e9:.1f} GB"
        fix = "end other programs, add swap, or take a target that is not calibrated, such as ort-bf16"
        raise BuildError(what, where=f"component {graph.component}", fix=fix)


def _work(graph: Graph) -> int:
    return sum(multiply_adds(node) for node in graph.body.graph.nodes) if size(graph) else 0
