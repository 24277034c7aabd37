"""Run a pipeline once with symbolic tensors and record what it does to them, as a program.

The components of the pipeline are opaque calls. Whatever touches a symbolic tensor is recorded; all else (schedules,
sigmas, Python control flow) runs as it always does and ends up as numbers. So loops unroll by themselves, and no
sampler, scheduler or guidance rule is known to this file. Texts are traced by writing a marker where the request's text
will stand; numbers of the request are followed by ``scalars.py``.
"""

from __future__ import annotations

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import STRIDELESS, Trait, has
from diffc.compiler.graph.export import type_of
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import SCALAR, Guard, Input, Literal, Op, Polynomial, Program, Ref, Table, Type, Value
from diffc.compiler.tracing.component_calls import ENTRY_POINTS, Capture, returned_tensors, with_tensors
from diffc.compiler.tracing.functionalize import Link, link, refresh, write
from diffc.compiler.tracing.symbolic_scalar import Scalar, combine, fit_polynomials, other_points
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.value_ranges import decided, kept

MARKER = "\ufdd0{}\ufdd1"
"""Stands for a numbered text of the request while a pipeline is traced.

Its first and last characters are noncharacters, which Unicode keeps for a process's own use: no other text holds them.
"""

DROPPED = ("device", "layout", "memory_format", "pin_memory", "non_blocking", "generator")
"""Arguments of ATen operators that say where and how a tensor is stored, not what it is."""

aten = torch.ops.aten
DECOMPOSED: dict[Any, Callable[..., torch.Tensor]] = {
    aten.lerp.Scalar: lambda start, end, weight: start + (end - start) * weight,
    aten.lerp.Tensor: lambda start, end, weight: start + (end - start) * weight,
    aten.addcmul.default: lambda start, one, two, value=1: start + one * two * value,
    aten.addcdiv.default: lambda start, one, two, value=1: start + one / two * value,
}
"""Operators that are recorded as the arithmetic that they stand for."""


@dataclass(frozen=True)
class Text:
    """Ask for a text of the request, for a batch of pictures."""

    batch: int = 1


@dataclass(frozen=True)
class Number:
    """Ask for a number of the request, with its default."""

    default: float


@dataclass(frozen=True)
class Picture:
    """Ask for a picture of the request, [batch, channels, height, width] in [0, 1]."""

    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Tensor:
    """Ask for numbers of the request, [batch, …] in float32."""

    shape: tuple[int, ...]


Asked = Text | Number | Picture | Tensor


ON_STEP = "on_step"


def capture(
    function: Callable[..., Any], components: Mapping[str, Any], *, batch: int = 1, name: str = "main"
) -> Program:
    """Compile a sampling function of your own, over your own modules and tokenizers, into a program with its graphs.

    A parameter without default is a text, given as a list of ``batch`` strings; one with a number is a scalar of the
    request; one called ``on_step`` is a callable to be told the latents after each step. Noise is drawn with
    ``torch.randn``, in float32. `diffc.compiler.write_bundle` makes a bundle of the program.
    Raises `CaptureError` with the line of the function that asks for what only the run knows.
    """
    inputs: dict[str, Asked] = {}
    parameters = dict(inspect.signature(function).parameters)
    on_step = ON_STEP if parameters.pop(ON_STEP, None) else None
    for key, parameter in parameters.items():
        given = parameter.default
        inputs[key] = Text(batch) if given is inspect.Parameter.empty else Number(float(given))
    modules = {key: component for key, component in components.items() if isinstance(component, nn.Module)}
    tokenizers = {key: component for key, component in components.items() if key not in modules}
    collected = Capture()
    program = trace(function, modules, inputs, capture=collected, tokenizers=tokenizers, name=name, on_step=on_step)
    return collected.graphs([program])[0]


def trace(
    function: Callable[..., Any],
    components: Mapping[str, nn.Module],
    inputs: Mapping[str, Asked],
    *,
    capture: Capture,
    tokenizers: Mapping[str, Any] | None = None,
    name: str = "main",
    on_step: str | None = None,
) -> Program:
    """Run ``function(**inputs)`` symbolically and give the program of what it did, its graphs not yet exported.

    Texts arrive as lists of ``batch`` strings, numbers as floats, all else as tensors. ``on_step`` names the
    parameter of the function that takes a callable, to be told the latents after each step of the sampler.
    Raises `CaptureError` with the line that asks for what a symbolic value cannot give.
    """
    defaults = {key: item.default for key, item in inputs.items() if isinstance(item, Number)}

    def run(numbers: Mapping[str, float]) -> _Trace:
        return _Trace(capture, components, tokenizers or {}, inputs).run(function, numbers, on_step)

    first = run(defaults)
    ops, tables, guards = list(first.ops), dict(first.tables), list(first.guards)
    for scalar, at in defaults.items():
        points = other_points(at, [guard for guard in guards if guard.scalar == scalar])
        others = [run(defaults | {scalar: point}) for point in points]
        found = fit_polynomials(
            scalar, [at, *points], first.ops, [first.tables, *(o.tables for o in others)], [o.ops for o in others]
        )
        joined = combine(first.ops, ops, found[0]) if found else None
        if found is None or joined is None:
            guards.append(Guard(scalar, "==", at))
        else:
            ops, tables = joined, tables | found[1]
    declared = tuple(_declared(key, item) for key, item in inputs.items())
    program = Program(name, declared, tuple(guards), (), tuple(tables.values()), tuple(ops), tuple(first.outputs))
    live = program.live()
    for refusal in (first.unpadded.get(value.name) for op in live.ops for value in op.results):
        if refusal is not None:
            raise refusal
    return live


def _declared(name: str, item: Asked) -> Input:
    match item:
        case Text(batch):
            return Input(name, Type("text", (batch,)))
        case Number(default):
            return Input(name, SCALAR, default)
        case Picture(shape) | Tensor(shape):
            return Input(name, Type("float32", shape), is_image=isinstance(item, Picture))


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record one run."""

    def __init__(
        self,
        capture: Capture,
        components: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        inputs: Mapping[str, Asked],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capture, self.components, self.tokenizers, self.inputs = capture, components, tokenizers, inputs
        self.ops, self.guards, self.outputs = list[Op](), list[Guard](), list[str]()
        self.tables, self.counts = dict[str, Table](), dict[str, int]()
        self.markers = {MARKER.format(i): key for i, (key, t) in enumerate(inputs.items()) if isinstance(t, Text)}
        self.unpadded = dict[str, CaptureError]()

    def run(self, function: Callable[..., Any], numbers: Mapping[str, float], on_step: str | None) -> _Trace:
        request: dict[str, Any] = {key: Scalar(value, key, self.guards) for key, value in numbers.items()}
        for marker, key in self.markers.items():
            text = self.inputs[key]
            request[key] = [marker] * (text.batch if isinstance(text, Text) else 1)
        for key, item in self.inputs.items():
            if isinstance(item, Picture | Tensor):
                request[key] = Symbolic(self.capture.fake_mode.from_tensor(torch.zeros(item.shape)), key)
                request[key].bounds = (0.0, 1.0) if isinstance(item, Picture) else None
        if on_step:
            request[on_step] = self._step
        with ExitStack() as stack:
            for name, module in self.components.items():
                stack.enter_context(self._opaque(name, module))
            for name, tokenizer in self.tokenizers.items():
                stack.enter_context(self._recorded(name, tokenizer))
            stack.enter_context(torch.no_grad())
            stack.enter_context(_pipeline_errors())
            with self:
                result = function(**request)
                self.outputs = [self._name(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Symbolic)]
        if not self.outputs:
            raise CaptureError(
                "the sampler returns nothing that depends on the request or on noise", fix="return a tensor"
            )
        return self

    # What is recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        symbolic = any(isinstance(leaf, Symbolic) for leaf in pytree.tree_leaves((args, kwargs)))
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, args, kwargs)
        if not symbolic:
            return func(*args, **kwargs)
        if func in DECOMPOSED:
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        if func._schema.is_mutable:
            return self._mutate(func, args, kwargs)
        return self._record(func, args, kwargs)

    def _fake(self, func: Any, args: Any, kwargs: Any) -> Any:
        def fake(leaf: Any) -> Any:
            if isinstance(leaf, Symbolic):
                return leaf.fake
            return self.capture.fake_mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

        with self.capture.fake_mode:
            return func(*pytree.tree_map(fake, args), **pytree.tree_map(fake, kwargs))

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = self._fake(func, args, kwargs)
        leaves, structure = pytree.tree_flatten(out)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise CaptureError(f"{func} asks a symbolic value for a number")
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Symbolic)]
        outcome = decided(func, tensors[0].bounds, args, leaves[0].shape) if len(leaves) == 1 else None
        if outcome is not None:
            return outcome
        made = [self._value(leaf, "v") for leaf in leaves]
        attrs = tuple((key, self._literal(value)) for key, value in kwargs.items() if key not in DROPPED)
        name = str(STRIDELESS.get(func, func))
        self._append(name, tuple(self._literal(arg) for arg in args), attrs, made)
        constants = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if type(leaf) is torch.Tensor]
        for value in made:
            terms = tensors[0].numel() // max(1, value.numel())
            value.bounds = None if constants else kept(func, [t.bounds for t in tensors], value.dtype, terms)
        if has(func, Trait.VIEW):
            several = isinstance(out, list | tuple)
            for index, value in enumerate(made):
                link(value, args[0], Link(func, tuple(args[1:]), kwargs, index if several else None))
        return pytree.tree_unflatten(made, structure)

    def _append(
        self, name: str, args: tuple[Literal, ...], attrs: tuple[tuple[str, Literal], ...], made: Sequence[Symbolic]
    ) -> None:
        self.ops.append(Op(name, args, attrs, results=tuple(Value(m.label, type_of(m.fake)) for m in made)))

    def _mutate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Record an in-place operation as the one that returns a new value, which takes the old one's place."""
        target = args[0]
        packet = func._schema.name.split("::")[1].removesuffix("_")
        pure = getattr(getattr(torch.ops.aten, packet, None), func._overloadname, None)
        if not isinstance(target, Symbolic):
            raise CaptureError(f"{func} writes what only the run knows into a constant", fix="write into a new tensor")
        if pure is None:
            raise CaptureError(f"{func} writes in place", fix="use the operation that returns a new tensor")
        write(target, self._record(pure, args, kwargs), self._record)
        return target

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func._schema.name not in ("aten::randn", "aten::randn_like", "aten::normal_functional"):
            raise CaptureError(f"{func} draws numbers that are not normal", fix="draw noise with torch.randn")
        if kwargs.get("generator") is not None:
            raise CaptureError(
                f"{func} draws from a generator of its own", fix="draw from the request's seed: no generator"
            )
        fake = self._fake(func, args, kwargs)
        if fake.dtype != torch.float32:
            raise CaptureError(f"{func} draws {fake.dtype}", fix="draw noise in float32")
        made = self._value(fake, "n")
        self._append("noise", (), (), [made])
        return made

    def _value(self, fake: torch.Tensor, prefix: str) -> Symbolic:
        number = self.counts.get(prefix, 0)
        self.counts[prefix] = number + 1
        return Symbolic(fake, f"{prefix}{number}")

    def _name(self, tensor: Symbolic) -> str:
        refresh(tensor, self._record)
        return tensor.label

    def _literal(self, item: Any) -> Literal:
        if isinstance(item, Symbolic):
            return Ref(self._name(item))
        if isinstance(item, torch.Tensor):
            return item.item() if item.dim() == 0 else self._table(item)
        if isinstance(item, list | tuple):
            return tuple(self._literal(entry) for entry in item)
        if isinstance(item, torch.dtype):
            return str(item).removeprefix("torch.")
        if item is None or isinstance(item, bool | int | str):
            return item
        return float(item)

    def _table(self, tensor: torch.Tensor) -> Ref:
        data = read(tensor).detach().contiguous()
        table = Table.of((data.float() if data.dtype == torch.bfloat16 else data).numpy().copy())
        self.tables.setdefault(table.name, table)
        return Ref(table.name)

    def _step(self, latents: Any) -> None:
        if isinstance(latents, Symbolic):
            self.ops.append(Op("step", (Ref(self._name(latents)),), (), (Polynomial.constant(1.0),)))

    # Components and tokenizers

    @contextmanager
    def _opaque(self, name: str, module: nn.Module) -> Iterator[None]:
        methods = [method for method in ENTRY_POINTS if callable(getattr(type(module), method, None))]
        made = {method: self._component(name, module, method) for method in methods} | {"to": _stays(name, module)}
        before = {method: module.__dict__[method] for method in made if method in module.__dict__}
        module.__dict__.update(made)
        try:
            yield
        finally:
            for method in made:
                del module.__dict__[method]
            module.__dict__.update(before)

    def _component(self, name: str, module: nn.Module, method: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes(), self._transparent():
                signature, tensors = self.capture.call(name, module, method, args, kwargs)
            made = [
                self._value(leaf, f"{signature.name}_" if signature.name[-1].isdigit() else signature.name)
                for leaf in returned_tensors(signature.returned)
            ]
            given = [(port.name, self._port(t)) for port, t in zip(signature.inputs, tensors, strict=True)]
            self._append(signature.name, (), tuple(given), made)
            return with_tensors(signature.returned, iter(made))

        return call

    @contextmanager
    def _transparent(self) -> Iterator[None]:
        """Let the methods of components call each other directly."""
        modules = {id(module): module for module in self.components.values()}.values()
        hidden = [{m: module.__dict__.pop(m) for m in ENTRY_POINTS if m in module.__dict__} for module in modules]
        try:
            yield
        finally:
            for module, methods in zip(modules, hidden, strict=True):
                module.__dict__.update(methods)

    def _port(self, tensor: torch.Tensor) -> Literal:
        if not isinstance(tensor, Symbolic) and tensor.dim() == 1 and tensor.numel() <= 16:
            return tuple(tensor.tolist())
        return self._literal(tensor)

    @contextmanager
    def _recorded(self, name: str, tokenizer: Any) -> Iterator[None]:
        real = type(tokenizer)

        def call(this: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                encoding = real.__call__(this, text, *args, **kwargs)
            return self._tokenized(name, this, text, encoding, kwargs)

        tokenizer.__class__ = type(real.__name__, (real,), {"__call__": call})
        try:
            yield
        finally:
            tokenizer.__class__ = real

    def _tokenized(self, name: str, tokenizer: Any, text: Any, encoding: Any, options: Mapping[str, Any]) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        kinds = [_template(item, self.markers) for item in texts]
        if not any(kinds) or options.get("return_tensors") != "pt":
            return encoding
        parts, start = list[tuple[torch.Tensor, torch.Tensor]](), 0
        for kind, group in itertools.groupby(kinds):
            rows = slice(start, start + len(list(group)))
            start = rows.stop
            real = encoding["input_ids"][rows], encoding["attention_mask"][rows]
            parts.append(self._tokenize(name, tokenizer, kind, real, options) if kind else real)
        for column, key in enumerate(("input_ids", "attention_mask")):
            encoding[key] = parts[0][column] if len(parts) == 1 else torch.cat([part[column] for part in parts])
        return encoding

    def _tokenize(
        self,
        name: str,
        tokenizer: Any,
        kind: tuple[str, str],
        real: tuple[torch.Tensor, torch.Tensor],
        options: Mapping[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key, template = kind
        asked = self.inputs[key]
        batch = asked.batch if isinstance(asked, Text) else 0
        times = len(real[0]) if batch == 1 else 1
        if len(real[0]) != batch * times:
            raise CaptureError(
                f"{name} is given {len(real[0])} texts made of {key}", fix="give every text of the batch once"
            )
        real = real[0][:batch], real[1][:batch]
        with _disable_current_modes():
            made = tuple(
                self._value(self.capture.fake_mode.from_tensor(t), p)
                for t, p in zip(real, ("ids", "mask"), strict=True)
            )
        attrs: list[tuple[str, Literal]] = [
            ("tokenizer", name),
            ("length", real[0].shape[-1]),
            ("pad", tokenizer.pad_token_id),
        ]
        if template != "{}":
            attrs.append(("template", template))
        if options.get("padding") != "max_length" or not options.get("truncation"):
            self.unpadded |= dict.fromkeys((value.label for value in made), _unpadded(name, options))
        self._append("tokenize", (Ref(key),), tuple(attrs), made)
        ids, mask = (torch.cat([tensor] * times) if times > 1 else tensor for tensor in made)
        return ids, mask


def _stays(name: str, module: nn.Module) -> Callable[..., nn.Module]:
    """Let a component be moved nowhere, and be cast to nothing that it is not."""

    def to(*args: Any, **kwargs: Any) -> nn.Module:
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and any(p.dtype != dtype for p in module.parameters() if p.is_floating_point()):
            raise CaptureError(f"the pipeline casts {name} to {dtype}", fix="use a pipeline that computes in float32")
        return module

    return to


def _unpadded(name: str, options: Mapping[str, Any]) -> CaptureError:
    """Return the refusal of tokens whose number depends on the text; it is due only if the program needs them."""
    padding, truncation = options.get("padding"), options.get("truncation")
    return CaptureError(
        f"{name} is called with padding={padding!r}, truncation={truncation!r}: the text would decide the shape",
        where=_pipeline_line(traceback.extract_stack()),
        fix='call it with padding="max_length", truncation=True and a max_length',
    )


def _template(text: str, markers: Mapping[str, str]) -> tuple[str, str] | None:
    found = [(key, text.replace(marker, "{}")) for marker, key in markers.items() if marker in text]
    return found[0] if found else None


@contextmanager
def _pipeline_errors() -> Iterator[None]:
    """Say which line of the pipeline's code asked for what a trace cannot give."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CaptureError):
            what, fix = error.what, error.fix
        elif type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
            what, fix = f"{error} asks a symbolic value for a number", None
        else:
            what, fix = f"the pipeline refuses: {error}", "ask for what the pipeline can do"
        fix = fix or "the sampler must not branch on, or read, what only the run knows"
        raise CaptureError(what, where=_pipeline_line(traceback.extract_tb(error.__traceback__)), fix=fix) from error


def _pipeline_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost line that is neither PyTorch's nor ours."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
    last = theirs[-1] if theirs else frames[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"
