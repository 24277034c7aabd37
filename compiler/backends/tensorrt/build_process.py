"""Build one TensorRT engine, as the main program of a process of its own.

The request is one JSON object on stdin. The answer is lines of JSON on stdout: ``{"phase": …}`` as the work proceeds,
then ``{"built": …}`` or ``{"failed": …}``. Output of the library itself goes to stderr.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffc.runtime.bundle.onnx_external_data import output_names
from diffc.runtime.engines.tensorrt_library import CLASSIC, RTX, Library, Plan, find_library
from diffc.runtime.memory import peak_bytes

TIMING_CACHE = "timing.cache"
"""The file beside the engines in which classic TensorRT keeps its timings."""

Tell = Callable[[dict[str, Any]], None]

Shapes = dict[str, tuple[int, ...]]
"""The shape of each input in one call."""


def main() -> None:
    """Read a request, build the engine, and answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    tell(build(json.load(sys.stdin), tell))


def build(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Build the engine of ``graph``, an ONNX file, for ``archs`` and write it to ``engine``.

    Open sizes of the file have the ranges of ``shapes``, which lists those of each input, call by call. With ``strip``
    the weights are left out, and the engine is opened and refitted with them before it counts as built.
    """
    start, library = time.monotonic(), find_library(request["kind"])
    trt = library.module
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tell({"phase": "parse"})
    # it owns the weights, and lives until the engine is built
    held, refused = (_converted if request.get("program") else _parsed)(network, logger, library, request)
    if refused:
        return refused
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True  # where no kernel has its shape, several compute it
    engine_file = Path(request["engine"])
    config, cache = builder.create_builder_config(), engine_file.with_name(TIMING_CACHE)
    config.progress_monitor = _monitor(trt, tell)
    _aim(config, library, request["archs"], cache)
    _open_sizes(builder, network, config, request["shapes"])
    if request["strip"]:
        strip(config, trt)
    built = builder.build_serialized_network(network, config)
    failed = logger.last if built is None else ""
    if built is not None and request["strip"]:
        tell({"phase": "take the weights back"})
        failed = not_refitted(library, memoryview(built), Path(request["graph"]))
    if failed:
        return {"failed": failed, "node": "", "operator": ""}
    engine_file.write_bytes(memoryview(built))
    if library.kind == CLASSIC:
        cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return {
        "built": {
            "builder": str(library),
            "seconds": time.monotonic() - start,
            "peak_bytes": peak_bytes(),
            "layers": network.num_layers,
            "types": Counter(dtype for layer in _layers(network) for dtype in _types(layer)),
        }
    }


def _parsed(network: Any, logger: Any, library: Library, request: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Fill a network from an ONNX file; return the owner of its weights and, where it is refused, the reasons."""
    parser = library.module.OnnxParser(network, logger)
    if parser.parse_from_file(request["graph"]):
        return parser, {}
    error = parser.get_error(0)
    return None, {"failed": error.desc(), "node": error.node_name(), "operator": error.node_operator()}


def _converted(network: Any, logger: Any, library: Library, request: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Fill a network with an exported program in the same way, and call its ports as the ONNX file does."""
    from diffc.compiler.backends.tensorrt.torch_tensorrt import convert

    held, refused = convert(network, library, request["program"], request["archs"][0])
    for at, name in enumerate(request["shapes"] if not refused else ()):
        network.get_input(at).name = name
    for at, name in enumerate(output_names(Path(request["graph"]).read_bytes()) if not refused else ()):
        network.get_output(at).name = name
    return held, refused


def ranges(shapes: Mapping[str, Sequence[Sequence[int]]]) -> list[tuple[Shapes, Shapes]]:
    """Divide calls among ranges of shapes, and return the smallest and the largest shapes of each.

    Both are shapes of a call: a graph's arithmetic on sizes was checked for these, and for no others.

    >>> ranges({"x": [(2, 8, 8), (1, 8, 8), (1, 8, 12)]})
    [({'x': (1, 8, 8)}, {'x': (2, 8, 8)}), ({'x': (1, 8, 12)}, {'x': (1, 8, 12)})]
    """
    calls = [dict(zip(shapes, map(tuple, each), strict=True)) for each in zip(*shapes.values(), strict=True)]
    groups = list[list[Shapes]]()
    for call in calls:
        fits = (group for group in groups if all(end in [*group, call] for end in _ends([*group, call])))
        if (group := next(fits, None)) is not None:
            group.append(call)
        else:
            groups.append([call])
    return list(map(_ends, groups))


def _ends(calls: Sequence[Shapes]) -> tuple[Shapes, Shapes]:
    """Return the smallest and the largest value of each size."""
    sizes = {name: list(zip(*(call[name] for call in calls), strict=True)) for name in calls[0]}
    least, most = ({name: tuple(map(of, each)) for name, each in sizes.items()} for of in (min, max))
    return least, most


def _aim(config: Any, library: Library, archs: list[str], cache: Path) -> None:
    """Set the GPUs of the engine; classic TensorRT builds for the GPU of this machine, and measures on it."""
    trt = library.module
    if library.kind == RTX:
        config.num_compute_capabilities = len(archs)
        for at, arch in enumerate(archs):
            config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), at)
    else:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)


def _open_sizes(builder: Any, network: Any, config: Any, listed: dict[str, list[list[int]]]) -> None:
    """Set the ranges of the open sizes of a network's inputs."""
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    if any(-1 in tensor.shape for tensor in inputs):
        for least, most in ranges(listed):
            profile = builder.create_optimization_profile()
            for name in (tensor.name for tensor in inputs):
                profile.set_shape(name, least[name], most[name], most[name])  # best for the largest
            config.add_optimization_profile(profile)


def strip(config: Any, trt: Any) -> None:
    """Leave the weights out of an engine that is refitted with the same values: it may be optimized for them."""
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def not_refitted(library: Library, plan: Any, graph: Path) -> str:
    """Return why an engine cannot be refitted with the weights of its graph; nothing where it can."""
    try:
        Plan(library, plan).refit(graph)
    except ValueError as error:
        return f"without weights it is built, but {error}"
    return ""


def _layers(network: Any) -> Iterator[Any]:
    for at in range(network.num_layers):
        yield network.get_layer(at)


def _types(layer: Any) -> Iterator[str]:
    for at in range(layer.num_outputs):
        yield layer.get_output(at).dtype.name


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Print errors, and keep the last one."""

        def __init__(self) -> None:
            super().__init__()
            self.last = "the builder does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message
                print(message, file=sys.stderr, flush=True)

    return Logger()


def _monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Report the phase that begins."""

        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            tell({"phase": phase.lower()})

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            tell({"phase": ""})

    return Monitor()


if __name__ == "__main__":
    main()
