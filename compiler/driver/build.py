"""Compile a checkpoint into a bundle: the whole compilation, from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from diffc import passes
from diffc.compiler.analysis.work import work_by_stage
from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import Target, parse_target
from diffc.compiler.backends.tensorrt.build import wanted_engines
from diffc.compiler.bundle.atomic_folder import check_room, new_folder
from diffc.compiler.bundle.disk_space import bytes_needed
from diffc.compiler.bundle.provenance import provenance_of
from diffc.compiler.bundle.report_html import page
from diffc.compiler.bundle.write import Contents, add_file, json_of, tokenizer_text, write_contents
from diffc.compiler.calibration.calibrate import Calibrator
from diffc.compiler.calibration.prompts import read_prompts
from diffc.compiler.checkpoint.load import load
from diffc.compiler.driver.feature_caching import AskedCache, asked_cache
from diffc.compiler.driver.half_precision import Half, asked_half
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.driver.quantize import Asked, asked_quantization, quantize
from diffc.compiler.errors import BuildError, Progress
from diffc.compiler.ir.program import Program
from diffc.compiler.ir.verify import verify
from diffc.compiler.recipe import Pass, optional
from diffc.compiler.tracing.component_calls import Capture
from diffc.compiler.tracing.pipeline import Sampling, asked_sizes, default_steps, trace_pipeline
from diffc.compiler.tracing.pipeline_inputs import PREPARED, Size
from diffc.passes import NORMAL_FORM, stage
from diffc.passes.fill_uniform_tables import fill_uniform_tables
from diffc.runtime.disk_cache import Cache

IP_ADAPTER_IMAGE = "ip_adapter_image"


def build(
    source: Path | str,
    target: str = "ort-fp32",
    output: Path | str | None = None,
    *,
    steps: Sequence[int] = (),
    sampler: str | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    size: Size | Sequence[Size] | None = None,
    batch: int = 1,
    task: str = "text-to-image",
    strength: float | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    inputs: Mapping[str, str] = MappingProxyType({}),
    ip_adapter: Path | str | None = None,
    online: bool = False,
    cache: str | None = None,
    quant: str | None = None,
    recipe: Path | str | None = None,
    calibration: Path | str | None = None,
    seed: int = 0,
    min_psnr: float | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Compile a checkpoint and give the bundle's path (default: the source's name with ``.diffc``, in this folder).

    ``steps`` gives one program for each count (default: the pipeline's own), ``size`` is width and height in pixels, or
    a list of such, of which the first is the default, ``guidance`` the default scale, which stays a number of the
    request, ``guidance_interval`` the fractions of the steps from and to which there is guidance, ``strength`` how much
    of a given picture is drawn anew, ``options`` other arguments of the pipeline's call, such as ``num_frames``, and
    ``inputs`` those that are pictures and tensors of the request, as ``{"image_embeds": "1280"}``: see
    `diffc.compiler.tracing.pipeline_inputs`. ``ip_adapter`` is the file of an IP-Adapter, whose picture is then an
    input too.

    ``cache`` lets most steps reuse features of earlier ones, as ``"deepcache:interval=3,branch=0"`` does; the systems
    are those of `diffc.passes.cache`.

    A target of few bits is quantized: by the techniques of ``quant`` and as the file ``recipe`` says
    (`diffc.compiler.quantization.recipe_file`), calibrated with the prompts of the file ``calibration`` from ``seed``
    on, which are those of a cache that looks at trajectories too. ``min_psnr`` is
    what the worst of the pictures drawn then must reach, in dB, against the same program in float32.
    Whatever fails, no half-made bundle is left. Raises `DiffcError` of the stage that failed.
    """
    wanted = parse_target(target)
    features, half = asked_cache(cache), asked_half(wanted)
    calibrates = any(each is not None and each.is_calibrated for each in (features, half))
    asked = asked_quantization(wanted, quant, recipe, calibration, seed, min_psnr, calibrates=calibrates)
    prompts = read_prompts(Path(calibration)) if calibration is not None else ()
    sizes = asked_sizes(size)
    source = Path(source)
    output = Path(output) if output is not None else Path(f"{source.name.removesuffix('.safetensors')}.diffc")
    with new_folder(output) as folder:
        progress("load")
        pipeline = load(source, sampler=sampler, task=task, ip_adapter=ip_adapter, online=online, stand_ins=True)
        needed = bytes_needed(_modules(pipeline), find_backend(wanted.backend).precisions[wanted.precision])
        check_room(needed, folder)
        progress(f"make at most {needed / 1e9:.2f} GB")
        inputs = ({IP_ADAPTER_IMAGE: PREPARED} if ip_adapter else {}) | dict(inputs)
        capture, programs = Capture(), list[Program]()
        fixed = Sampling(task=task, guidance=guidance, says_size=len(sizes) > 1, batch=batch, strength=strength)
        fixed = replace(fixed, options=dict(options), inputs=inputs)
        for one in sizes or (None,):
            for count in dict.fromkeys(steps) or (default_steps(pipeline),):
                progress(f"trace {count} steps" + (f" of {one[0]}x{one[1]}" if one else ""))
                programs += trace_pipeline(pipeline, replace(fixed, steps=count, size=one), capture)
        _check_sizes(sizes, programs)
        if features is not None and features.is_compared:
            progress("trace twice as many steps")
            finer_steps = replace(fixed, steps=2 * _first(steps, pipeline), size=next(iter(sizes), None))
            programs += trace_pipeline(pipeline, finer_steps, capture)[:1]
        progress("capture")
        captured = capture.graphs(programs)
        recipes = _recipes(captured, capture.parts(), guidance_interval)
        made = [run(program, way) for program, way in zip(captured, recipes, strict=True)]
        finer = made.pop() if features is not None and features.is_compared else None
        tokenizers = {name: component for name, component in pipeline.components.items() if _is_called(name, made)}
        told: dict[str, Any] = {"task": task, "sampler": sampler, "steps": list(steps), "guidance": guidance}
        told |= {"sizes": sizes, "batch": batch, "strength": strength, "options": dict(options), "inputs": inputs}
        told |= {"guidance_interval": guidance_interval, "quantization": None if asked is None else asked.described}
        told |= {"ip_adapter": Path(ip_adapter).name if ip_adapter else None}
        told |= {"cache": None if features is None else features.described}
        texts = {name: tokenizer_text(name, tokenizer) for name, tokenizer in tokenizers.items()}
        provenance = provenance_of(source, told)
        calibrator = _calibrator(texts, prompts, seed, provenance["source_sha256"], progress)
        _write(folder, made, texts, wanted, provenance, progress, calibrator, features, asked, half, finer)
    return output


def _first(steps: Sequence[int], pipeline: Any) -> int:
    return steps[0] if steps else default_steps(pipeline)


def _check_sizes(sizes: Sequence[Size], programs: Sequence[Program]) -> None:
    """Raise `BuildError` where the pipeline draws two of the sizes alike."""
    drawn = {program.types()[program.outputs[0]] for program in programs}
    if len(drawn) < len(sizes):
        where = "--size " + ",".join(f"{width}x{height}" for width, height in sizes)
        fix = "ask for one, or for sizes that the pipeline neither rounds to the same nor leaves alone"
        raise BuildError(f"the pipeline draws {len(drawn)} of these {len(sizes)} sizes", where=where, fix=fix)


def _recipes(
    programs: Sequence[Program], parts: Mapping[str, str], interval: tuple[float, float] | None
) -> Iterator[Sequence[Pass[Program]]]:
    """Give each program's way to the normal form; the first program, and others with guidance, in the interval only."""
    graphs = {graph.name: graph for program in programs for graph in program.graphs}
    halves = {whole: graphs[part] for whole, part in parts.items() if part in graphs}
    for at, program in enumerate(programs):
        if interval is None or (at and not _is_guided(program)):
            yield NORMAL_FORM
        else:
            limited = optional(partial(passes.guidance_interval, interval=interval, parts=halves))
            yield (*passes.UNROLLED, limited, *passes.OUTLINED)


def _is_guided(program: Program) -> bool:
    """Say whether scalars of the request weigh what a call gave."""
    sums = [op for op in run(program, passes.UNROLLED).ops if op.operator == "linear" and op.args]
    return any(not coefficient.is_constant for op in sums for coefficient in op.coefficients)


def write_bundle(
    programs: Sequence[Program],
    output: Path | str,
    target: str = "ort-fp32",
    *,
    tokenizers: Mapping[str, Any] | None = None,
    cache: str | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Lower programs of your own, such as `diffc.compiler.capture` makes them, into a bundle."""
    wanted, output = parse_target(target), Path(output)
    with new_folder(output) as folder:
        made = [run(program, NORMAL_FORM) for program in programs]
        asked = asked_cache(cache), asked_quantization(wanted), asked_half(wanted)
        texts = {name: tokenizer_text(name, tokenizer) for name, tokenizer in (tokenizers or {}).items()}
        _write(
            folder,
            made,
            texts,
            wanted,
            provenance_of(None, {}),
            progress,
            _calibrator(texts, (), 0, "", progress),
            *asked,
        )
    return output


def _calibrator(
    tokenizers: Mapping[str, str], prompts: tuple[str, ...], seed: int, source: str, progress: Progress
) -> Calibrator:
    texts = {name: text.encode() for name, text in tokenizers.items()}
    return Calibrator(texts, prompts, seed, source, Cache.default(), progress=progress)


def _write(
    folder: Path,
    programs: Sequence[Program],
    texts: Mapping[str, str],
    target: Target,
    provenance: dict[str, Any],
    progress: Progress,
    calibrator: Calibrator,
    features: AskedCache | None,
    asked: Asked | None,
    half: Half | None,
    finer: Program | None = None,
) -> None:
    progress("stage")
    work = work_by_stage(programs)
    programs = [verify(fill_uniform_tables(program)) for program in stage(programs)]
    reports = dict[str, Any]()
    if features is not None:
        programs, searched = features.applied(programs, calibrator, progress, finer)
        reports |= {} if searched is None else {"cache": searched}
    quantized, floats = None, programs
    if asked is not None:
        quantized = quantize(programs, target, asked, calibrator, progress)
        programs = [verify(program) for program in quantized.programs]
        provenance = provenance | {"calibration": quantized.plan.calibration.digest}
    if half is not None:
        typed, reports["precision"] = half.applied(programs, floats, calibrator, progress)
        programs = [verify(program) for program in typed]
    graphs = {graph.name: graph for program in programs for graph in program.graphs}
    backend = find_backend(target.backend)()
    files = backend.lower(list(graphs.values()), target.precision, folder, progress)
    wanted = wanted_engines(graphs.values(), files, lambda name: graphs[name].component)
    engines = backend.engines(wanted, target.precision, target.archs, folder, progress)
    progress("write")
    reports |= {"engines": {Path(engine.file).stem: asdict(engine) for engine in engines.values()}} if engines else {}
    contents = Contents(str(target), programs, texts, files, engines, work, provenance, reports)
    write_contents(folder, contents)
    if quantized is not None:
        reports["quantization"] = quantized.measured(folder, progress)
        add_file(folder, "quantization.json", json_of(reports["quantization"]))
    if reports:
        add_file(folder, "report.html", page(reports))


def _modules(pipeline: Any) -> list[nn.Module]:
    return [component for component in pipeline.components.values() if isinstance(component, nn.Module)]


def _is_called(name: str, programs: Iterable[Program]) -> bool:
    return any(op.attr("tokenizer") == name for program in programs for op in program.ops if op.operator == "tokenize")
