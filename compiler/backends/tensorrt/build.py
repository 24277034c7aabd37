"""Build TensorRT engines, each in a process of its own: a builder that crashes or hangs ends alone."""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from diffc.compiler.backends.backend import BuiltEngine
from diffc.compiler.errors import BackendError, BuildError, Progress
from diffc.runtime.bundle.onnx_external_data import external_bytes
from diffc.runtime.memory import free_memory

FOLDER = "engines"
BUILDER = "diffc.compiler.backends.tensorrt.build_process"

PATIENCE = 1800.0
"""Seconds without a message after which a builder counts as hung: 2 billion weights keep it silent for 2 minutes."""

MEMORY = (4, 600 << 20)
"""The peak memory of a builder: a multiple of the graph's weights, plus some bytes (docs/measured/engines.md)."""

PROGRAM_MEMORY = (6, 1000 << 20)
"""The same of a builder that converts a program: 5.2 times 200 MB of weights in float16, and PyTorch for CUDA."""

OFTEN = 5.0
"""Seconds between two lines of progress."""

LAST_WORDS = 300
FIX = "build for ort-fp16, which runs everywhere, and report this with the model's configuration"
FIX_STRIP = "finalize without --strip, and report this with the model's configuration"
FIX_PROGRAM = "build for trt-fp16, which takes ONNX instead, and report this with the model's configuration"


@dataclass(frozen=True)
class EngineRequest:
    """Name an ONNX file to build an engine of, the graphs that it serves, and the shapes of each input, graph by graph.

    One to ``strip`` leaves its weights out, which takes a GPU to build. A ``program`` is the file of the exported
    program, from which the engine is then built instead.
    """

    file: str
    graphs: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    strip: bool = False
    program: str = ""


@dataclass(frozen=True)
class Built(BuiltEngine):
    """Describe an engine, and the work that it took.

    ``types`` counts the values inside by their type; ``weights`` are the bytes of the graph's own, which an engine that
    is ``stripped`` does not hold.
    """

    bytes: int
    seconds: float
    peak_bytes: int
    layers: int
    types: Mapping[str, int]
    weights: int
    stripped: bool = False

    @property
    def entry(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return super().entry | ({"stripped": True} if self.stripped else {})


class Failure(Exception):
    """Describe how a builder failed: its last message, the node, and whether a smaller graph may show more."""

    def __init__(self, what: str, node: str = "", *, is_crash: bool = False) -> None:
        super().__init__(what)
        self.what, self.node, self.is_crash = what, node, is_crash


FindNode = Callable[[Path, Callable[[Path], bool]], str]
"""A function that finds the node at which a builder fails, by building smaller graphs."""


def engine_requests(
    graphs: Iterable[Any], files: Mapping[str, str], component: Callable[[str], str]
) -> list[EngineRequest]:
    """Return a request for each file of a component's graphs, but for those in float64, which TensorRT has not."""
    by_file: dict[str, list[Any]] = {}
    for graph in graphs:
        ports = (*graph.inputs, *graph.outputs)
        if component(graph.name) and all(port.type.dtype != "float64" for port in ports):
            by_file.setdefault(files[graph.name], []).append(graph)
    return [EngineRequest(file, tuple(graph.name for graph in of), _shapes(of)) for file, of in by_file.items()]


def _shapes(graphs: Sequence[Any]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """List the shape of each input in each graph; graphs of one file name their inputs alike."""
    return {
        ports[0].name: tuple(tuple(port.type.shape) for port in ports)
        for ports in zip(*(graph.inputs for graph in graphs), strict=True)
    }


def build_engines(
    root: Path,
    requests: Sequence[EngineRequest],
    archs: Sequence[str],
    progress: Progress,
    *,
    kind: str | None = None,
    find_node: FindNode | None = None,
    patience: float = PATIENCE,
) -> dict[str, Built]:
    """Build the requested engines of files below ``root`` into ``root/engines``, and return each graph's engine.

    ``kind`` chooses among the libraries of `diffc.runtime.engines.tensorrt_library`. Raises `BackendError` with the
    builder's last message, and the node at fault if it or ``find_node`` finds it; and `BuildError` at once where memory
    does not suffice.
    """
    weights = [weight_bytes(root / request.file) for request in requests]
    check_memory(max(weights, default=0), PROGRAM_MEMORY if any(request.program for request in requests) else MEMORY)
    (root / FOLDER).mkdir(exist_ok=True)
    engines: dict[str, Built] = {}
    for request, size in zip(requests, weights, strict=True):
        engines |= dict.fromkeys(
            request.graphs, _built(root, request, size, archs, progress, kind, find_node, patience)
        )
    return engines


def weight_bytes(file: Path) -> int:
    """Sum the bytes of an ONNX file and of its external weights."""
    model = file.read_bytes()
    return len(model) + external_bytes(model)


def check_memory(weights: int, taken: tuple[int, int] = MEMORY) -> None:
    """Raise `BuildError` where memory does not suffice to build an engine of so many bytes of weights."""
    needed, free = taken[0] * weights + taken[1], free_memory()
    if free is not None and free < needed:
        what = f"TensorRT's builder needs up to {needed / 1e9:.1f} GB of memory, and there are {free / 1e9:.1f} GB"
        raise BuildError(what, fix="end other programs, add swap, or take a target that stores less, such as trt-w4a16")


def _built(
    root: Path,
    request: EngineRequest,
    weights: int,
    archs: Sequence[str],
    progress: Progress,
    kind: str | None,
    find_node: FindNode | None,
    patience: float,
) -> Built:
    name, file = request.graphs[0], root / request.file
    engine = f"{FOLDER}/{name}.engine"
    options = {"archs": list(archs), "kind": kind, "shapes": request.shapes, "strip": request.strip}
    options |= {"program": request.program}

    def run(graph: Path, target: Path, tell: Progress) -> dict[str, Any]:
        return _child({**options, "graph": str(graph), "engine": str(target)}, tell, patience)

    try:
        answer = run(file, root / engine, lambda phase: progress(f"engine {name}: {phase}"))
    except Failure as failure:
        node = failure.node
        if not node and failure.is_crash and find_node is not None:
            progress(f"engine {name}: look for the node at fault")
            node = find_node(file, lambda smaller: _fails(run, smaller))
        where = f"{node}, in {name}" if node else name
        fix = FIX_STRIP if request.strip else FIX_PROGRAM if request.program else FIX
        raise BackendError(f"no engine for {name}: {failure.what}", where=where, fix=fix) from failure
    size = (root / engine).stat().st_size
    return Built(engine, answer.pop("builder"), tuple(archs), size, **answer, weights=weights, stripped=request.strip)


def _fails(run: Callable[[Path, Path, Progress], Any], graph: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(graph, Path(folder) / "engine", lambda _: None)
        except Failure:
            return True
    return False


def _child(request: Mapping[str, Any], tell: Progress, patience: float) -> dict[str, Any]:
    """Build in a process of its own; raise `Failure` where it reports one, dies or falls silent."""
    with tempfile.TemporaryFile() as words:
        command = [sys.executable, "-m", BUILDER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words)
        assert process.stdin and process.stdout
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps(request).encode())
            answer = _answer(process.stdout, tell, patience)
            if answer is None:
                raise Failure(f"the builder sent no message for {patience:.0f} s and was stopped")
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if "built" in answer:
            return dict(answer["built"])
        if "failed" in answer:
            node = " ".join(part for part in (answer["operator"], answer["node"]) if part)
            raise Failure(_short(answer["failed"]), node, is_crash=not node)
        words.seek(0)
        raise _crash(code, words.read().decode(errors="replace"))


def _answer(lines: IO[bytes], tell: Progress, patience: float) -> dict[str, Any] | None:
    """Read the builder's messages to its answer: an empty one where it ended without, None where it hangs."""
    reported, phase, unread = time.monotonic(), "", b""
    with selectors.DefaultSelector() as selector:
        selector.register(lines, selectors.EVENT_READ)
        while selector.select(patience):
            piece = lines.read1()  # type: ignore[attr-defined]
            if not piece:
                return {}
            *lines_read, unread = (unread + piece).split(b"\n")
            for line in lines_read:
                answer: dict[str, Any] = json.loads(line)
                if "phase" not in answer:
                    return answer
                phase = answer["phase"] or phase
            if time.monotonic() - reported > OFTEN:
                tell(phase)
                reported = time.monotonic()
    return None


def _crash(code: int, words: str) -> Failure:
    """Describe how a process ended that returned no result."""
    last = _short(next((line for line in reversed(words.splitlines()) if line.strip()), "it sent no message"))
    if code == -signal.SIGKILL:
        return Failure(f"the builder was killed, as it is when memory runs out; its last words: {last}")
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
    return Failure(f"the builder {how}; its last words: {last}", is_crash=True)


def _short(text: str) -> str:
    return " ".join(text.split())[:LAST_WORDS]
