"""Run a pipeline once with symbolic tensors and record its operations on them, as a program.

The components of the pipeline are opaque calls. Whatever touches a symbolic tensor is recorded; all else (schedules,
sigmas, Python control flow) runs as it always does and ends up as constants. So loops unroll by themselves, and no
sampler, scheduler or guidance rule is known to this file.

The operations on tensors are recorded by ``recorder.py``, the calls of components by ``opaque_components.py`` and those
of tokenizers by ``tokenizer_calls.py``; scalars of the request are followed by ``symbolic_scalar.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Guard, Op, Program, Ref, Size
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.length_fit import LengthTrace
from diffc.compiler.tracing.length_range import Trace, fit_over_lengths
from diffc.compiler.tracing.pipeline_errors import PipelineRefusal
from diffc.compiler.tracing.request_inputs import Number, RequestInput, Text
from diffc.compiler.tracing.scalar_range import Traced, fit_over_range
from diffc.compiler.tracing.symbolic_scalar import combine
from diffc.compiler.tracing.tokenizer_calls import RequestTexts
from diffc.compiler.tracing.traced_function import Run, TracedFunction

ON_STEP = "on_step"

WHOLE = ("aten.slice.Tensor", "aten.alias.default")
"""Operators that return their tensor where the result has its shape."""

MOST_COUNTS = 24
"""A function that compares numbers of tokens so that it has more cases than these is refused."""


def capture(
    function: Callable[..., Any], components: Mapping[str, Any], *, batch: int = 1, name: str = "main"
) -> Program:
    """Compile a sampling function of your own, over your own modules and tokenizers, into a program with its graphs.

    A parameter without default is a text, given as a list of ``batch`` strings; one with a number is a scalar of the
    request; one called ``on_step`` is a callable that receives the latents after each step. Noise comes from
    ``torch.randn``, in float32. `diffc.compiler.write_bundle` makes a bundle of the program.
    Raises `CaptureError` with the line of the function that reads a value known only at run time.
    """
    inputs: dict[str, RequestInput] = {}
    parameters = dict(inspect.signature(function).parameters)
    on_step = ON_STEP if parameters.pop(ON_STEP, None) else None
    for key, parameter in parameters.items():
        default = parameter.default
        inputs[key] = Text(batch) if default is inspect.Parameter.empty else Number(float(default))
    modules = {key: component for key, component in components.items() if isinstance(component, nn.Module)}
    tokenizers = {key: component for key, component in components.items() if key not in modules}
    calls = ComponentCalls()
    program = trace(function, modules, inputs, calls=calls, tokenizers=tokenizers, name=name, on_step=on_step)
    return calls.graphs([replace(program, tokenizers=tokenizers)])[0]


def trace(
    function: Callable[..., Any],
    components: Mapping[str, nn.Module],
    inputs: Mapping[str, RequestInput],
    *,
    calls: ComponentCalls,
    tokenizers: Mapping[str, Any] | None = None,
    name: str = "main",
    on_step: str | None = None,
    seeds: Collection[int] = (),
) -> Program:
    """Run ``function(**inputs)`` symbolically and return the recorded program, its graphs not yet exported.

    Texts arrive as lists of ``batch`` strings, scalars as floats, all else as tensors. ``on_step`` names the
    parameter of the function that takes a callable, which receives the latents after each step of the sampler. Noise
    is drawn without a generator, or from one of the ``seeds``, which the operation names.
    Raises `CaptureError` with the line that reads a symbolic value.
    """
    traced = TracedFunction(
        function=function,
        components=components,
        inputs=inputs,
        calls=calls,
        tokenizers=tokenizers or {},
        on_step=on_step,
        seeds=seeds,
    )
    return trace_function(traced, name)


def trace_function(traced: TracedFunction, name: str) -> Program:
    """Return the program of a function, its graphs not yet exported.

    Raises `CaptureError` with the line that reads a symbolic value.
    """
    first, texts = traced.proved_run()
    ports, defaults = traced.ports, traced.defaults
    base = first.live(ports)
    line = first.line_of_length(base)
    elsewhere = [] if line else first.texts.elsewhere
    assumed = cycle([replace(texts, markers=counts) for counts in elsewhere] or [texts])

    def recorded(one: Run) -> Traced:
        return Traced(one.ops if line else one.live(ports).ops, one.tables, one.texts.recorder.compared)

    def at_value(scalar: str, value: float) -> Traced:
        repeated = traced.run(next(assumed), {scalar: value}, limit=len(first.ops))
        return recorded(repeated)

    program = Program(name, ports, tuple(first.guards), (), (), (), tuple(first.outputs))
    program, is_fitted = _fit_scalars(program, defaults, recorded(first), at_value)
    live = program.live()
    for refusal in (first.texts.unpadded.get(value.name) for op in live.ops for value in op.results):
        if refusal is not None:
            raise refusal
    if line is None:
        _need_no_lengths(traced, first, texts, [] if is_fitted else elsewhere)
        return live

    branch = traced.calls.branch()

    def at_counts(counts: Mapping[str, int]) -> LengthTrace:
        repeated = traced.run(replace(texts, markers=tuple(counts.values())), calls=branch)
        return repeated.counted(ports, branch)

    return _opened(program, first, first.counted(ports, traced.calls), at_counts, line)


def _fit_scalars(
    program: Program, defaults: Mapping[str, float], first: Traced, at_value: Callable[[str, float], Traced]
) -> tuple[Program, bool]:
    """Return a program with the operations of a trace as functions of scalars, and whether all were fitted."""
    ops, tables, guards, is_fitted = list(first.ops), first.tables, list(program.guards), bool(defaults)
    for scalar, at in defaults.items():
        fit = fit_over_range(scalar, at, first, guards, partial(at_value, scalar))
        joined = combine(first.ops, ops, fit.ops) if fit else None
        is_fitted = is_fitted and fit is not None
        if fit is None or joined is None:
            guards += [guard for guard in [Guard(scalar, "==", at)] if guard not in guards]
        else:
            ops, tables = joined, {**tables, **fit.tables}
            guards += fit.guards
    return replace(program, guards=tuple(guards), ops=tuple(ops), tables=tuple(tables.values())), is_fitted


def _opened(program: Program, first: Run, base: LengthTrace, at_counts: Trace, line: str) -> Program:
    """Return a program whose sizes are functions of the numbers of tokens that decide them.

    Raises `CaptureError` with the line that depends on such a number where there is none.
    """
    if batch := next((item.type.shape[0] for item in program.texts if item.type.shape[0] != 1), None):
        what = f"the numbers of tokens of the texts decide what is computed, for a batch of {batch}"
        raise CaptureError(
            what, where=line, fix="build for a batch of one: a request of several prompts runs it for each"
        )
    try:
        opened = fit_over_lengths(base, first.texts.lengths.spans, at_counts)
    except CaptureError as error:
        raise CaptureError(error.what, where=error.where or line, fix=error.fix) from error
    originals = {op.results[0].name: op for op in first.ops if op.results}
    ops = list[Op]()
    for op in program.ops:
        original = originals.get(op.results[0].name) if op.results else None
        ops += [op] if original is None else opened.apply(original, op)
    tables = {table.name: table for table in program.tables} | opened.tables
    names = {length.name for length in opened.lengths}
    counted = {label: name for label, name in first.texts.counted.items() if name in names}
    if names > set(counted.values()):
        raise CaptureError("the number of tokens of a text that is not cut decides what is computed", where=line)
    ops = [_counting(op, counted, first.texts.open) for op in ops]
    live = replace(program, ops=tuple(ops), tables=tuple(tables.values()), lengths=opened.lengths).live()
    _need_one_encoding(live, counted, first.texts.open)
    return live


def _need_no_lengths(
    traced: TracedFunction, first: Run, texts: RequestTexts, elsewhere: Sequence[tuple[int, ...]]
) -> None:
    """Raise `CaptureError` where a program reads no tokens of an unpadded text, but depends on their number.

    It is traced for numbers of tokens at which comparisons with them have other outcomes, up to those of texts that are
    cut. What the function refuses is passed over.
    """
    lengths, base, waiting = first.texts.lengths, _numbered(first.live(traced.ports)), list(elsewhere)
    outcomes, tried = list(lengths.outcomes), [tuple(span.at for span in lengths.spans.values())]
    while counts := waiting.pop() if waiting else lengths.untried(outcomes, tried):
        tried.append(counts)
        is_same = len(tried) <= MOST_COUNTS
        if is_same:
            try:
                run = traced.run(replace(texts, markers=counts))
            except PipelineRefusal:
                continue
            outcomes += run.texts.lengths.outcomes
            is_same = _numbered(run.live(traced.ports)) == base
        if not is_same:
            what = "the number of tokens of a text decides what is computed, but its tokens do not"
            where = first.texts.unpadded_lines[0]
            raise CaptureError(what, where=where, fix="compute with the tokens whose number decides")


def _numbered(program: Program) -> Program:
    """Return a program whose values have names by their order: those of a trace depend on what no output needs.

    Slices that are all of their tensors are left out, as those of tokens that were cut already.
    """
    names, types, ops = dict[str, str](), program.types(), list[Op]()
    for op in program.ops:
        source = op.args[0] if op.operator in WHOLE and op.args else None
        if isinstance(source, Ref) and types[source.name] == op.results[0].type:
            names[op.results[0].name] = names.get(source.name, source.name)
            continue
        names |= {value.name: f"value{len(ops)}_{at}" for at, value in enumerate(op.results)}
        results = tuple(replace(value, name=names[value.name]) for value in op.results)
        ops.append(replace(op.renamed(names), results=results))
    return replace(program, ops=tuple(ops), outputs=tuple(names.get(name, name) for name in program.outputs))


def _need_one_encoding(program: Program, counted: Mapping[str, str], is_open: Mapping[str, str]) -> None:
    """Raise `CaptureError` where a program needs tokens of an open text that another call counts."""
    encodings = (op.results[0].name for op in program.ops if op.operator == "tokenize")
    again = next((is_open[name] for name in encodings if name in is_open and name not in counted), None)
    if again is not None:
        what = "a text is encoded again without padding"
        raise CaptureError(what, where=again, fix="encode the text once, and use the tokens of that call twice")


def _counting(op: Op, counted: Mapping[str, str], is_open: Collection[str]) -> Op:
    """Make the first call of a tokenizer with a text count its tokens."""
    name = counted.get(op.results[0].name) if op.results else None
    if name is None:
        return op
    sizes = (Size.of(name),) if op.results[0].name in is_open else op.results[0].type.shape[1:]
    results = (replace(value, type=replace(value.type, shape=(value.type.shape[0], *sizes))) for value in op.results)
    return replace(op, attrs=(*op.attrs, ("count", name)), results=tuple(results))
