"""Lower graphs to ONNX files whose weights lie outside, in files that all graphs of a bundle share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.values import TracedOnnxFunction

from diffc.compiler.backends.backend import BuiltEngine, Lowered
from diffc.compiler.backends.onnx.custom_operators import Entries, plugins_of, resolve, translations
from diffc.compiler.backends.onnx.dialect import Dialect
from diffc.compiler.backends.onnx.export_cache import TYPES, StoredTensor, StoredTensors, exported
from diffc.compiler.backends.onnx.exporter_input import ExporterInput
from diffc.compiler.backends.onnx.open_axes import name_axes, repeated_mask
from diffc.compiler.backends.onnx.quantized_ops import lower_quantized_ops
from diffc.compiler.backends.onnx.state_sizes import state_sizes
from diffc.compiler.backends.onnx.weight_store import WeightStore
from diffc.compiler.errors import BackendError, Progress, first_line, root_cause
from diffc.compiler.graph.export import one_layout
from diffc.compiler.graph.lazy_weights import Weight
from diffc.compiler.ir.program import ARITHMETIC, Graph
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec
from diffc.runtime.disk_cache import Cache
from diffc.runtime.precisions import PRECISIONS, Precision

OPSET = 23
"""The first opset in which attention is one node; engines fuse it best when they see it whole."""

INLINE = 128
"""Tensors of fewer bytes than this stay in the ONNX file, and lists of sizes."""


STORED_TYPES = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}


class Onnx:
    """Write portable ONNX, for any engine that reads it."""

    precisions: ClassVar[Mapping[str, Precision]] = PRECISIONS
    dialect: ClassVar[type[Dialect]] = Dialect
    """How the operators of quantized graphs are written."""

    computes: ClassVar[Mapping[str, str]] = {}
    archs: ClassVar[Mapping[str, Sequence[str]]] = {}

    kind: ClassVar[str] = "onnx"

    engine: ClassVar[str] = ""
    """The engine whose plugin libraries its graphs may need; none where graphs run in any engine."""

    @classmethod
    def bytes_per_weight(cls, precision: str) -> float:
        """Return the bytes that a bundle holds for each large weight."""
        return cls.precisions[precision].bytes_per_weight

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Return a scheme for TensorRT: activations with symmetric, static scales, groups with unquantized ones."""
        weight, activation = scheme.weight, scheme.activation
        if kind == "attention":
            return attention_with_signs(scheme), ""
        if weight is not None and weight.scale == "uint4":
            weight = replace(weight, scale="float32")
        if activation is not None and activation.format.is_integer:
            form = FORMATS[activation.format.name.removeprefix("u")]
            static = activation.per in ("token", "tensor") and activation.when != "step"
            activation = Spec(form) if static else replace(activation, format=form)
        if activation is not None and kind == "conv" and activation.per in ("token", "group"):
            activation = Spec(activation.format)
        return replace(scheme, weight=weight, activation=activation), ""

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write ``NAME.onnx`` and ``weights/COMPONENT.bin`` into the folder; return each graph's file.

        Locations of weights are relative to the folder, and so to the graphs (decision 0016).

        Raises `BackendError` naming the graph that has no ONNX form.
        """
        store, files = WeightStore(folder), dict[str, str]()
        self.operators = dict[str, Entries]()
        storage = torch.float32 if precision in self.computes else getattr(torch, self.precisions[precision].storage)
        for graph in graphs:
            progress(f"lower {graph.name}")
            files[graph.name] = f"{graph.name}.onnx"
            self.operators[graph.name] = _write(graph, folder, files[graph.name], store, storage, self)
        return files

    def custom_operators(self, graph: str) -> Entries:
        """Return the operators of plugins that a lowered graph needs, by domain."""
        return self.operators[graph]

    def engines(self, lowered: Lowered) -> Mapping[str, BuiltEngine]:
        """Build none: engines that read ONNX compile it when they open it."""
        return {}


def attention_with_signs(scheme: Scheme) -> Scheme:
    """Return a scheme in which all operands of attention are signed integers, without zero points."""

    def signed(spec: Spec | None) -> Spec | None:
        return spec and replace(spec, format=FORMATS[spec.format.name.removeprefix("u")])

    read = signed(scheme.activation), signed(scheme.probabilities), signed(scheme.values)
    return Scheme(activation=read[0], probabilities=read[1], values=read[2])


def _write(graph: Graph, folder: Path, file: str, store: WeightStore, storage: torch.dtype, backend: Onnx) -> Entries:
    model = exported(graph, _export, Cache.default(), by=code(graph))
    lower_quantized_ops(model, backend.dialect)
    entries = resolve(model, backend.engine)
    common.RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE or _may_be_sizes(tensor):
            continue
        weight = tensor.weight if isinstance(tensor, StoredTensor) else _weight(tensor)
        stored_as = storage if weight.dtype == torch.float32 else weight.dtype
        place = store.put(graph.component or ARITHMETIC, weight, stored_as)
        dtype = STORED_TYPES[place.dtype] if place.dtype != weight.dtype else tensor.dtype
        external = onnx_ir.ExternalTensor(
            place.file,
            place.offset,
            place.length,
            dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=folder,
        )
        if dtype == tensor.dtype:
            value.const_value = external
        else:
            _cast_back(model.graph, value, external)
    for node in model.graph:
        node.name = None  # a node is identified by its output
        for output in node.outputs:
            if not output.is_graph_output():  # engines infer them, and there are thousands
                output.shape = output.type = None
    proto = onnx_ir.to_proto(model)
    (folder / file).write_bytes(proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(folder / file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _failure(graph, error) from error
    return entries


def _may_be_sizes(tensor: onnx_ir.TensorProtocol) -> bool:
    """Return whether a tensor may hold sizes, which engines read in the ONNX file or not at all."""
    return tensor.dtype == onnx_ir.DataType.INT64 and len(tensor.shape) == 1


def _export(graph: Graph, tensors: StoredTensors) -> onnx_ir.Model:
    """Translate a graph; ports keep their names, and nothing of this machine or its paths remains in the file."""
    try:
        with _quiet(), _parsed_once(), one_layout():
            program = torch.onnx.export(
                ExporterInput.of(graph.body),
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in graph.inputs],
                output_names=[f"{port.name}_" for port in graph.outputs],
                verbose=False,
                optimize=False,
                custom_translation_table=translations(graph.body),
            )
    except Exception as error:
        raise _failure(graph, error) from error
    if program is None:
        raise BackendError(f"{graph.name} has no ONNX form", where=graph.component)
    model = program.model
    _tidy(model, tensors)
    name_axes(model, graph)
    for node in list(model.graph.all_nodes()):
        _legalize(model.graph, node)
    parts: list[Any] = [model, model.graph, *model.graph.all_nodes(), *_values(model.graph)]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None
    model.producer_name, model.producer_version = "diffc", None
    return model


def code(graph: Graph) -> list[Path]:
    """List the source files that decide the export of a graph, those of its plugins too."""
    definitions = [import_module(plugin.definitions).__file__ for plugin in plugins_of(graph.body)]
    return [*Path(__file__).parent.glob("*.py"), *(Path(file) for file in definitions if file)]


def _tidy(model: onnx_ir.Model, tensors: StoredTensors) -> None:
    """Fold constants and drop values that nothing reads, and no more.

    The exporter's own rewriting takes ``x + 1e-15`` for ``x``; a model that keeps a division from 0/0 so then ends in
    NaN. Engines do its other rewrites themselves.
    """
    common.InlinePass()(model)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and isinstance(raw := getattr(tensor, "raw", None), torch.Tensor):
            value.const_value = tensors.of(raw, tensor.dtype, value.name)
    for node in list(model.graph):
        _transpose_stored(model.graph, node, tensors)
        _narrow_stored(model.graph, node, tensors)
    fold_constants(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    state_sizes(model.graph)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def _transpose_stored(graph: onnx_ir.Graph, node: onnx_ir.Node, tensors: StoredTensors) -> None:
    """Fold the transposition of a weight that is used only so, without reading it."""
    weight = _stored(node, "Transpose")
    if weight is not None and len(weight.uses()) == 1:
        perm = node.attributes["perm"].as_ints()
        _fold(graph, node, tensors.permuted(weight.const_value, perm, node.outputs[0].name))


def _narrow_stored(graph: onnx_ir.Graph, node: onnx_ir.Node, tensors: StoredTensors) -> None:
    """Fold the conversion of a weight to 16 bits, without reading it."""
    weight = _stored(node, "Cast")
    dtype = node.outputs[0].dtype
    if weight is not None and weight.dtype in TYPES and dtype is not None and dtype in STORED_TYPES.values():
        _fold(graph, node, tensors.converted(weight.const_value, dtype, node.outputs[0].name))


def _stored(node: onnx_ir.Node, kind: str) -> Any:
    """Return the weight that an operator of a kind reads, if it does."""
    weight = node.inputs[0] if node.op_type == kind else None
    stored = weight is not None and weight.is_initializer() and isinstance(weight.const_value, StoredTensor)
    return weight if stored else None


def _fold(graph: onnx_ir.Graph, node: onnx_ir.Node, tensor: StoredTensor) -> None:
    """Put a weight in the place of an operator."""
    name, type_ = node.outputs[0].name, onnx_ir.TensorType(tensor.dtype)
    value = onnx_ir.Value(name=name, shape=tensor.shape, type=type_, const_value=tensor)
    node.outputs[0].name = f"{name}_folded"
    node.outputs[0].replace_all_uses_with(value)
    graph.register_initializer(value)
    graph.remove(node, safe=True)


def _legalize(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Write out the rules of ATen: squeezing a dimension that is not 1 does nothing; masks repeat for every query.

    The exporter states lengths of Fourier transforms as lists of one number, which are to be numbers.
    """
    if node.op_type == "DFT" and node.inputs[1] is not None:
        length = onnx_ir.node("Squeeze", [node.inputs[1]])
        length.outputs[0].name = f"{node.outputs[0].name}_length"
        graph.insert_before(node, length)
        node.replace_input_with(1, length.outputs[0])
    if node.op_type == "Squeeze" and node.inputs[0] is not None and node.inputs[0].shape == node.outputs[0].shape:
        node.op_type = "Identity"
        node.resize_inputs(1)
    if node.op_type == "Attention" and len(node.inputs) > 3 and node.inputs[3] is not None:
        mask, queries = node.inputs[3], node.inputs[0]
        if mask.shape is None or queries is None or queries.shape is None or mask.shape[-2] == queries.shape[-2]:
            return
        if not (mask.shape.is_static() and queries.shape.is_static()):
            repeated = repeated_mask(mask, queries, str(node.outputs[0].name))
            graph.insert_before(node, repeated)
            node.replace_input_with(3, repeated[-1].outputs[0])
            return
        *leading, _, keys = mask.shape.numpy()
        shape = [*leading, queries.shape.numpy()[-2], keys]
        sizes = onnx_ir.node("Constant", [], attributes={"value_ints": shape})
        expanded = onnx_ir.node("Expand", [mask, sizes.outputs[0]])
        for added in (sizes, expanded):
            added.outputs[0].name = f"{node.outputs[0].name}_{added.op_type.lower()}"
        expanded.outputs[0].shape, expanded.outputs[0].type = onnx_ir.Shape(shape), mask.type
        graph.insert_before(node, [sizes, expanded])
        node.replace_input_with(3, expanded.outputs[0])


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _weight(tensor: onnx_ir.TensorProtocol) -> Weight:
    packed = tensor.dtype.bitwidth < 8
    numbers = np.frombuffer(tensor.tobytes(), np.uint8).copy() if packed else np.array(tensor.numpy())
    array = torch.from_numpy(numbers if numbers.dtype.isbuiltin == 1 else numbers.view(np.uint8))
    return Weight(array, array.dtype)


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
    first = first_line(root_cause(error))
    fix = "report it with the model's configuration; no other target can compile it either"
    return BackendError(f"{graph.name} has no ONNX form: {first}", where=f"component {graph.component}", fix=fix)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse each function of onnxscript once: the exporter reads the domain of all of them for every graph."""
    before = _TRACED.function_ir
    _TRACED.function_ir = _SIGNATURE
    try:
        yield
    finally:
        _TRACED.function_ir = before


_TRACED: Any = TracedOnnxFunction
_SIGNATURE = property(cache(_TRACED.function_ir.fget))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose log and warnings concern its own internals."""
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
