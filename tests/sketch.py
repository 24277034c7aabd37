"""Run a technique of quantization on the graph that its docstring draws, and compare the result with the drawing.

A sketch names the formats, draws a graph, and draws what the technique makes of it:

    Before (weights int4:channel, activations int8:tensor):
        y = linear(x, w)

    After:
        y = linear(fake_quantize(x, scale, int8), w)

A second argument of ``linear`` and ``conv`` is a weight; where Before quantizes, what a technique leaves open is
rounded and ranged before both drawings are compared. Views are not drawn. A name stands for one value in both drawings,
and two names for two values: ``quantized`` in both sketches is the same tensor.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import Graph, Op, Program, Ref, Type, Value
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import FORMATS, Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import KINDS, Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest

SKETCH = re.compile(
    r"^Before \(weights (\S+?)(?:, activations (\S+))?\):\n((?:    .+\n)+)\nAfter(?: \((.+)\))?:\n((?:    .+\n)+)", re.M
)

STEPS = 4
CHANNELS = 32
WIDTHS = {"latents": 8, "quantized0": 64, "quantized1": 8}
"""The channels of inputs and the rows of weights of these names, where they are not `CHANNELS`."""

OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "silu": functional.silu,
    "group_norm": lambda x: functional.group_norm(x, 8),
    "cat": lambda *parts: torch.cat(parts, 1),
}
SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
VIEWS = ("reshape", "view", "to", "_to_copy", "clamp_min")
NAMES = {"amax": "max", "conv2d": "conv"}


def check(docstring: str, technique: Callable[..., Plan]) -> None:
    """Raise `AssertionError` where a technique does otherwise than its docstring draws."""
    sketch = SKETCH.search(f"{docstring}\n")
    assert sketch is not None
    weights, activations, before, options, after = sketch.groups()
    torch.manual_seed(0)
    module = _Module(statements(before))
    plan = _plan(module, weights, activations or "float")
    call = eval(f"lambda technique, plan: technique(plan, {options or ''})")
    bindings = Bindings(module.inputs)
    for text, drawn in ((before, plan), (after, call(technique, plan))):
        if "dequantize" in before:
            drawn = round_to_nearest(calibrate_ranges(drawn))
        elif "fake_quantize" in before:
            drawn = calibrate_ranges(drawn)
        (program,) = applied(drawn.mapped(_as_decided))
        rendered = bindings.render(body_of(program.graphs[0]), [*module.inputs, "scales"])
        assert bindings.match(expression(statements(text)), rendered), f"drawn:\n{text}\nis:\n    {rendered}"


def _as_decided(layer: Layer) -> Layer:
    """Leave a weight in float that no technique has rounded: drawings show what a technique decides."""
    return layer if layer.rounded else replace(layer, scheme=replace(layer.scheme, weight=None))


def statements(text: str) -> dict[str, ast.expr]:
    """Read a drawing: the expression of each value."""
    lines = ast.parse("\n".join(line.strip() for line in text.splitlines())).body
    return {line.targets[0].id: line.value for line in lines}  # type: ignore[attr-defined]


def expression(statements: dict[str, ast.expr], name: str = "") -> ast.expr:
    """Return a value, the last without a name, as one expression."""

    class Inline(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return self.visit(statements[node.id]) if node.id in statements else node

    return Inline().visit(statements[name or [*statements][-1]])  # type: ignore[no-any-return]


class _Module(nn.Module):
    """Compute what a drawing draws, without its quantization."""

    def __init__(self, statements: dict[str, ast.expr]) -> None:
        super().__init__()
        self.result = expression(statements)
        self.is_conv = "conv(" in ast.unparse(self.result)
        self.weights = nn.ParameterDict()
        names = [node.id for node in ast.walk(self.result) if isinstance(node, ast.Name)]
        inner = {name for call in _calls(self.result) for argument in call.args[1:] for name in _free(call, argument)}
        functions = {node.func.id for node in _calls(self.result)}  # type: ignore[attr-defined]
        self.inputs = [name for name in dict.fromkeys(names) if name not in inner | functions]
        self(*self.feeds(0))
        self.requires_grad_(False)

    def feeds(self, step: int) -> tuple[torch.Tensor, ...]:
        """Return inputs that grow from step to step, with outliers in some channels."""
        channels = [WIDTHS.get(name, CHANNELS) for name in self.inputs]
        shapes = [(1, width, 6, 6) if self.is_conv else (1, 8, width) for width in channels]
        outliers = [1.0 + 20 * (torch.arange(width) % 8 == 0) for width in channels]
        outliers = [each.reshape(1, -1, 1, 1) if self.is_conv else each for each in outliers]
        return tuple((1 + step) ** 2 * each * torch.randn(s) for s, each in zip(shapes, outliers, strict=True))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the drawn value."""
        return self._value(self.result, dict(zip(self.inputs, inputs, strict=True)))

    def _value(self, node: ast.expr, values: dict[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.BinOp):
            left = self._value(node.left, values)
            return left + self._value(node.right, values) if isinstance(node.op, ast.Add) else left  # a scale
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        first = self._value(node.args[0], values)
        if node.func.id == "fake_quantize":
            return first
        if node.func.id not in ("linear", "conv"):
            return OPERATIONS[node.func.id](first, *(self._value(argument, values) for argument in node.args[1:]))
        weight, *bias = (self._weight(argument, first) for argument in node.args[1:])
        if node.func.id == "conv":
            return functional.conv2d(first, weight, *bias, padding=1)
        return functional.linear(first, weight, *bias)

    def _weight(self, node: ast.expr, x: torch.Tensor) -> torch.Tensor:
        node = node.args[0] if isinstance(node, ast.Call) else node
        assert isinstance(node, ast.Name)
        if node.id not in self.weights:
            kernel = (3, 3) if self.is_conv else ()
            shape = (WIDTHS.get(node.id, CHANNELS), x.shape[1 if self.is_conv else -1], *kernel)
            self.weights[node.id] = nn.Parameter(torch.randn(shape[:1] if node.id == "bias" else shape) / 8)
        return self.weights[node.id]


def _calls(node: ast.expr) -> Iterator[ast.Call]:
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def _free(call: ast.Call, argument: ast.expr) -> Iterator[str]:
    """Yield the names in an argument that are no input of the graph: of weights, scales and formats."""
    if call.func.id in ("linear", "conv", "fake_quantize", "dequantize"):  # type: ignore[attr-defined]
        yield from (node.id for node in ast.walk(argument) if isinstance(node, ast.Name))


def _plan(module: _Module, weights: str, activations: str) -> Plan:
    """Plan a program that calls the module with noise, once in each step."""
    feeds = [module.feeds(step) for step in range(STEPS)]
    body = export("net", module.eval(), feeds[0])
    inputs = tuple(Value(f"x{at}", type_of(x)) for at, x in enumerate(feeds[0]))
    result = Type("float32", tuple(module(*feeds[0]).shape))
    graph, ops = Graph("net", inputs, (Value("y", result),), body, "net"), list[Op]()
    for step in range(STEPS):
        ops += [Op("noise", results=(Value(f"n{step}_{port.name}", port.type),)) for port in inputs]
        attrs = tuple((port.name, Ref(f"n{step}_{port.name}")) for port in inputs)
        ops.append(Op("net", attrs=attrs, results=(Value(f"y{step}", result),)))
    program = Program("main", graphs=(graph,), ops=tuple(ops), outputs=(f"y{STEPS - 1}",))
    samples = tuple(Sample("net", step, STEPS, 0, x) for step, x in enumerate(feeds))
    scheme = Scheme(parse_spec(weights), parse_spec(activations))
    return Plan.of((program,), Calibration(program, samples, (), 0, ""), lambda _: scheme)


def operation(node: Any, texts: dict[fx.Node, str]) -> str:
    """Return a call in the words of the drawings."""
    name = node.target._opname if hasattr(node.target, "_opname") else node.target.__name__
    arguments = [texts[argument] for argument in node.all_input_nodes]
    if name in VIEWS:
        return arguments[0]
    if name == "slice":
        _, axis, first, last = node.args
        last = "" if last >= node.args[0].meta["val"].shape[axis] else last
        if not first and not last:
            return arguments[0]
        return f"{arguments[0]}[{':, ' * axis}{first or ''}:{last}]"
    if name in SYMBOLS:
        left, right = (texts.get(argument, str(argument)) for argument in node.args[:2])
        return f"({left} {SYMBOLS[name]} {right})"
    if name in ("fake_quantize", "dequantize", "fake_quantize_groups"):
        form = next(argument for argument in node.args if isinstance(argument, str))
        return f"{name.removesuffix('_groups')}({', '.join(arguments)}, {form.partition(':')[0]})"
    if KINDS.get(node.target) in ("linear", "conv"):
        arguments = [texts[argument] for argument in node.args[:3] if argument is not None]
    return f"{NAMES.get(name, name)}({', '.join(arguments)})"


Words = Callable[[Any, dict[fx.Node, str]], str]
"""A function that writes a call from the texts of its arguments."""


class Bindings:
    """Match drawings with graphs: what a name stands for is the same in all of them."""

    def __init__(self, inputs: Iterable[str]) -> None:
        self.constants = dict[bytes, str]()
        self.names = {name: name for name in inputs}

    def render(self, body: fx.GraphModule, inputs: Iterable[str], words: Words = operation) -> str:
        """Return a graph as one expression, in which equal constants have one name; ``words`` writes each call."""
        texts, ports = dict[fx.Node, str](), iter(inputs)
        for node in body.graph.nodes:
            if node.op == "placeholder":
                texts[node] = next(ports)
            elif node.op == "get_attr":
                data = read(attrgetter(node.target)(body)).detach().to(torch.float64).contiguous().numpy().tobytes()
                texts[node] = self.constants.setdefault(data, f"constant_{len(self.constants)}")
            elif node.op == "call_function":
                texts[node] = words(node, texts)
        return texts[body.graph.output_node().args[0][0]]  # type: ignore[index]

    def match(self, drawn: ast.AST, rendered: str) -> bool:
        """Return whether a drawing is of an expression."""
        return self._match(drawn, ast.parse(rendered, mode="eval").body)

    def _match(self, drawn: Any, actual: Any) -> bool:
        if isinstance(drawn, ast.Name):
            text = ast.unparse(actual)
            if drawn.id in FORMATS:
                return text == drawn.id
            is_new = drawn.id not in self.names and text not in self.names.values()
            return self.names.setdefault(drawn.id, text) == text if is_new else self.names.get(drawn.id) == text
        if isinstance(drawn, list):
            return len(drawn) == len(actual) and all(map(self._match, drawn, actual))
        if not isinstance(drawn, ast.AST):
            return bool(drawn == actual)
        if isinstance(drawn, ast.Call) and isinstance(actual, ast.Call):
            return ast.unparse(drawn.func) == ast.unparse(actual.func) and self._match(drawn.args, actual.args)
        return type(drawn) is type(actual) and all(
            self._match(getattr(drawn, field), getattr(actual, field)) for field in drawn._fields if field != "ctx"
        )
