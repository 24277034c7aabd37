"""Compile a checkpoint into a bundle: the whole compilation, from top to bottom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffc.compiler.bundle.atomic_folder import new_folder
from diffc.compiler.bundle.provenance import provenance_of
from diffc.compiler.bundle.report_html import REPORT, page
from diffc.compiler.driver.feature_caching import cache
from diffc.compiler.driver.half_precision import legalize
from diffc.compiler.driver.option_values import read_path
from diffc.compiler.driver.options import Options, read_options
from diffc.compiler.driver.own_programs import brought_together
from diffc.compiler.driver.phases import capture, check, load, lower, normalize, stage, trace, trace_finer, write
from diffc.compiler.driver.quantize import measure, quantize
from diffc.compiler.driver.state import Phase, State, run_phases
from diffc.compiler.errors import BuildError, Progress
from diffc.compiler.ir.program import Program


def build(
    source: Path | str,
    target: str = "ort-fp32",
    output: Path | str | None = None,
    *,
    progress: Progress = lambda _: None,
    **options: Any,
) -> Path:
    """Compile a checkpoint and return the bundle's path, by default as `default_output` names it.

    The ``options`` are those of the command line, as `diffc.compiler.driver.options.read_options` takes them:
    ``build("sd.safetensors", "ort-w8a8", steps=20, cache="deepcache:interval=3")``. A build that fails leaves no
    bundle, and raises the `DiffcError` of the phase that failed.
    """
    source, output = read_path("source", source) or Path(), read_path("output", output)
    settings = read_options(target, **options)
    output = output or default_output(source)
    _check_outside(source, {"-o": output, "--dump": settings.dump})
    phases = [*phases_to_programs(settings), *phases_to_bundle(settings)]
    write_text = None if settings.dump is None else dump_below(settings.dump)
    with new_folder(output) as folder:
        state = State(settings, folder, source, progress)
        _run(replace(state, seen=write_text) if write_text else state, phases)
    return output


def default_output(source: Path) -> Path:
    """Return the source's name with ``.diffc``, in this folder, or beside the source if this folder lies inside it."""
    name = source.name if source.name not in ("", "..") else source.resolve().name
    is_inside = Path.cwd().is_relative_to(source.resolve())
    return (source.resolve().parent if is_inside else Path()) / f"{name.removesuffix('.safetensors')}.diffc"


def _check_outside(source: Path, outputs: Mapping[str, Path | None]) -> None:
    """Raise `BuildError` where an option's folder would lie inside the checkpoint, whose files provenance digests."""
    for option, path in outputs.items():
        if path is not None and path.resolve().is_relative_to(source.resolve()):
            what = f"{path} would lie inside the checkpoint {source}"
            raise BuildError(what, where=option, fix=f"name a folder outside of it with {option}")


def write_bundle(
    programs: Program | Sequence[Program],
    output: Path | str,
    target: str = "ort-fp32",
    *,
    tokenizers: Mapping[str, Any] | None = None,
    cache: str | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Compile programs of your own, such as `diffc.compiler.capture` returns, into a bundle; return its path.

    Components of one name may differ between captures. ``tokenizers`` are those of programs that `capture` has not
    returned. Raises `BuildError` for two programs of one name, and for a program that returns several tensors.
    """
    settings, output = read_options(target, cache=cache), Path(output)
    several = (programs,) if isinstance(programs, Program) else programs
    programs, tokenizers = brought_together(several, tokenizers or {})
    with new_folder(output) as folder:
        state = State(settings, folder, progress=progress, components=tokenizers, programs=programs)
        _run(replace(state, provenance=provenance_of(None, {})), phases_to_bundle(settings))
    return output


def phases_to_programs(options: Options) -> Iterator[Phase]:
    """Yield the phases from a checkpoint to programs that call graphs."""
    yield load
    yield trace
    if options.cache and options.cache.is_compared:
        yield trace_finer
    yield capture


def phases_to_bundle(options: Options) -> Iterator[Phase]:
    """Yield the phases from programs that call graphs to a bundle. One that no option requests is absent."""
    yield normalize
    # adapt: passes that change weights, such as LoRA and other adapters, come here: graphs are not yet cut by stage
    yield stage
    # prune: passes that remove weights come here: caches and quantization then see the smaller graphs
    if options.cache:
        yield partial(cache, options=options.cache)
    if options.quantization:
        yield partial(quantize, options=options.quantization)
    if options.precision:
        yield partial(legalize, options=options.precision)
    yield lower
    yield write
    if options.quantization:
        yield partial(measure, options=options.quantization)
    yield check


def _run(state: State, phases: Iterable[Phase]) -> None:
    state = run_phases(state, phases)
    (state.folder / REPORT).write_text(page({**state.reports, "phases": state.seconds}), encoding="utf-8")


def dump_below(folder: Path) -> Callable[[str, Program], None]:
    """Return a function that writes the text of a program below a folder, which must be new and possible."""
    if os.path.lexists(folder):
        raise BuildError(f"{folder} exists", where="--dump", fix="remove it or choose another folder")
    try:
        with TemporaryDirectory(dir=next(filter(Path.exists, folder.absolute().parents))):
            pass
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        raise BuildError(what, where="--dump", fix="choose another folder") from error

    def write_text(place: str, program: Program) -> None:
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{program.name}.txt").write_text(f"{program}\n", encoding="utf-8")

    return write_text
