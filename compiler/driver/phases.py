"""Run the phases that every build has: from a checkpoint to programs in normal form, and from programs to a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from diffc import passes
from diffc.compiler.analysis.work import work_by_stage
from diffc.compiler.backends.backend import Backend, Lowered, find_backend
from diffc.compiler.bundle.atomic_folder import check_space
from diffc.compiler.bundle.disk_space import bytes_needed
from diffc.compiler.bundle.provenance import provenance_of, weights_digest
from diffc.compiler.bundle.tokenizer_file import check_encodings, tokenizer_text
from diffc.compiler.bundle.write import Contents, write_contents
from diffc.compiler.calibration.calibrate import Calibrator
from diffc.compiler.checkpoint import load as checkpoint
from diffc.compiler.driver.options import Options
from diffc.compiler.driver.pass_manager import Times, run
from diffc.compiler.driver.state import State
from diffc.compiler.errors import BuildError
from diffc.compiler.ir.program import Program
from diffc.compiler.recipe import Pass, optional
from diffc.compiler.tracing.pipeline import Sampling, default_steps, trace_pipeline
from diffc.compiler.tracing.pipeline_inputs import Size
from diffc.passes.fill_uniform_tables import fill_uniform_tables
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.disk_cache import Cache
from diffc.runtime.errors import BundleError
from diffc.runtime.program.verify import Level


def load(state: State) -> State:
    """Load the pipeline of a checkpoint, and record where it came from."""
    options, target = state.options, state.options.target
    pipeline: Any = checkpoint.load(
        state.source,
        sampler=options.sampler,
        task=options.task,
        ip_adapter=options.ip_adapter,
        component_files=options.component_files,
        online=options.online,
        lazy_weights=True,
    )
    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    needed = bytes_needed(modules, find_backend(target.backend).bytes_per_weight(target.precision))
    check_space(needed, state.folder)
    state.progress(f"at most {needed / 1e9:.2f} GB of disk")
    provenance = provenance_of(state.source, options.recorded, options.files)
    return replace(state, pipeline=pipeline, components=pipeline.components, provenance=provenance)


def trace(state: State) -> State:
    """Trace the pipeline once for each size and number of steps."""
    options, programs = state.options, list[Program]()
    for size in options.sizes or (None,):
        for steps in dict.fromkeys(options.steps) or (default_steps(state.pipeline),):
            state.progress(f"trace {steps} steps" + (f" of {size[0]}x{size[1]}" if size else ""))
            programs += trace_pipeline(state.pipeline, _sampling(options, steps, size), state.calls)
    _check_sizes(options.sizes, programs)
    return replace(state, traced=tuple(programs))


def trace_finer(state: State) -> State:
    """Trace the first program with twice as many steps."""
    steps = next(iter(state.options.steps), default_steps(state.pipeline))
    sampling = _sampling(state.options, 2 * steps, next(iter(state.options.sizes), None))
    return replace(state, finer=tuple(trace_pipeline(state.pipeline, sampling, state.calls)[:1]))


def _sampling(options: Options, steps: int, size: Size | None) -> Sampling:
    return Sampling(
        task=options.task,
        steps=steps,
        guidance=options.guidance,
        size=size,
        says_size=len(options.sizes) > 1,
        batch=options.batch,
        strength=options.strength,
        options=options.settings,
        inputs=options.inputs,
    )


def _check_sizes(sizes: Sequence[Size], programs: Sequence[Program]) -> None:
    """Raise `BuildError` where the pipeline samples two of the sizes alike."""
    outputs = {program.types()[program.outputs[0]] for program in programs}
    if len(outputs) < len(sizes):
        where = "--size " + ",".join(f"{width}x{height}" for width, height in sizes)
        fix = "choose one, or sizes that the pipeline neither rounds to the same nor ignores"
        raise BuildError(f"the pipeline samples {len(outputs)} of these {len(sizes)} sizes", where=where, fix=fix)


def capture(state: State) -> State:
    """Export each component that the programs call as a graph."""
    programs = state.calls.graphs([*state.traced, *state.finer])
    count = len(state.traced)
    return replace(state, programs=programs[:count], finer=programs[count:])


def normalize(state: State) -> State:
    """Bring every program into normal form: calls of graphs and built-ins only."""
    captured = (*state.programs, *state.finer)
    recipes = _recipes(captured, state.calls.parts(), state.options.guidance_interval)
    times = Times()
    programs = [_normalized(state, program, recipe, times) for program, recipe in zip(captured, recipes, strict=True)]
    length = len(state.programs)
    tokenizers = _tokenizers(programs[:length], state.components)
    calibrator = Calibrator(
        {name: text.encode() for name, text in tokenizers.items()},
        state.options.prompts,
        state.options.seed,
        weights_digest(state.provenance),
        Cache.default(),
        progress=state.progress,
    )
    finer, programs = tuple(programs[length:]), programs[:length]
    state = replace(state, programs=tuple(programs), level=Level.NORMAL_FORM, finer=finer)
    return replace(state, tokenizers=tokenizers, calibrator=calibrator, pass_seconds=times)


def _normalized(state: State, program: Program, recipe: Sequence[Pass[Program]], times: Times) -> Program:
    numbers = count(1)

    def seen(name: str, rewritten: Program, seconds: float) -> None:
        times(name, rewritten, seconds)
        state.seen(f"{state.place}/{next(numbers):02}-{name}", rewritten)

    return run(program, recipe, level=Level.NORMAL_FORM, seen=seen)


def _recipes(
    programs: Sequence[Program], parts: Mapping[str, str], interval: tuple[float, float] | None
) -> Iterator[Sequence[Pass[Program]]]:
    """Yield each program's recipe; the first program, and others with guidance, have it in the interval only."""
    graphs = {graph.name: graph for program in programs for graph in program.graphs}
    halves = {batch: graphs[part] for batch, part in parts.items() if part in graphs}
    for at, program in enumerate(programs):
        if interval is None or (at and not _is_guided(program)):
            yield passes.NORMAL_FORM
        else:
            limited = optional(partial(passes.guidance_interval, interval=interval, parts=halves))
            yield (*passes.UNROLLED, limited, *passes.OUTLINED)


def _is_guided(program: Program) -> bool:
    """Return whether scalars of the request weigh the results of calls."""
    sums = [op for op in run(program, passes.UNROLLED).ops if op.operator == "linear" and op.args]
    return any(not coefficient.is_constant for op in sums for coefficient in op.coefficients)


def _tokenizers(programs: Sequence[Program], components: Mapping[str, Any]) -> dict[str, str]:
    """Return the checked texts of the files of the tokenizers that the programs use, in the order of the components."""
    called = set[str]().union(*(program.called_tokenizers for program in programs))
    texts = {name: tokenizer_text(name, component) for name, component in components.items() if name in called}
    calls = [op for program in programs for op in program.ops if op.operator == "tokenize"]
    for name, text in texts.items():
        check_encodings(name, components[name], text, [op for op in calls if op.attr("tokenizer") == name])
    return texts


def stage(state: State) -> State:
    """Compute every value as early as its inputs are known: at build, once per request, or in each step."""
    work = work_by_stage(state.programs)
    programs = tuple(fill_uniform_tables(program) for program in passes.stage(state.programs))
    return replace(state, programs=programs, level=Level.EXECUTABLE, floats=programs, work=work)


def lower(state: State) -> State:
    """Write the graphs as files that an engine runs, and build the engines of the target."""
    target, folder, progress = state.options.target, state.folder, state.progress
    graphs = {graph.name: graph for program in state.programs for graph in program.graphs}
    backend = find_backend(target.backend)()
    files = backend.lower(list(graphs.values()), target.precision, folder, progress)
    lowered = Lowered(list(graphs.values()), files, target.precision, target.archs, folder, progress)
    engines = backend.engines(lowered)
    built = {"engines": {Path(engine.file).stem: asdict(engine) for engine in engines.values()}} if engines else {}
    extras = {name: _extra(backend, name) for name in graphs}
    return replace(state, files=files, engines=engines, extras=extras, reports={**state.reports, **built})


def _extra(backend: Backend, graph: str) -> dict[str, Any]:
    """Return more fields of a graph's manifest entry: the kind of a file that is not ONNX, and plugins' operators."""
    kind = {} if backend.kind == "onnx" else {"kind": backend.kind}
    operators = backend.custom_operators(graph)
    return kind | ({"operators": operators} if operators else {})


def write(state: State) -> State:
    """Write tables, tokenizers, reports and the manifest."""
    contents = Contents(
        str(state.options.target),
        state.programs,
        state.tokenizers,
        state.files,
        state.engines,
        state.extras,
        state.work,
        state.provenance,
        state.reports,
    )
    write_contents(state.folder, contents)
    return state


def check(state: State) -> State:
    """Open the bundle as the runtime does. Raises `BuildError` for one that nothing could open."""
    try:
        open_bundle(state.folder)
    except BundleError as error:
        what = f"the bundle cannot be opened: {error.what}"
        raise BuildError(what, where=error.where, fix="report this with the command and the model") from error
    return state
