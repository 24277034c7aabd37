"""Lower graphs with torch_tensorrt: engines of TensorRT for RTX from the exported programs, rather than from ONNX.

The bundle is that of `diffc.compiler.backends.tensorrt.backend`, with the same ONNX beside the engines, so that all
else is done as there. The network is built by torch_tensorrt's converters of ATen instead of TensorRT's parser of
ONNX. `lower` and `engines` run in the compiler, `convert` in the builder's process.

Source: https://docs.pytorch.org/TensorRT (its pages on the dynamo frontend: lowering passes and converters)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from diffc.compiler.backends.backend import BuiltEngine, Lowered
from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.backends.tensorrt.backend import TensorRT, component_of, from_arch
from diffc.compiler.backends.tensorrt.build import build_engines, engine_requests
from diffc.compiler.errors import Progress
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import Graph, require_fixed_sizes
from diffc.runtime.engines.tensorrt_library import MODULES, RTX, Library
from diffc.runtime.precisions import Precision

PACKAGE = "torch-tensorrt-rtx"

version(PACKAGE)  # raises as the import of a missing module does
if torch.version.cuda is None:
    raise ImportError(f"{PACKAGE} needs PyTorch with CUDA, and {torch.__version__} has none")

PROGRAM = 4
"""Bytes for each weight in the program that the builder reads: it computes low-bit, and is stored in float32."""


class TorchTensorRT(Onnx):
    """Write ONNX, and build engines of TensorRT for RTX from the exported programs with torch_tensorrt."""

    precisions: ClassVar[Mapping[str, Precision]] = {
        name: row for name, row in TensorRT.precisions.items() if not row.recipe
    }  # whose graphs are ATen alone: quantized ones have operators of diffc
    computes: ClassVar[Mapping[str, str]] = {name: TensorRT.computes[name] for name in ("fp16", "bf16")}
    archs: ClassVar[Mapping[str, Sequence[str]]] = {name: from_arch(row.arch) for name, row in precisions.items()}
    dialect = TensorRT.dialect

    @classmethod
    def bytes_per_weight(cls, precision: str) -> float:
        """Return the bytes in graphs, engines and programs."""
        return TensorRT.bytes_per_weight(precision) + PROGRAM

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write each graph, and keep its exported program."""
        require_fixed_sizes(graphs, "engines of TensorRT")
        self.bodies = {graph.name: graph.body for graph in graphs}
        return super().lower(graphs, precision, folder, progress)

    def engines(self, lowered: Lowered) -> Mapping[str, BuiltEngine]:
        """Build engines for the GPUs that are named, or for all; one program is on disk at a time."""
        engines: dict[str, BuiltEngine] = {}
        archs = lowered.archs or self.archs[lowered.precision]
        for request in engine_requests(lowered.graphs, lowered.files, component_of(lowered.graphs)):
            with tempfile.TemporaryDirectory(dir=lowered.folder) as place:
                program = Path(place) / "program.pt2"
                torch.export.save(materialized(self.bodies[request.graphs[0]]), program)
                requests = [replace(request, program=str(program))]
                engines |= build_engines(lowered.folder, requests, archs, lowered.progress, kind=RTX)
        return engines


def materialized(body: ExportedProgram) -> ExportedProgram:
    """Return a program with its weights materialized."""
    return ExportedProgram(
        body.graph_module,
        body.graph,
        body.graph_signature,
        {name: _read(tensor) for name, tensor in body.state_dict.items()},
        body.range_constraints,
        body.module_call_graph,
        constants=pytree.tree_map_only(torch.Tensor, read, body.constants),
        verifiers=body.verifiers,
    )


def _read(tensor: torch.Tensor) -> torch.Tensor:
    """Return the materialized tensor of a lazy weight, a parameter if the weight is one."""
    return nn.Parameter(read(tensor), False) if isinstance(tensor, nn.Parameter) else read(tensor)


def convert(network: Any, library: Library, file: str, arch: str) -> tuple[Any, dict[str, str]]:
    """Fill a network from a program; return the owner of its weights and, where it is refused, the reasons.

    torch_tensorrt would build the engine too, but for the GPU of this machine, and would open it.
    """
    _answer(library, arch)
    from torch_tensorrt import Input
    from torch_tensorrt.dynamo import CompilationSettings, conversion, lowering

    class Interpreter(conversion.TRTInterpreter):  # type: ignore[misc]
        """Remember the node that is converted."""

        def run_node(self, node: fx.Node) -> Any:
            self.node = node
            return super().run_node(node)

    settings = CompilationSettings()
    program = lowering.pre_export_lowering(torch.export.load(file), settings)
    program = program.run_decompositions(lowering.get_decompositions())
    body = lowering.post_lowering(program.module(), settings)
    examples = [node.meta["val"] for node in body.graph.find_nodes(op="placeholder")]
    dtypes = [node.meta["val"].dtype for node in body.graph.output_node().all_input_nodes]
    inputs = [Input(shape=tuple(value.shape), dtype=value.dtype) for value in examples]
    interpreter = Interpreter(body, inputs, dtypes, settings)
    interpreter.ctx.net = network
    try:
        fx.Interpreter.run(interpreter)  # which converts; its own ``run`` goes on to build
    except Exception as error:
        return None, {"failed": str(error), "node": interpreter.node.name, "operator": str(interpreter.node.target)}
    return interpreter, {}


def _answer(library: Library, arch: str) -> None:
    """Make torch_tensorrt importable: it looks for its library and for a GPU when it is imported.

    No GPU is needed to convert. This process converts one program and ends, so the replaced functions affect nothing
    else.
    """
    sys.modules[MODULES[RTX]] = library.module
    capability = divmod(int(arch.removeprefix("sm")), 10)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: capability
