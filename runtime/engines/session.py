"""Define the interface of engines, and of the sessions that they open for graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from diffc.runtime.bundle.open import Bundle

Array = NDArray[Any]


@dataclass(frozen=True)
class Session:
    """Hold an opened graph: the names of each input, the count of the outputs, and the function that computes them.

    Threads may share ``run``, which takes an array for each input and returns arrays that no other call writes.
    ``engine`` describes in a few words who computes.
    """

    inputs: Sequence[frozenset[str]]
    outputs: int
    run: Callable[[Mapping[str, Array]], list[Array]]
    engine: str


class Engine(Protocol):
    """Open the graphs of a target's bundles. A class of this form registers in the entry-point group `diffc.engines`.

    It registers under the name of its target's back end, and is imported when the first graph is opened.
    """

    kinds: ClassVar[frozenset[str]]
    """The kinds of graph files that it opens, such as ``onnx``."""

    @classmethod
    def check(cls, precision: str) -> None:
        """Raise `BundleError` where it does not run a precision, or its packages are not installed."""

    @classmethod
    def open(cls, bundle: Bundle, graph: str, threads: int) -> Session:
        """Open a graph by its name, for so many threads; 0 takes all cores."""


PLACE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |\S*\w\.(cc|cpp|cu|h|hpp):\d+(:\d+)?:? ?")
"""Places in the code of an engine, which mean nothing to a user."""


def reason(error: Exception) -> str:
    """Return the telling line of an engine's error, without places in the engine's code.

    That is the first line, or the last where the first is nothing but such a place.

    >>> reason(RuntimeError("Exception from src/core.cpp:110:\\nCheck failed at src/node.cpp:94:\\nno such port"))
    'no such port'
    """
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1 if lines[0].startswith("Exception from") else 0]
    return (PLACE.sub("", line).strip() or type(error).__name__)[:300]
