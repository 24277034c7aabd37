"""Store the ONNX form of a graph without its weights, so that other builds, of any weights, reuse it.

An exported model depends on the operators of its graph, on the types of its tensors, and on the values of the small
ones, which are folded. Large weights are named only; where folding did read one, the model is not kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from diffc.compiler.graph.lazy_weights import EAGER_ELEMENTS, Weight, read, weight_of
from diffc.compiler.ir.program import Graph
from diffc.runtime.disk_cache import Cache

MAKERS = ("diffc", "torch", "onnxscript", "onnx-ir", "onnx")
"""The packages whose versions decide the exported model."""


TYPES = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.FLOAT16: torch.float16,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
}
"""The types that weights are converted between, by their names in ONNX."""


class StoredTensor(onnx_ir.LazyTensor):
    """Hold an initializer whose values are read on demand; ``source`` is its name in the graph's state."""

    def __init__(self, weight: Weight, dtype: onnx_ir.DataType, name: str | None, source: str = "") -> None:
        super().__init__(self._numbers, dtype, onnx_ir.Shape(weight.source.shape), name=name)
        self.weight, self.source, self.axes = weight, source, tuple(range(weight.source.dim()))
        self.was_read = False

    def _numbers(self) -> onnx_ir.TensorProtocol:
        self.was_read = True
        numbers = self.weight.read().contiguous()
        if numbers.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):  # NumPy has none of its own
            data = numbers.reshape(-1).view(torch.uint8).numpy().view(self.dtype.numpy())
            return onnx_ir.Tensor(data.reshape(numbers.shape), self.dtype)
        return onnx_ir.tensor(numbers.numpy())

    @property
    def is_small(self) -> bool:
        """Return whether the values belong to the model, rather than to its weights."""
        return self.weight.source.numel() <= EAGER_ELEMENTS


class StoredTensors:
    """Build the initializers of one graph, and record whether its weights were read meanwhile."""

    def __init__(self, graph: Graph) -> None:
        state = {**graph.body.constants, **graph.body.state_dict}
        self.state = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        self._names = {id(tensor): name for name, tensor in self.state.items()}
        self._made = list[StoredTensor]()

    def of(self, tensor: torch.Tensor, dtype: onnx_ir.DataType, name: str | None) -> StoredTensor:
        """Return the initializer of a tensor of the graph."""
        return self._kept(StoredTensor(weight_of(tensor), dtype, name, self._names.get(id(tensor), "")))

    def permuted(self, tensor: StoredTensor, axes: Sequence[int], name: str | None) -> StoredTensor:
        """Return a tensor with its axes in another order."""
        permuted = StoredTensor(tensor.weight.permuted(axes), tensor.dtype, name, tensor.source)
        permuted.axes = tuple(tensor.axes[axis] for axis in axes)
        return self._kept(permuted)

    def converted(self, tensor: StoredTensor, dtype: onnx_ir.DataType, name: str | None) -> StoredTensor:
        """Return a floating-point tensor as one of another type."""
        weight = replace(tensor.weight, dtype=TYPES[dtype])
        stored = StoredTensor(weight, dtype, name, tensor.source)
        stored.axes = tensor.axes
        return self._kept(stored)

    @property
    def say_all(self) -> bool:
        """Return whether the model depends on its weights by their names and small tensors only."""
        return all(tensor.is_small or (tensor.source and not tensor.was_read) for tensor in self._made)

    def _kept(self, tensor: StoredTensor) -> StoredTensor:
        self._made.append(tensor)
        return tensor


Export = Callable[[Graph, StoredTensors], onnx_ir.Model]


def exported(graph: Graph, export: Export, cache: Cache, *, by: Sequence[Path]) -> onnx_ir.Model:
    """Return a graph's model from the cache, or export and keep it; ``by`` are the source files that decide it."""
    tensors = StoredTensors(graph)
    key = _key(graph, tensors.state, by)
    data = cache.get(key)
    model = None if data is None else _read(data, tensors)
    if model is not None:
        return model
    model = export(graph, tensors)
    if not tensors.say_all:
        return model
    data = _written(model)
    cache.put(key, data)
    return _read(data, tensors) or model


def _key(graph: Graph, state: Mapping[str, torch.Tensor], by: Sequence[Path]) -> str:
    """Digest all that decides a model: code, versions, the graph, the types of its tensors, small ones' values."""
    digest = hashlib.sha256()
    for file in sorted(by):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    made_by = {name: importlib.metadata.version(name) for name in MAKERS}
    ports = [[str(port) for port in side] for side in (graph.inputs, graph.outputs)]
    signature = graph.body.graph_signature
    inputs = [(spec.kind.name, str(spec.arg), spec.target) for spec in signature.input_specs]
    outputs = [(spec.kind.name, str(spec.arg), spec.target) for spec in signature.output_specs]
    digest.update(json.dumps([made_by, ports, inputs, outputs, str(graph.body.graph)]).encode())
    for node in graph.body.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        digest.update(f"{node.name} {getattr(value, 'dtype', value)} {getattr(value, 'shape', '')}\n".encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel() <= EAGER_ELEMENTS:
            digest.update(read(tensor).detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _written(model: onnx_ir.Model) -> bytes:
    """Write a model; of a large weight its name, and the order of its axes."""
    real = {value: value.const_value for value in model.graph.initializers.values()}
    for value, tensor in real.items():
        if isinstance(tensor, StoredTensor) and not tensor.is_small:
            who = json.dumps([tensor.source, tensor.axes])
            value.const_value = onnx_ir.ExternalTensor(
                who, 0, 0, tensor.dtype, shape=tensor.shape, name=value.name or ""
            )
    try:
        written: bytes = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
        return written
    finally:
        for value, tensor in real.items():
            value.const_value = tensor


def _read(data: bytes, tensors: StoredTensors) -> onnx_ir.Model | None:
    """Read a model; None for an entry that diffc did not write."""
    try:
        model = onnx_ir.from_proto(onnx.load_from_string(data))
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                source, axes = json.loads(str(value.const_value.location))
                dtype = value.const_value.dtype
                tensor = tensors.of(tensors.state[source], dtype, value.name)
                if TYPES.get(dtype, tensor.weight.dtype) != tensor.weight.dtype:
                    tensor = tensors.converted(tensor, dtype, value.name)
                value.const_value = tensors.permuted(tensor, axes, value.name)
    except (DecodeError, LookupError, TypeError, ValueError, RuntimeError):
        return None
    return model
