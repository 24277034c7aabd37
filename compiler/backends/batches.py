"""Make one ONNX graph of several that differ in their batch alone, as a denoiser's with and without guidance do.

An engine of it holds the weights once. Node by node the graphs are the same; a list of sizes that is [2, 32, 64] in the
one and [1, 32, 64] in the other is computed, from the batch that an input has.

Before:
    h = reshape(sample, [2, 32, 64])              h = reshape(sample, [1, 32, 64])

After:
    batch = shape(sample)[0]
    h = reshape(sample, [1, 0, 0] * batch + [0, 32, 64])
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

BATCH, CONSTANT = "batches.batch", "batches.constant_{}"
"""What is added is called so: names that no exported value has."""

BROADCASTING = ("Add", "Sub", "Mul", "Div")
"""Operators that take one row of a constant for all of a batch."""

T = TypeVar("T")


class Different(Exception):
    """Say that graphs differ in more than their batch."""


def merge_files(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """Write as one file what can be one graph, and give the file that now stands for each that was given."""
    groups: list[dict[str, onnx.ModelProto]] = []
    for file in files:
        model = onnx.load(folder / file, load_external_data=False)
        for group in groups:
            try:
                merged = merge([*group.values(), model], folder)
            except Different:
                continue
            group[file] = model
            (folder / next(iter(group))).write_bytes(merged.SerializeToString(deterministic=True))
            (folder / file).unlink()
            break
        else:
            groups.append({file: model})
    return {file: next(iter(group)) for group in groups for file in group}


def merge(models: Sequence[onnx.ModelProto], folder: Path) -> onnx.ModelProto:
    """Give a graph for the batches of all, whose weights lie below ``folder``.

    What differs of the sizes of inputs and outputs is left open. Raises `Different` where there is no such graph.
    """
    first, *others = sorted(models, key=lambda model: len(model.graph.node), reverse=True)
    made = onnx.ModelProto(ir_version=first.ir_version, opset_import=first.opset_import)
    made.producer_name = first.producer_name
    made.graph.CopyFrom(_Merged([first, *others], folder).graph)
    return made


class _Merged:
    """Walk graphs side by side, and note what each value of the first, which has the most nodes, is called in all."""

    def __init__(self, models: Sequence[onnx.ModelProto], folder: Path) -> None:
        self.models, self.folder = models, folder
        self.graphs = graphs = [model.graph for model in models]
        self.constants = [{tensor.name: tensor for tensor in graph.initializer} for graph in graphs]
        self.names: dict[str, tuple[str, ...]] = {"": ("",) * len(graphs)}
        self.read: dict[tuple[str, ...], str] = {}
        self.graph = onnx.GraphProto(name=graphs[0].name)
        self.graph.input.extend(map(self._port, _side_by_side(graph.input for graph in graphs)))
        self.batches = self._batches()
        self._walk()
        for ports in _side_by_side(graph.output for graph in graphs):
            self._known(tuple(port.name for port in ports))
            self.graph.output.append(self._port(ports))

    def _port(self, ports: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
        """Leave open the sizes that differ."""
        made, types = onnx.ValueInfoProto(), [port.type.tensor_type for port in ports]
        if len({kind.elem_type for kind in types}) > 1:
            raise Different
        made.CopyFrom(ports[0])
        self.names[made.name] = tuple(port.name for port in ports)
        for axis, dims in enumerate(_side_by_side(kind.shape.dim for kind in types)):
            if len({dim.dim_value for dim in dims}) > 1:
                made.type.tensor_type.shape.dim[axis].dim_param = f"{made.name}_{axis}"
        return made

    def _batches(self) -> NDArray[np.int64]:
        """Read the batch from the least size of an input that differs, and give what it is in each graph."""
        open_sizes = [
            ([graph.input[at].type.tensor_type.shape.dim[axis].dim_value for graph in self.graphs], port.name, axis)
            for at, port in enumerate(self.graph.input)
            for axis, dim in enumerate(port.type.tensor_type.shape.dim)
            if dim.dim_param
        ]
        if not open_sizes:
            raise Different
        sizes, name, axis = min(open_sizes)
        if any(of[0] * sizes[at] != of[at] * sizes[0] for of, _, _ in open_sizes for at in range(len(sizes))):
            raise Different
        self.graph.node.append(helper.make_node("Shape", [name], [BATCH], start=axis, end=axis + 1))
        return np.array(sizes)

    def _walk(self) -> None:
        left = [deque(graph.node) for graph in self.graphs]
        while left[0]:
            first = left[0].popleft()
            self._add([first, *(self._counterpart(at, nodes, first) for at, nodes in enumerate(left[1:], 1))])
        if any(left):
            raise Different

    def _counterpart(self, at: int, nodes: deque[onnx.NodeProto], first: onnx.NodeProto) -> onnx.NodeProto:
        """Take the node that stands for one of the first graph; a reshape that changes nothing was left out."""
        read = self.names.get(first.input[0]) if first.input else None
        is_next = bool(nodes) and nodes[0].op_type == first.op_type
        if first.op_type == "Reshape" and read is not None and not (is_next and nodes[0].input[0] == read[at]):
            return self._no_op(at, first)
        if not is_next:
            raise Different
        return nodes.popleft()

    def _no_op(self, at: int, reshape: onnx.NodeProto) -> onnx.NodeProto:
        """Reshape a value to what it is."""
        name = self.names[reshape.input[0]][at]
        if name not in self.shapes[at]:
            raise Different
        sizes = numpy_helper.from_array(np.array(self.shapes[at][name], np.int64), f"sizes of {name}")
        self.constants[at][sizes.name] = sizes
        made = helper.make_node("Reshape", [name, sizes.name], [name])
        made.attribute.extend(reshape.attribute)
        return made

    @cached_property
    def shapes(self) -> list[dict[str, list[int]]]:
        """Map the values of each graph to their shapes, as far as they can be inferred."""
        try:
            inferred = [onnx.shape_inference.infer_shapes(model).graph.value_info for model in self.models]
        except onnx.shape_inference.InferenceError as error:
            raise Different from error
        return [
            {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
            for values in inferred
        ]

    def _add(self, nodes: Sequence[onnx.NodeProto]) -> None:
        first = nodes[0]
        if len({_operation(node) for node in nodes}) > 1:
            raise Different
        inputs = [self._input(first.op_type, names) for names in _side_by_side(map(_inputs, nodes))]
        outputs = list(_side_by_side(node.output for node in nodes))
        self.names |= {names[0]: names for names in outputs}
        made = onnx.NodeProto(op_type=first.op_type, domain=first.domain, input=inputs, output=first.output)
        made.attribute.extend(first.attribute)
        self.graph.node.append(made)

    def _input(self, operator: str, names: tuple[str, ...]) -> str:
        """Name what a node reads: a value, or a constant that is made when it is first read."""
        tensors = [held[name] for name, held in zip(names, self.constants, strict=True) if name in held]
        if not tensors:
            return self._known(names)
        if len(tensors) < len(names):
            raise Different
        if names not in self.read:
            self.read[names] = CONSTANT.format(len(self.read))
            self._constant(self.read[names], operator, tensors)
        return self.read[names]

    def _known(self, names: tuple[str, ...]) -> str:
        if self.names[names[0]] != names:
            raise Different
        return names[0]

    def _constant(self, name: str, operator: str, tensors: Sequence[onnx.TensorProto]) -> None:
        """Keep what is the same, compute sizes, and take one row where all rows of a batch are the same."""
        if len({_content(tensor) for tensor in tensors}) == 1:
            return self._keep(name, tensors[0])
        arrays = [numpy_helper.to_array(tensor, str(self.folder)) for tensor in tensors]
        row = min(range(len(arrays)), key=lambda at: arrays[at].size)
        if arrays[0].dtype == np.int64 and len({array.shape for array in arrays}) == 1:
            return self._compute(name, np.stack(arrays))
        if operator in BROADCASTING and len(arrays[row]) == 1 and all(_repeats(each, arrays[row]) for each in arrays):
            return self._keep(name, tensors[row])
        raise Different

    def _keep(self, name: str, tensor: onnx.TensorProto) -> None:
        made = self.graph.initializer.add()
        made.CopyFrom(tensor)
        made.name = name

    def _compute(self, name: str, sizes: NDArray[np.int64]) -> None:
        """Compute sizes, [graphs, sizes], which are as many times the batch in all, or the same."""
        low, high = self.batches.argmin(), self.batches.argmax()
        slope = (sizes[high] - sizes[low]) // (self.batches[high] - self.batches[low])
        base = np.where(slope, 0, sizes[0])
        if not np.array_equal(sizes, base + self.batches[:, None] * slope):
            raise Different
        self.graph.initializer.extend(
            numpy_helper.from_array(of, f"{name}_{what}") for what, of in (("slope", slope), ("base", base))
        )
        self.graph.node.append(helper.make_node("Mul", [BATCH, f"{name}_slope"], [f"{name}_grown"]))
        self.graph.node.append(helper.make_node("Add", [f"{name}_grown", f"{name}_base"], [name]))


def _side_by_side(sequences: Iterable[Sequence[T]]) -> Iterator[tuple[T, ...]]:
    every = list(sequences)
    if len({len(each) for each in every}) > 1:
        raise Different
    return zip(*every, strict=True)


def _operation(node: onnx.NodeProto) -> tuple[str, str, tuple[bytes, ...]]:
    return node.domain, node.op_type, tuple(sorted(each.SerializeToString() for each in node.attribute))


def _inputs(node: onnx.NodeProto) -> list[str]:
    """List inputs without those at the end that are left out."""
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def _content(tensor: onnx.TensorProto) -> bytes:
    """Tell tensors apart by what they hold, or where that lies."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = ""
    return bytes(copy.SerializeToString(deterministic=True))


def _repeats(whole: NDArray[np.generic], row: NDArray[np.generic]) -> bool:
    return whole.shape[1:] == row.shape[1:] and whole.tobytes() == row.tobytes() * len(whole)
