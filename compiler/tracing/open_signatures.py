"""Name the lengths in the sizes of a component's call by the component: calls with other texts share its graph.

transformer(sample: float32[1, 64, 8], text: float32[1, L1 - 34, 32])         the call
transformer(sample: float32[1, 64, 8], text: float32[1, L0, 32])              its graph, where L0 is L1 - 34
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Type, Value
from diffc.runtime.program.size import AnySize, Size


@dataclass(frozen=True)
class Span:
    """Hold the bounds of a length, and the value that it has in the trace."""

    least: int
    most: int
    at: int

    def joined(self, span: Span) -> Span:
        """Return the bounds of both."""
        return Span(min(self.least, span.least), max(self.most, span.most), self.at)


@dataclass(frozen=True)
class OpenCall:
    """Hold the ports, results and static arguments of a call, whose sizes are functions of ``lengths``."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    leaves: tuple[Any, ...]
    lengths: Mapping[str, Span]

    def renamed(self, prefix: str) -> OpenCall:
        """Put a prefix before the names of the lengths."""
        names = {name: Size.of(prefix + name) for name in self.lengths}
        return OpenCall(
            tuple(_localized(port, names) for port in self.inputs),
            tuple(_localized(port, names) for port in self.outputs),
            tuple(_replaced(leaf, names) for leaf in self.leaves),
            {prefix + name: span for name, span in self.lengths.items()},
        )


def localized(
    inputs: Sequence[Value], outputs: Sequence[Value], leaves: Sequence[Any], spans: Mapping[str, Span]
) -> OpenCall:
    """Replace the lengths of a program by those of a graph, each of which is the size of a port.

    Raises `CaptureError` where the ports' sizes do not decide the others.
    """
    replaced, defined = dict[str, AnySize](), dict[str, Size]()
    for size in (size for port in inputs for size in port.type.shape if isinstance(size, Size)):
        rest = size.replaced(replaced)
        free = [(name, factor) for name, factor in rest.factors if name in spans] if isinstance(rest, Size) else []
        if not free:
            continue
        name, factor = next(((name, factor) for name, factor in free if abs(factor) == 1), free[0])
        local = f"S{len(defined)}"
        defined[local] = size if abs(factor) == 1 else Size.of(name)
        solution = factor * (Size.of(local) - (rest - factor * Size.of(name))) if abs(factor) == 1 else Size.of(local)
        replaced = {key: _replaced(value, {name: solution}) for key, value in replaced.items()} | {name: solution}
    bounds = {name: (span.least, span.most) for name, span in spans.items()}
    counts = {name: span.at for name, span in spans.items()}
    lengths = {local: Span(*size.bounds(bounds), size.at(counts)) for local, size in defined.items()}
    call = OpenCall(
        tuple(_localized(port, replaced) for port in inputs),
        tuple(_localized(port, replaced) for port in outputs),
        tuple(_replaced(leaf, replaced) for leaf in leaves),
        lengths,
    )
    sizes = [size for value in (*call.inputs, *call.outputs) for size in value.type.shape]
    for size in (*sizes, *call.leaves):
        if isinstance(size, Size) and not lengths.keys() >= set(size.lengths):
            what = f"a component's result or argument has a size, {size}, that no tensor among its arguments has"
            raise CaptureError(what, fix="pass a tensor of that size to the component")
    return call


def _localized(value: Value, sizes: Mapping[str, AnySize]) -> Value:
    shape = tuple(_replaced(size, sizes) for size in value.type.shape)
    return Value(value.name, Type(value.type.dtype, shape))


def _replaced(item: Any, sizes: Mapping[str, AnySize]) -> Any:
    return item.replaced(sizes) if isinstance(item, Size) else item
