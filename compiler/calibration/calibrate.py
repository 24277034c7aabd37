"""Run the compiled program's own trajectory, to see what its graphs are given: sampler, steps and guidance as compiled.

Nothing but the checkpoint is needed: noise is drawn, prompts are built in unless a file gives others. What a prompt's
trajectory gave is kept in the cache of builds, so that an interrupted calibration resumes.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import fx

from diffc.compiler.analysis.stages import calls
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import BuildError, CalibrationError, DiffcWarning, Progress
from diffc.compiler.graph.body import body_of, size
from diffc.compiler.graph.lazy_weights import bytes_to_settle, settled
from diffc.compiler.ir.evaluate import apply
from diffc.compiler.ir.program import Graph, Input, Literal, Op, Program, Ref, Value
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.disk_cache import Cache
from diffc.runtime.memory import free_memory
from diffc.runtime.rng import Generator

PROMPTS = (
    "a red circle left of a blue square",
    "a photo of a cat asleep on a wooden chair",
    "a small green triangle above a large yellow star",
    "portrait of an old fisherman, oil painting",
    "a large purple square",
    "a city street at night in the rain, neon lights",
    "a blue circle below a small red triangle",
    "a bowl of fruit on a white table, studio light",
    "a small yellow circle right of a green square",
    "snowy mountains behind a lake, early morning",
    "a large red star left of a small purple circle",
    "a robot reading a newspaper, pencil drawing",
    "a green square above a red triangle",
    "macro photo of a bee on a lavender flower",
    "a small blue star",
    "an astronaut riding a horse on the moon",
)
"""What is drawn when no file says what: objects, scenes and styles."""

NEGATIVE = "negative_prompt"

WORK = 6e12
"""Multiply-adds after which no further prompt is started."""


@dataclass(frozen=True)
class Sample:
    """Hold what one call of a graph was given, in the order of its ports; ``step`` counts the calls before it."""

    graph: str
    step: int
    of: int
    prompt: int
    feeds: tuple[torch.Tensor, ...]

    def nearest(self, count: int) -> int:
        """Give the place nearest in time among ``count`` steps, which may be more or fewer than the sample's."""
        return round(self.step * (count - 1) / max(1, self.of - 1))


@dataclass(frozen=True)
class Drawing:
    """Hold what the float program made of a prompt: the latents after each step, and its first output."""

    prompt: str
    seed: int
    samples: tuple[Sample, ...]
    steps: tuple[torch.Tensor, ...]
    output: torch.Tensor

    @property
    def latents(self) -> torch.Tensor:
        """Give the latents of the last step, or the output of a program that marks no steps."""
        return self.steps[-1] if self.steps else self.output


Call = Callable[[int, tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]
"""Gives the outputs of a graph, of the count of its calls before and what it is given."""

Draw = Callable[[int, Mapping[str, Call]], list[Drawing]]
"""Draws the first prompts, with something else instead of some graphs."""


@dataclass(frozen=True)
class Calibration:
    """Hold the samples of some trajectories of one program, and a digest of what they were made from."""

    program: Program
    samples: tuple[Sample, ...]
    drawings: tuple[Drawing, ...]
    seed: int
    digest: str
    tokenizers: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        """List what was drawn."""
        return tuple(drawing.prompt for drawing in self.drawings)

    def of(self, graph: Graph) -> list[Sample]:
        """List the samples of one graph."""
        return [sample for sample in self.samples if sample.graph == graph.name]

    def drawn(
        self, program: Program, prompts: int, instead: Mapping[str, Call] = MappingProxyType({})
    ) -> list[Drawing]:
        """Draw the first prompts, from the same noise, with another program, or with ``instead`` of some graphs."""
        with self.drawing(program) as draw:
            return draw(prompts, instead)

    @contextmanager
    def drawing(self, program: Program) -> Iterator[Draw]:
        """Give what draws with another program as `drawn` does, however often: its graphs are made ready once."""
        run = _Run(program, self.tokenizers)

        def draw(prompts: int, instead: Mapping[str, Call]) -> list[Drawing]:
            run.instead = instead
            return [run.draw(each.prompt, each.seed, at) for at, each in enumerate(self.drawings[:prompts])]

        with run.ready:
            yield draw

    def few(self, count: int) -> Calibration:
        """Keep ``count`` samples of each graph, or all it has, drawn from all steps and prompts alike."""
        random, kept = torch.Generator().manual_seed(self.seed), set[int]()
        for name in dict.fromkeys(sample.graph for sample in self.samples):
            at = [n for n, sample in enumerate(self.samples) if sample.graph == name]
            kept |= {at[n] for n in torch.randperm(len(at), generator=random)[:count]}
        return replace(self, samples=tuple(self.samples[n] for n in sorted(kept)))


Calibrate = Callable[[Program], Calibration]
"""Give the trajectories of a program, as `calibrate` does."""


def calibrate(
    program: Program,
    tokenizers: Mapping[str, bytes],
    *,
    prompts: Sequence[str] = (),
    seed: int = 0,
    source: str = "",
    cache: Cache | None = None,
    progress: Progress = lambda _: None,
) -> Calibration:
    """Draw each prompt with the program, and keep what every graph with weights was given.

    ``source`` is a digest of the weights; without it nothing is kept in the cache. Built-in prompts end when much work
    was done, prompts of a file do not. Raises `CalibrationError` where a graph gives NaN or infinity.
    """
    run = _Run(program, tokenizers)
    texts = tuple(prompts or PROMPTS[: max(1, math.ceil(WORK / max(1, run.work)))])
    drawings, digest = list[Drawing](), hashlib.sha256(f"{program}{seed}{source}".encode())
    with run.ready:
        for at, prompt in enumerate(texts):
            key = hashlib.sha256(json.dumps([str(program), source, prompt, seed + at]).encode()).hexdigest()
            found = _read(cache.get(key), prompt, seed + at, at) if cache and source else None
            if found is None:
                progress(f"calibrate {at + 1}: {prompt}")
                with warnings.catch_warnings():
                    if not prompts:  # nobody wrote them for this model
                        warnings.simplefilter("ignore", DiffcWarning)
                    found = run.draw(prompt, seed + at, at)
                if cache and source:
                    cache.put(key, _written(found))
            drawings.append(found)
            digest.update(prompt.encode() + b"\0")
    samples = tuple(sample for drawing in drawings for sample in drawing.samples)
    return Calibration(program, samples, tuple(drawings), seed, digest.hexdigest(), tokenizers)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts to calibrate with, one a line. Raises `BuildError` for a file that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} cannot be read: {error}", fix="give a UTF-8 text file, one prompt a line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise BuildError(f"{path} holds no prompts", where="--calibration", fix="write one prompt a line")
    return prompts


class _Run:
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


def _written(drawing: Drawing) -> bytes:
    """Write a drawing; what several calls were given is written once."""
    tensors, names, index = dict[str, torch.Tensor](), dict[int, str](), []
    for sample in drawing.samples:
        for tensor in sample.feeds:
            if id(tensor) not in names:
                names[id(tensor)] = str(len(names))
                tensors[names[id(tensor)]] = tensor.contiguous().clone()
        index.append([sample.graph, sample.step, sample.of, [names[id(tensor)] for tensor in sample.feeds]])
    tensors |= {f"step {at}": latents.contiguous() for at, latents in enumerate(drawing.steps)}
    tensors["output"] = drawing.output.contiguous()
    return bytes(write_tensors(tensors, {"index": json.dumps(index)}))


def _read(data: bytes | None, prompt: str, seed: int, number: int) -> Drawing | None:
    """Read a drawing; None where the entry is none."""
    if data is None:
        return None
    try:
        tensors = read_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        index = json.loads(header["__metadata__"]["index"])
        samples = [Sample(g, step, of, number, tuple(tensors[n] for n in names)) for g, step, of, names in index]
        steps = [tensors[f"step {at}"] for at in range(sum(name.startswith("step ") for name in tensors))]
        return Drawing(prompt, seed, tuple(samples), tuple(steps), tensors["output"])
    except (SafetensorError, LookupError, TypeError, ValueError):
        return None


Visit = Callable[[fx.Node, tuple[Any, ...], Any, Sample], None]
"""Is shown what reaches a node in one call, and what it gives."""


def watch(graph: Graph, samples: Sequence[Sample], nodes: Mapping[str, Sequence[int]], visit: Visit) -> None:
    """Run the samples of a graph again, and show what reaches some of its nodes; nothing else is kept."""
    module = body_of(graph)
    watcher = _Watcher(module, nodes, visit)
    with settled(module), torch.no_grad():
        for sample in samples:
            watcher.sample = sample
            watcher.run(*sample.feeds)


class _Watcher(fx.Interpreter):
    sample: Sample

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, Sequence[int]], visit: Visit) -> None:
        super().__init__(module)
        self.nodes, self.visit = nodes, visit

    def run_node(self, n: fx.Node) -> object:
        found = super().run_node(n)
        if n.name in self.nodes:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.visit(n, tuple(args[at] if at < len(args) else None for at in self.nodes[n.name]), found, self.sample)
        return found
