"""Run a feature cache on a tiny sampler of the denoiser that its docstring draws, and compare the calls it makes.

    Before (a UNet):
        y0 = unet(x0)
        x1 = linear(x0, y0)
        y1 = unet(x1)

The drawing ends with the last call. Names of values and of partitions of the graph stand for those of the program, one
for one; the factors of ``linear`` are drawn where they matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from diffc.compiler.calibration.calibrate import Calibrator
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.ir.program import Op, Program, Ref
from diffc.compiler.tracing.trace import capture
from diffc.passes import NORMAL_FORM
from diffc.passes.cache import CACHES, Need
from diffc.passes.cache.auto.search import Searched

SKETCH = re.compile(
    r"^Before \(a (UNet|ResNet|transformer)\):\n((?:    .+\n)+)\nAfter(?: \((.+)\))?:\n((?:    .+\n)+)", re.M
)

Call = tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]
"""The results, the operator, the arguments and the factors of an operation."""


class UNet(nn.Module):
    """Compute a level inside of a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(4, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(64, 4, 3, 1, 1)
        self.inner, self.deeper = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        skip = self.down(x).relu()
        deep = self.deeper(self.inner(self.deep(functional.avg_pool2d(skip, 2)).relu()).relu()).relu()
        return self.up(torch.cat([functional.interpolate(deep, scale_factor=2.0), skip], 1))


class ResNet(nn.Module):
    """Compute one residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.inner, self.outer = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        hidden = self.first(x)
        return self.last(hidden + self.outer(self.inner(hidden.relu()).relu()))


class Block(nn.Module):
    """Attend from token to token, then compute each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.inner, self.outer = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add both."""
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.project(self.norm(x)).chunk(3, -1))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.outer(self.inner(x).relu())


class Transformer(nn.Module):
    """Compute four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 16), nn.Linear(16, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        return self.head(self.blocks(self.embed(x)))


DENOISERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "UNet": (UNet, (1, 4, 8, 8)),
    "ResNet": (ResNet, (1, 4, 8, 8)),
    "transformer": (Transformer, (1, 9, 4)),
}


def check(docstring: str, name: str) -> None:
    """Raise `AssertionError` where a cache makes other calls than its docstring draws."""
    sketch = SKETCH.search(f"{docstring}\n")
    assert sketch is not None
    kind, before, options, after = sketch.groups()
    steps = len(re.findall(r"^    y\d+ = ", before, re.M))
    program, finer = sampler(kind, steps), sampler(kind, 2 * steps)
    technique = CACHES[name.replace("_", "-")]
    supplies = {Need.CALIBRATOR: Calibrator(prompts=("a",)), Need.FINER_PROGRAM: finer}
    result = technique.apply(
        (program,), *(supplies[need] for need in technique.needs), **eval(f"dict({options or ''})")
    )
    (cached,) = result.programs if isinstance(result, Searched) else result
    for text, actual in ((before, program), (after, cached)):
        drawn, calls = _drawn(text), _calls(actual)
        assert _match(drawn, calls), f"drawn:\n{text}\nis:\n" + "\n".join(map(_text, calls))


@cache
def sampler(kind: str, steps: int) -> Program:
    """Compile some steps of Euler's method."""
    torch.manual_seed(0)
    denoiser, shape = DENOISERS[kind]
    module = denoiser().eval().requires_grad_(False)

    def sample() -> torch.Tensor:
        x = torch.randn(shape)
        for _ in range(steps):
            x = x - module(x) / steps
        return x

    return run(capture(sample, {kind.lower(): module}), NORMAL_FORM)


def _drawn(text: str) -> list[Call]:
    """Read a drawing."""
    lines = re.findall(r"^    (.+?) = (\w+)\(([^;)]*)(?:; ([^)]*))?\)$", text, re.M)
    assert len(lines) == len(text.splitlines()), text
    return [
        (_split(results), operator, _split(arguments), _split(factors))
        for results, operator, arguments, factors in lines
    ]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(", ")) if text else ()


def _calls(program: Program) -> list[Call]:
    """List the operations of a program from the noise to the last call of a graph."""
    graphs = {graph.name for graph in program.graphs}
    last = max(at for at, op in enumerate(program.ops) if op.operator in graphs)
    return [_call(op) for op in program.ops[: last + 1] if op.operator not in ("noise", "step")]


def _call(op: Op) -> Call:
    arguments: Sequence[Any] = [*op.args, *(value for _, value in op.attrs)]
    factors = tuple(str(coefficient) for coefficient in op.coefficients)
    names = tuple(value.name if isinstance(value, Ref) else str(value) for value in arguments)
    return tuple(value.name for value in op.results), op.operator, names, factors


def _text(call: Call) -> str:
    results, operator, arguments, factors = call
    return f"    {', '.join(results)} = {operator}({', '.join(arguments)}" + (
        f"; {', '.join(factors)})" if factors else ")"
    )


def _match(drawn: list[Call], calls: list[Call]) -> bool:
    """Return whether calls are those drawn, but for names."""
    names, back = {"linear": "linear"}, {"linear": "linear"}

    def is_same(name: str, actual: str) -> bool:
        return names.setdefault(name, actual) == actual and back.setdefault(actual, name) == name

    return len(drawn) == len(calls) and all(
        len(a[0]) == len(b[0])
        and len(a[2]) == len(b[2])
        and all(map(is_same, (*a[0], a[1], *a[2]), (*b[0], b[1], *b[2])))
        and (not a[3] or [float(x) for x in a[3]] == [float(x) for x in b[3]])
        for a, b in zip(drawn, calls, strict=True)
    )
