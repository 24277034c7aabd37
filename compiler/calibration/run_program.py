"""Run a program for a prompt and a seed, and record its trajectory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffc.compiler.analysis.stages import calls
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.calibration.trajectory import Sample, Trajectory
from diffc.compiler.errors import CalibrationError
from diffc.compiler.graph.body import size
from diffc.compiler.graph.evaluate import Call, Executor, Tensors
from diffc.compiler.ir.program import Graph, Input, Op, Program
from diffc.compiler.tracing.pipeline import NEGATIVE
from diffc.runtime.bundle.tokenizer import Tokenizer, tokenize
from diffc.runtime.noise import sampled
from diffc.runtime.program.texts import TEXT_OPERATORS, transform
from diffc.runtime.rng import Generator


class ProgramRun:
    """Run a program for prompts, and record its trajectories.

    The weights of a graph are in memory from its first call until ``ready`` is closed.
    """

    def __init__(self, program: Program, tokenizers: Mapping[str, bytes]) -> None:
        self.program = program
        self.tokenizers = {name: Tokenizer(data, name) for name, data in tokenizers.items()}
        self.ready = Executor(program)
        self.weighted = {graph.name: graph for graph in program.graphs if size(graph)}
        self.calls = {graph.name: len(calls(program, graph)) for graph in program.graphs}

    @property
    def work(self) -> int:
        """Count the multiply-adds of a trajectory."""
        return sum(self.calls[name] * _work(graph) for name, graph in self.weighted.items())

    def trajectory(
        self, prompt: str, seed: int, number: int, replace: Mapping[str, Call] = MappingProxyType({})
    ) -> Trajectory:
        """Run the program for one prompt; ``replace`` computes the outputs of some graphs in another manner.

        Raises `CalibrationError` where a graph yields NaN or infinity.
        """
        samples, steps, seen = list[Sample](), list[torch.Tensor](), Counter[str]()

        def observe(op: Op, operands: Tensors, results: Tensors) -> None:
            if op.operator == "step":
                steps.extend(results)
                return
            name, of = op.operator, self.calls[op.operator]
            _check_finite(self.ready.graphs[name], results, f"call {seen[name] + 1} of {of}, for the prompt {prompt!r}")
            if name in self.weighted:
                samples.append(Sample(name, seen[name], of, number, tuple(operands)))
            seen[name] += 1

        texts, arrays = request_of(self.program, prompt, seed)
        values = self._tokens(texts) | {name: torch.from_numpy(array) for name, array in arrays.items()}
        outputs = self.ready.run(values, replace=replace, observe=observe)
        return Trajectory(prompt, seed, tuple(samples), tuple(steps), outputs[self.program.outputs[0]])

    def _tokens(self, texts: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
        """Tokenize the texts of a request, as the operations of the program say."""
        tokens, texts = dict[str, torch.Tensor](), dict(texts)
        for op in (op for op in self.program.ops if op.operator in ("tokenize", *TEXT_OPERATORS)):
            (read,) = op.reads()
            if op.operator in TEXT_OPERATORS:
                transformed = [transform(op.operator, dict(op.attrs), text, self._tokens_of) for text in texts[read]]
                texts[op.results[0].name] = transformed
            else:
                tokenized = tokenize(op, self.tokenizers, texts[read], self.program.lengths)
                tokens |= {name: torch.from_numpy(array) for name, array in tokenized.items()}
        return tokens

    def _tokens_of(self, tokenizer: str, text: str) -> list[str]:
        return self.tokenizers[tokenizer].tokens(text)


def request_of(program: Program, prompt: str, seed: int) -> tuple[dict[str, list[str]], dict[str, NDArray[Any]]]:
    """Return the texts and arrays of a request: noise of a seed, smooth images, normal values for other arrays."""
    random = Generator(seed)
    texts = {i.name: [_text(i, prompt)] * i.type.fixed[0] for i in program.inputs if i.type.dtype == "text"}
    noises = [op for op in program.ops if op.operator == "noise"]
    arrays = {op.results[0].name: sampled(op, random, op.results[0].type.fixed) for op in noises}
    arrays |= {i.name: _array(i, random) for i in program.inputs if i.type.dtype not in ("text", "scalar")}
    return texts, arrays


def _text(item: Input, prompt: str) -> str:
    return "" if item.name == NEGATIVE else prompt


def _array(item: Input, random: Generator) -> NDArray[np.float32]:
    if not item.is_image:
        return random.randn(item.type.fixed)
    _, channels, height, width = item.type.fixed
    x, y = np.meshgrid(np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32))
    return np.broadcast_to(np.stack([x, y, 1 - x])[:channels], item.type.fixed).astype(np.float32)


def _check_finite(graph: Graph, results: Sequence[torch.Tensor], where: str) -> None:
    for port, tensor in zip(graph.outputs, results, strict=False):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            what = f"{graph.name} computes NaN or infinity for {port.name} during calibration"
            raise CalibrationError(what, where=where, fix="build for fp32, or calibrate with other prompts")


def _work(graph: Graph) -> int:
    return sum(multiply_adds(node) for node in graph.body.graph.nodes)
