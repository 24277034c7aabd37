"""Lower graphs to ONNX files whose weights lie outside, in files that all graphs of a bundle share."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffc.compiler.errors import BackendError
from diffc.compiler.ir import Graph
from diffc.compiler.target import Progress

OPSET = 23
"""The first opset in which attention is one node; engines fuse it best when they see it whole."""

LARGEST = {np.dtype(np.float16): 65504.0, np.dtype(ml_dtypes.bfloat16): 3.38953e38}

INLINE = 1024
"""Tensors of fewer bytes than this stay in the ONNX file."""

ALIGNMENT = 64

STORAGE: dict[str, np.dtype[Any] | None] = {
    "fp32": None,
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""What large float32 tensors are stored as; the graph casts them back and computes in float32."""


class Onnx:
    """Write portable ONNX, for any engine that reads it."""

    precisions: ClassVar[frozenset[str]] = frozenset(STORAGE)

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write ``graphs/NAME.onnx`` and ``weights/COMPONENT.bin`` below the folder; give each graph's file.

        Raises `BackendError` naming the graph that has no ONNX form.
        """
        store = WeightStore(folder)
        files = {}
        (folder / "graphs").mkdir()
        for graph in graphs:
            progress(f"lower {graph.name}")
            files[graph.name] = f"graphs/{graph.name}.onnx"
            _write(graph, folder, files[graph.name], store, STORAGE[precision])
        return files


class WeightStore:
    """Keep tensors in one file for each component; equal tensors are stored once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[tuple[str, str], tuple[int, int]] = {}
        self.sizes: dict[str, int] = {}
        (folder / "weights").mkdir()

    def put(self, component: str, array: NDArray[Any]) -> tuple[str, int, int]:
        """Store a tensor and give its file, offset and length in bytes."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        key = (component, hashlib.sha256(data).hexdigest())
        location = f"weights/{component}.bin"
        if key not in self.places:
            size = self.sizes.get(component, 0)
            offset = -(-size // ALIGNMENT) * ALIGNMENT
            with (self.folder / location).open("ab") as file:
                file.write(b"\0" * (offset - size))
                file.write(data)
            self.sizes[component] = offset + len(data)
            self.places[key] = (offset, len(data))
        return location, *self.places[key]


def _write(graph: Graph, folder: Path, file: str, store: WeightStore, storage: np.dtype[Any] | None) -> None:
    model = _exported(graph)
    for name, value in list(model.graph.initializers.items()):
        array = np.asarray(value.const_value.numpy()) if value.const_value is not None else None
        if array is None or array.nbytes < INLINE:
            continue
        stored = _stored(array, storage)
        location, offset, length = store.put(graph.component or "arithmetic", stored)
        external = onnx_ir.ExternalTensor(
            location,
            offset,
            length,
            onnx_ir.DataType.from_numpy(stored.dtype),
            shape=onnx_ir.Shape(stored.shape),
            name=name,
            base_dir=folder,
        )
        if stored.dtype == array.dtype:
            value.const_value = external
        else:
            _cast_back(model.graph, value, external)
    proto = onnx_ir.to_proto(model)
    checked = folder / f"{graph.name}.onnx"
    checked.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(checked))
    except onnx.checker.ValidationError as error:
        raise _failure(graph, error) from error
    checked.rename(folder / file)


def _exported(graph: Graph) -> onnx_ir.Model:
    """Translate a graph; ports keep their names, and nothing of this machine or its paths remains in the file."""
    try:
        with _quiet(), sdpa_kernel(SDPBackend.MATH):  # one kernel, one layout: the exporter looks several times
            program = torch.onnx.export(
                graph.body,
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[f"{port.name}_" for port in graph.outputs],
                verbose=False,
                optimize=False,
            )
    except Exception as error:
        raise _failure(graph, error) from error
    if program is None:
        raise BackendError(f"{graph.name} has no ONNX form", where=graph.component)
    model = program.model
    _tidy(model)
    for node in list(model.graph.all_nodes()):
        _legalise(model.graph, node)
    parts: list[Any] = [model, model.graph, *model.graph.all_nodes(), *_values(model.graph)]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None
    model.producer_name, model.producer_version = "diffc", None
    return model


def _tidy(model: onnx_ir.Model) -> None:
    """Fold constants and drop what nothing reads, and no more.

    The exporter's own rewriting takes ``x + 1e-15`` for ``x``; a model that keeps a division from 0/0 so then ends in
    NaN. What else it rewrites, engines do by themselves.
    """
    common.InlinePass()(model)
    fold_constants(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def _legalise(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Say what ATen leaves unsaid: squeezing a dimension that is not 1 does nothing; masks repeat for every query."""
    if node.op_type == "Squeeze" and node.inputs[0] is not None and node.inputs[0].shape == node.outputs[0].shape:
        node.op_type = "Identity"
        node.resize_inputs(1)
    if node.op_type == "Attention" and len(node.inputs) > 3 and node.inputs[3] is not None:
        mask, queries = node.inputs[3], node.inputs[0]
        if mask.shape is None or queries is None or queries.shape is None or mask.shape[-2] == queries.shape[-2]:
            return
        *leading, _, keys = mask.shape.numpy()
        wanted = [*leading, queries.shape.numpy()[-2], keys]
        sizes = onnx_ir.node("Constant", [], attributes={"value_ints": wanted})
        expanded = onnx_ir.node("Expand", [mask, sizes.outputs[0]])
        for made in (sizes, expanded):
            made.outputs[0].name = f"{node.outputs[0].name}_{made.op_type.lower()}"
        expanded.outputs[0].shape, expanded.outputs[0].type = onnx_ir.Shape(wanted), mask.type
        graph.insert_before(node, [sizes, expanded])
        node.replace_input_with(3, expanded.outputs[0])


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _stored(array: NDArray[Any], storage: np.dtype[Any] | None) -> NDArray[Any]:
    """Convert to the storage type, unless a value would become infinite."""
    if storage is None or array.dtype != np.float32 or np.abs(array).max(initial=0.0) > LARGEST[storage]:
        return array
    return array.astype(storage)


def _cast_back(graph: onnx_ir.Graph, value: onnx_ir.Value, stored: onnx_ir.ExternalTensor) -> None:
    name = value.name or ""
    source = onnx_ir.Value(
        name=f"{name}_stored", shape=stored.shape, type=onnx_ir.TensorType(stored.dtype), const_value=stored
    )
    stored.name = f"{name}_stored"
    cast = onnx_ir.node("Cast", [source], attributes={"to": onnx_ir.DataType.FLOAT})
    cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, onnx_ir.DataType.FLOAT
    graph.initializers.pop(name)
    value.name = f"{name}_replaced"
    value.replace_all_uses_with(cast.outputs[0])
    cast.outputs[0].name = name
    graph.register_initializer(source)
    graph.insert_before(graph[0], cast)


def _failure(graph: Graph, error: Exception) -> BackendError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    fix = "report it with the model's configuration; no other target can compile it either"
    return BackendError(f"{graph.name} has no ONNX form: {first}", where=f"component {graph.component}", fix=fix)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose log and warnings speak of its own inside."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
