"""Merge ONNX graphs that differ in the shapes of their inputs alone: in the batch, as a denoiser's with and without
guidance do, or in the size of images.

An engine of it holds the weights once. Node by node the graphs are the same; sizes that differ are computed from
those of the inputs: a product of some of them, times a constant.

Before:
    h = reshape(sample, [2, 256, 64])             h = reshape(sample, [1, 384, 64])

After, where the samples are [2, 4, 16, 16] and [1, 4, 16, 24]:
    batch, width = shape(sample)[0], shape(sample)[3]
    h = reshape(sample, concat(batch, width * 16, 64))
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property, reduce
from itertools import combinations_with_replacement, count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ADDED = "open_shapes.{}"
"""The prefix of added values, which no exported value has."""

DEGREE = 3
"""The largest number of input sizes in a product: a batch, a height and a width."""

BROADCASTING = ("Add", "Sub", "Mul", "Div")
"""Operators that take one row of a constant for all of a batch, which is the first axis, or the one after the steps."""

ROUNDING: Mapping[int, float] = {
    onnx.TensorProto.FLOAT: 1e-5,
    onnx.TensorProto.FLOAT16: 2.0**-10,
    onnx.TensorProto.BFLOAT16: 2.0**-7,
}
"""The relative tolerance between rows: a table that was computed at build for another batch was summed in another
order."""

T = TypeVar("T")

Sizes = tuple[int, ...]
"""One size, in each of the graphs."""


class Different(Exception):
    """Report that graphs differ in more than the shapes of their inputs."""


def merge_files(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """Merge the files that can be one graph, and map each file to the one that replaces it."""
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
    """Return one graph for the shapes of all graphs, whose weights lie below ``folder``.

    Sizes of inputs and outputs that differ are left open. Raises `Different` where there is no such graph.
    """
    first, *others = sorted(models, key=lambda model: len(model.graph.node), reverse=True)
    model = onnx.ModelProto(ir_version=first.ir_version, opset_import=first.opset_import)
    model.producer_name = first.producer_name
    model.graph.CopyFrom(_Merged([first, *others], folder).graph)
    return model


class _Merged:
    """Walk graphs side by side, and map each value of the first, which has the most nodes, to its names in all."""

    def __init__(self, models: Sequence[onnx.ModelProto], folder: Path) -> None:
        self.models, self.folder = models, folder
        self.graphs = graphs = [model.graph for model in models]
        self.constants = [{tensor.name: tensor for tensor in graph.initializer} for graph in graphs]
        self.names: dict[str, tuple[str, ...]] = {"": ("",) * len(graphs)}
        self.read: dict[tuple[str, ...], str] = {}
        self.sizes: dict[Sizes, str] = {}
        self.open: dict[Sizes, str] = {}
        self.added = map(ADDED.format, count())
        self.graph = onnx.GraphProto(name=graphs[0].name)
        self.graph.input.extend(map(self._port, _side_by_side(graph.input for graph in graphs)))
        if any(len(set(names)) > 1 for names in self.names.values()):  # by which programs call them
            raise Different
        self.products = self._products()
        self._walk()
        for ports in _side_by_side(graph.output for graph in graphs):
            self._known(tuple(port.name for port in ports))
            self.graph.output.append(self._port(ports))

    def _port(self, ports: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
        """Leave open the sizes that differ; those that are always the same have one name."""
        merged, types = onnx.ValueInfoProto(), [port.type.tensor_type for port in ports]
        if len({kind.elem_type for kind in types}) > 1:
            raise Different
        merged.CopyFrom(ports[0])
        self.names[merged.name] = tuple(port.name for port in ports)
        for axis, dims in enumerate(_side_by_side(kind.shape.dim for kind in types)):
            sizes = tuple(dim.dim_value for dim in dims)
            if len(set(sizes)) > 1:
                merged.type.tensor_type.shape.dim[axis].dim_param = self.open.setdefault(sizes, f"{merged.name}_{axis}")
        return merged

    def _products(self) -> list[tuple[Sizes, ...]]:
        """Read the sizes of inputs that differ, and list the products of them to try, the fewest and smallest first.

        Sizes that are others times a constant are left out.
        """
        open_sizes = sorted(
            (tuple(graph.input[at].type.tensor_type.shape.dim[axis].dim_value for graph in self.graphs), at, axis)
            for at, port in enumerate(self.graph.input)
            for axis, dim in enumerate(port.type.tensor_type.shape.dim)
            if dim.dim_param
        )
        factors = list[Sizes]()
        for sizes, at, axis in open_sizes:
            if not any(_ratio(sizes, each) for each in factors):
                factors.append(sizes)
                self.sizes[sizes] = self._node("Shape", [self.graph.input[at].name], start=axis, end=axis + 1)
        return [each for degree in range(1, DEGREE + 1) for each in combinations_with_replacement(factors, degree)]

    def _walk(self) -> None:
        left = [deque(graph.node) for graph in self.graphs]
        while left[0]:
            first = left[0].popleft()
            self._add([first, *(self._counterpart(at, nodes, first) for at, nodes in enumerate(left[1:], 1))])
        if any(left):
            raise Different

    def _counterpart(self, at: int, nodes: deque[onnx.NodeProto], first: onnx.NodeProto) -> onnx.NodeProto:
        """Return the node that corresponds to one of the first graph; a reshape that changes nothing was left out."""
        read = self.names.get(first.input[0]) if first.input else None
        is_next = bool(nodes) and nodes[0].op_type == first.op_type
        if first.op_type == "Reshape" and read is not None and not (is_next and nodes[0].input[0] == read[at]):
            return self._no_op(at, first)
        if not is_next:
            raise Different
        return nodes.popleft()

    def _no_op(self, at: int, reshape: onnx.NodeProto) -> onnx.NodeProto:
        """Reshape a value to its own shape."""
        name = self.names[reshape.input[0]][at]
        if name not in self.shapes[at]:
            raise Different
        sizes = numpy_helper.from_array(np.array(self.shapes[at][name], np.int64), f"sizes of {name}")
        self.constants[at][sizes.name] = sizes
        node = helper.make_node("Reshape", [name, sizes.name], [name])
        node.attribute.extend(reshape.attribute)
        return node

    @cached_property
    def shapes(self) -> list[dict[str, list[int]]]:
        """Map the values of each graph to their shapes, as far as they can be inferred."""
        try:
            inferred = [onnx.shape_inference.infer_shapes(model).graph for model in self.models]
        except onnx.shape_inference.InferenceError as error:
            raise Different from error
        return [
            {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
            for values in ([*graph.input, *graph.value_info] for graph in inferred)
        ]

    def _add(self, nodes: Sequence[onnx.NodeProto]) -> None:
        first = nodes[0]
        if len({_operation(node) for node in nodes}) > 1:
            raise Different
        inputs = [self._input(nodes, names) for names in _side_by_side(map(_inputs, nodes))]
        outputs = list(_side_by_side(node.output for node in nodes))
        self.names |= {names[0]: names for names in outputs}
        merged = onnx.NodeProto(op_type=first.op_type, domain=first.domain, input=inputs, output=first.output)
        merged.attribute.extend(first.attribute)
        self.graph.node.append(merged)

    def _input(self, nodes: Sequence[onnx.NodeProto], names: tuple[str, ...]) -> str:
        """Name an operand of a node: a value, or a constant that is added when it is first read."""
        tensors = [held[name] for name, held in zip(names, self.constants, strict=True) if name in held]
        if not tensors:
            return self._known(names)
        if len(tensors) < len(names):
            raise Different
        self._check_rows(nodes, names, [tuple(tensor.dims) for tensor in tensors])
        if names not in self.read:
            self.read[names] = self._constant(tensors)
        return self.read[names]

    def _check_rows(self, nodes: Sequence[onnx.NodeProto], names: tuple[str, ...], sizes: Sequence[Sizes]) -> None:
        """Raise `Different` where a repeated row of a constant is not broadcast over the rows of another value."""
        if len(set(sizes)) == 1:
            return
        if nodes[0].op_type not in BROADCASTING:
            raise Different
        fewest = min(sizes, key=math.prod)
        for at, (node, name, of) in enumerate(zip(nodes, names, sizes, strict=True)):
            (operand,) = [each for each in node.input if each != name] or [""]
            meets = self.shapes[at].get(operand, [])
            met = [0] * (len(of) - len(meets)) + meets[-len(of) :]
            if any(one != rows and rows != value for one, rows, value in zip(fewest, of, met, strict=False)):
                raise Different

    def _known(self, names: tuple[str, ...]) -> str:
        if self.names[names[0]] != names:
            raise Different
        return names[0]

    def _constant(self, tensors: Sequence[onnx.TensorProto]) -> str:
        """Keep equal constants, compute sizes, and keep one row where all rows of a batch are equal."""
        if len({_content(tensor) for tensor in tensors}) == 1:
            return self._keep(tensors[0])
        arrays = [numpy_helper.to_array(tensor, str(self.folder)) for tensor in tensors]
        row = min(range(len(arrays)), key=lambda at: arrays[at].size)
        if arrays[0].dtype == np.int64 and len({array.shape for array in arrays}) == 1 and arrays[0].ndim == 1:
            return self._node("Concat", [self._size(tuple(sizes)) for sizes in np.stack(arrays, 1).tolist()], axis=0)
        rounding = ROUNDING.get(tensors[row].data_type, 0.0)
        if len({array.shape for array in arrays}) > 1 and all(_repeats(each, arrays[row], rounding) for each in arrays):
            return self._keep(tensors[row])
        raise Different

    def _keep(self, tensor: onnx.TensorProto) -> str:
        initializer, name = self.graph.initializer.add(), next(self.added)
        initializer.CopyFrom(tensor)
        initializer.name = name
        return name

    def _size(self, sizes: Sizes) -> str:
        """Name the list of one size, which is computed when it is first read."""
        if sizes not in self.sizes:
            self.sizes[sizes] = self._computed(sizes) if len(set(sizes)) > 1 else self._keep(_list(sizes[0]))
        return self.sizes[sizes]

    def _computed(self, sizes: Sizes) -> str:
        for factors in self.products:
            ratio = _ratio(sizes, tuple(map(math.prod, zip(*factors, strict=True))))
            if ratio is None:
                continue
            name = reduce(lambda left, right: self._node("Mul", [left, right]), map(self._size, factors))
            for operator, by in (("Mul", ratio.numerator), ("Div", ratio.denominator)):
                name = name if by == 1 else self._node(operator, [name, self._size((by,) * len(sizes))])
            return name
        raise Different

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = next(self.added)
        self.graph.node.append(helper.make_node(operator, inputs, [name], **attributes))
        return name


def _ratio(sizes: Sizes, of: Sizes) -> Fraction | None:
    """Return the ratio of two sizes, where it is the same in all graphs."""
    ratios = {Fraction(size, base) if base else None for size, base in zip(sizes, of, strict=True)}
    return ratios.pop() if len(ratios) == 1 else None


def _list(size: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([size], np.int64))


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
    """Return a key of a tensor: its values, or where they lie."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = ""
    return bytes(copy.SerializeToString(deterministic=True))


def _repeats(array: NDArray[np.generic], row: NDArray[np.generic], rounding: float) -> bool:
    """Return whether an array is a smaller one, broadcast along axes of size one."""
    if array.ndim != row.ndim or any(size not in (1, of) for size, of in zip(row.shape, array.shape, strict=True)):
        return False
    array, row = array.astype(np.float64), row.astype(np.float64)
    finite = np.abs(row[np.isfinite(row)])
    usual = float(np.median(finite)) if finite.size else 0.0
    return bool(np.isclose(array, row, rtol=rounding, atol=rounding * usual, equal_nan=True).all())
