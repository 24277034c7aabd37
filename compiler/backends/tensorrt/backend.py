"""Lower graphs for TensorRT: strongly typed ONNX, and the engines that its builder compiles, without a GPU.

The ONNX stays in the bundle: any machine runs it, and classic TensorRT builds from it where its GPU is. Arithmetic
between components has no engine: it is small, and some of it in float64, which TensorRT has not.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from diffc.compiler.backends.backend import BuiltEngine, Lowered
from diffc.compiler.backends.onnx.export import Onnx, attention_with_signs
from diffc.compiler.backends.tensorrt.bisect_crash import first_failing_node
from diffc.compiler.backends.tensorrt.build import build_engines, engine_requests
from diffc.compiler.backends.tensorrt.dialect import TensorRTDialect
from diffc.compiler.backends.tensorrt.merge_shapes import merge_files
from diffc.compiler.errors import Progress
from diffc.compiler.ir.program import Graph, require_fixed_sizes
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec
from diffc.runtime.engines.tensorrt_library import RTX, installed
from diffc.runtime.precisions import PRECISIONS, Precision

if RTX not in installed():
    raise ModuleNotFoundError("No module named 'tensorrt_rtx'", name="tensorrt_rtx")

ALL = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def from_arch(least: str) -> Sequence[str]:
    """Return the architectures from one on."""
    return ALL[ALL.index(least) :]


class TensorRT(Onnx):
    """Write ONNX for TensorRT for RTX, and build its engines."""

    precisions: ClassVar[Mapping[str, Precision]] = {name: row for name, row in PRECISIONS.items() if row.arch}
    computes: ClassVar[Mapping[str, str]] = {name: row.gpu for name, row in precisions.items() if row.gpu != "float32"}
    archs: ClassVar[Mapping[str, Sequence[str]]] = {name: from_arch(row.arch) for name, row in precisions.items()}
    dialect = TensorRTDialect

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write graphs that differ in the shapes of their inputs alone as one: its engine holds the weights once."""
        require_fixed_sizes(graphs, "engines of TensorRT")
        files = super().lower(graphs, precision, folder, progress)
        components: dict[str, list[str]] = {}
        for graph in graphs:
            components.setdefault(graph.component, []).append(files[graph.name])
        shared: dict[str, str] = {}
        for of in components.values():
            shared |= merge_files(folder, of)
        return {name: shared[file] for name, file in files.items()}

    @classmethod
    def bytes_per_weight(cls, precision: str) -> float:
        """Return the bytes in graphs and engines."""
        row = cls.precisions[precision]
        return row.bytes_per_weight + row.engine_bytes_per_weight

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Restrict each layer to the low-bit formats of an engine: with others its build fails, or widens them."""
        weight, activation = scheme.weight, scheme.activation
        if kind == "embedding":
            return Scheme(), "TensorRT looks tables up in float" if weight else ""
        if kind == "attention":
            return attention_with_signs(scheme), ""
        weight = weight and _weight(weight)
        if activation is not None:
            activation = _activation(kind, activation)
        scheme = replace(scheme, weight=weight, activation=activation, output=None)
        if kind == "conv" and weight is not None and activation is not None and weight.format.bits <= 4:
            note = "TensorRT multiplies four-bit weights of convolutions with float activations"
            return replace(scheme, activation=None), note
        return scheme, ""

    def engines(self, lowered: Lowered) -> Mapping[str, BuiltEngine]:
        """Build engines for the GPUs that are named, or all that have the precision."""
        requests = engine_requests(lowered.graphs, lowered.files, component_of(lowered.graphs))
        archs = lowered.archs or self.archs[lowered.precision]
        return build_engines(lowered.folder, requests, archs, lowered.progress, kind=RTX, find_node=first_failing_node)


def component_of(graphs: Sequence[Graph]) -> Callable[[str], str]:
    """Return a function from a graph's name to its component."""
    return {graph.name: graph.component for graph in graphs}.__getitem__


def _weight(spec: Spec) -> Spec:
    """Return the spec of a weight: groups keep their scales, eight bits have one scale per channel."""
    if spec.group and spec.format.bits > 4:
        return replace(spec, per="channel", group=0, scale="float32")
    return replace(spec, scale="float32") if spec.scale == "uint4" else spec


def _activation(kind: str, spec: Spec) -> Spec:
    """Return the spec of an activation: signed, with one static scale for convolutions."""
    form = FORMATS[spec.format.name.removeprefix("u")]
    if kind != "linear" and (spec.per != "tensor" or spec.when != "static"):
        return Spec(form)
    return replace(spec, format=form)
