"""Sample what an operation ``noise`` of a program stands for."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from diffc.runtime.program.program import Op
from diffc.runtime.rng import Generator


def sampled(op: Op, generator: Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the generator's next values of the operation's kind and element type, of ``shape``."""
    kind: dict[str, Any] = {key: value for key, value in op.attrs if key in ("kind", "low", "high")}
    return generator.values(shape, op.results[0].type.dtype, **kind)
