"""Run a pass on the graph that its docstring draws, and compare the graphs that it makes with the drawing.

    Before (inside a graph):
        out = linear(sample, w0) * linear(text, w1)

    After:
        request = linear(text, w1)
        out = linear(sample, w0) * request

A sampler of two steps calls the graph: ``sample`` and x are its values, ``timestep`` is of the step, names that begin
with w are weights, and others are inputs of the request. A value of the name of a stage is what the graph of that
stage returns. Views are not drawn, and a name stands for one value in both drawings.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Tensor
from diffc.compiler.tracing.trace import trace
from diffc.passes import NORMAL_FORM
from tests.sketch import Bindings, expression, operation, statements

SKETCH = re.compile(r"^Before \(inside a graph\):\n((?:    .+\n)+)\nAfter(?: \((.+)\))?:\n((?:    .+\n)+)", re.M)

STEPS = (0.9, 0.4)
SHAPE = (1, 4, 16)
FUNCTIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    "linear": functional.linear,
    "silu": functional.silu,
    "attention": lambda queries, keys: functional.scaled_dot_product_attention(queries, keys, keys),
    "sqrt": torch.sqrt,
    "mean": lambda x: x.mean(-1, keepdim=True),
}
VIEWS = ("split_with_sizes", "getitem", "cat")
CASTS = {torch.float16: "half", torch.float32: "float"}


def check(docstring: str, rewrite: Callable[..., Any]) -> None:
    """Raise `AssertionError` where a pass makes other graphs than its docstring draws."""
    sketch = SKETCH.search(f"{docstring}\n")
    assert sketch is not None
    before, options, after = sketch.groups()
    program = _sampler(before)
    call = eval(f"lambda rewrite, subject: rewrite(subject, {options or ''})", {"torch": torch})
    if "graph" in inspect.signature(rewrite).parameters:
        graphs = (call(rewrite, program.graphs[0]),)
    else:
        graphs = call(rewrite, (program,))[0].graphs
    bindings = Bindings([port.name for port in program.graphs[0].inputs])
    _compare(before, program.graphs, bindings)
    _compare(after, graphs, bindings)


def _compare(text: str, graphs: tuple[Graph, ...], bindings: Bindings) -> None:
    """Compare a drawing with the graphs; the last value is what the graph without a stage returns."""
    values = statements(text)
    stages = {graph.stage for graph in graphs} & values.keys()
    assert {graph.stage for graph in graphs} - stages == {""}, f"drawn:\n{text}\nstages: {[g.stage for g in graphs]}"
    for graph in graphs:
        name = graph.stage or [*values][-1]
        drawn = expression({key: value for key, value in values.items() if key == name or key not in stages}, name)
        rendered = bindings.render(body_of(graph), [port.name for port in graph.inputs], _operation)
        assert bindings.match(drawn, rendered), f"drawn:\n{text}\nis:\n    {name} = {rendered}"


@cache
def _sampler(text: str) -> Program:
    """Compile two steps with the graph of a drawing."""
    values = statements(text)
    free = dict.fromkeys(node.id for node in ast.walk(expression(values)) if isinstance(node, ast.Name))
    weights = [name for name in free if re.fullmatch(r"w\d*", name)]
    inputs = [name for name in free if name not in (*FUNCTIONS, *weights)]
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn(16, 16) / 4, requires_grad=False) for name in weights}
    state, *others = sorted(inputs, key=lambda name: name not in ("sample", "x"))
    namespace: dict[str, Any] = {**FUNCTIONS, **parameters}
    lines = [*(line.strip() for line in text.splitlines()), f"return {[*values][-1]}"]
    exec(f"def forward(self, {', '.join([state, *others])}): {'; '.join(lines)}", namespace)
    denoiser = type("Denoiser", (nn.Module,), {"forward": namespace["forward"]})()
    for name, parameter in parameters.items():
        denoiser.register_parameter(name, parameter)

    def sample(**request: torch.Tensor) -> torch.Tensor:
        x = torch.randn(SHAPE)
        for step in STEPS:
            time = {"timestep": torch.full((1, 16), step)} if "timestep" in others else {}
            x = x - denoiser(x, **time, **request)
        return x

    shapes = {name: SHAPE if name == "text" else (1, 16) for name in others if name != "timestep"}
    calls = ComponentCalls()
    request = {name: Tensor(shape) for name, shape in shapes.items()}
    (program,) = calls.graphs([trace(sample, {"denoiser": denoiser}, request, calls=calls)])
    return run(program, NORMAL_FORM)


def _operation(node: fx.Node, texts: dict[fx.Node, str]) -> str:
    """Return a call in the words of the drawings."""
    target: Any = node.target
    name = getattr(target, "_opname", getattr(target, "__name__", ""))
    arguments = [texts[argument] for argument in node.all_input_nodes]
    if name == "_to_copy":
        return f"{CASTS[node.kwargs['dtype']]}({arguments[0]})"  # type: ignore[index]
    if name in VIEWS and len(arguments) == 1:
        return arguments[0]
    if name == "scaled_dot_product_attention":
        return f"attention({', '.join(arguments)})"
    return operation(node, texts)
