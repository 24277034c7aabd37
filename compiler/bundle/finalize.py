"""Build the engines of a bundle's own graphs on the machine that runs them.

The classic TensorRT builds for the GPU of this machine, and measures on it; the measurements are stored beside the
engines and reused the next time. TensorRT for RTX builds for any GPU that is named. Either can leave the weights out of
the engines, which then read those of the graphs whenever they are opened: that needs a GPU to build, and to try.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffc.compiler.backends.tensorrt.build import FOLDER, Built, build_engines, engine_requests
from diffc.compiler.bundle.atomic_folder import (
    changed_folder,
    check_space,
    clear_abandoned,
    file_entry,
    new_folder,
    write_manifest,
)
from diffc.compiler.bundle.report_html import REPORT, SECTIONS, page
from diffc.compiler.errors import BuildError, Progress
from diffc.runtime.bundle.manifest import FIRST, STRIPPED, parse_json
from diffc.runtime.bundle.open import MANIFEST, Bundle, link_or_copy, open_bundle
from diffc.runtime.engines.cuda import find_gpu
from diffc.runtime.engines.registry import find_engine, split_target
from diffc.runtime.engines.tensorrt import TensorRT
from diffc.runtime.engines.tensorrt_library import CLASSIC, INSTALL, RTX, architectures, find_library, installed
from diffc.runtime.errors import BundleError

Builder = Callable[..., dict[str, Built]]

ENGINES = "engines.json"


@dataclass(frozen=True)
class Aim:
    """Hold which of the two libraries builds, for which GPUs, and whether engines leave their weights out."""

    kind: str
    archs: Sequence[str]
    strip: bool


def finalize(
    bundle: Path | str,
    output: Path | str | None = None,
    *,
    archs: Sequence[str] = (),
    strip: bool = False,
    progress: Progress = lambda _: None,
    build: Builder = build_engines,
) -> Path:
    """Build engines for this machine's GPU, or for ``archs``, and return the path of the bundle that holds them.

    Without ``output`` they replace the engines of the bundle itself, which stays as it was if anything fails. The
    graphs stay, which any machine can run. With ``strip`` the engines hold no weights; this machine must then have one
    of the GPUs. Raises `DiffcError`.
    """
    clear_abandoned(Path(bundle))
    if output is not None:
        with new_folder(Path(output)) as folder:
            _write(_opened(bundle), folder, _aim(archs, strip=strip), progress, build)
        return Path(output)
    opened = _opened(bundle)
    if opened.root != opened.path.resolve():
        form = "a tar file" if opened.path.is_file() else "a folder of links to files elsewhere"
        raise BuildError(f"{bundle} is {form}", fix="name the folder to write with -o")
    aim = _aim(archs, strip=strip)
    with changed_folder(opened.root) as folder:
        _write(opened, folder, aim, progress, build)
    return opened.path


def _opened(bundle: Path | str) -> Bundle:
    """Open a bundle. Raises `BuildError` where its target has no engines."""
    opened = open_bundle(Path(bundle))
    if not issubclass(find_engine(split_target(opened.manifest.target)[0]), TensorRT):
        what = f"{bundle} was built for {opened.manifest.target}, which has no engines"
        raise BuildError(what, fix="build it for a target trt-…, such as trt-fp16")
    return opened


def _aim(archs: Sequence[str], *, strip: bool) -> Aim:
    """Choose the library, and the architecture where none is named. Raises `DiffcError` where that cannot be."""
    kind = RTX if archs or CLASSIC not in installed() else CLASSIC
    library = find_library(kind)
    if strip or not archs:
        here = _here(strip=strip)
        archs = archs or (here,)
        if here not in archs:
            what = f"engines without weights are tried on this machine's GPU, which is {here}"
            where, fix = f"--strip --arch {','.join(archs)}", f"name {here} too, or leave out --arch"
            raise BuildError(what, where=where, fix=fix)
    known = architectures(library)
    if unknown := [arch for arch in archs if known and arch not in known]:
        fix = f"choose among {', '.join(known)}, or install TensorRT where that GPU is: {INSTALL[CLASSIC]}"
        raise BuildError(f"TensorRT for RTX does not build for {unknown[0]}", fix=fix)
    return Aim(kind, archs, strip)


def _here(*, strip: bool) -> str:
    """Name the architecture of this machine's GPU. Raises `BuildError` where it has none."""
    try:
        return find_gpu().arch
    except BundleError as error:
        what = f"engines without weights are built where a GPU is: {error.what}" if strip else error.what
        hint = "leave out --strip" if strip else "name its GPU, as --arch sm89 does"
        fix = f"finalize the bundle on the machine that runs it, or {hint}"
        raise BuildError(what, where=error.where, fix=fix) from error


def _write(opened: Bundle, folder: Path, aim: Aim, progress: Progress, build: Builder) -> None:
    """Fill a folder with the files of a bundle, and with new engines instead of its own."""
    manifest, root = opened.manifest, opened.root
    stale = {MANIFEST, ENGINES, REPORT, *(engine.file for engine in manifest.engines.values())}
    check_space(sum(file.bytes for name, file in manifest.files.items() if name not in stale), folder)
    (folder / FOLDER).mkdir()
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root)
        if name.as_posix() not in stale:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copyfile if name.is_relative_to(FOLDER) else link_or_copy)(file, folder / name)
    graphs = {graph.name: graph for program in opened.programs.values() for graph in program.graphs}
    requests = engine_requests(graphs.values(), manifest.graphs, manifest.component)
    built = build(folder, [replace(each, strip=aim.strip) for each in requests], aim.archs, progress, kind=aim.kind)
    _report(opened, folder, built.values())
    files = {name: entry for name, entry in manifest.raw["files"].items() if name not in stale}
    written = [*(folder / FOLDER).iterdir(), folder / ENGINES]
    files |= {path.relative_to(folder).as_posix(): file_entry(path) for path in written}
    engines = {name: engine.entry for name, engine in built.items()}
    oldest = STRIPPED if any(engine.stripped for engine in built.values()) else FIRST
    schema = oldest if manifest.raw["schema"] <= STRIPPED else manifest.raw["schema"]
    changed = {"schema": schema, "files": dict(sorted(files.items())), "engines": engines}
    write_manifest(folder, {**manifest.raw, **changed})


def _report(opened: Bundle, folder: Path, built: Iterable[Built]) -> None:
    """Write the report of the new engines, and the page of all reports again."""
    held = {f"{name}.json": name for name in SECTIONS if f"{name}.json" in opened.manifest.files}
    reports = {name: parse_json((opened.root / file).read_bytes(), file) for file, name in held.items()}
    reports["engines"] = {Path(engine.file).stem: asdict(engine) for engine in built}
    (folder / ENGINES).write_text(json.dumps(reports["engines"]) + "\n", encoding="utf-8")
    try:
        text = page(reports)
    except (LookupError, TypeError, ValueError, AttributeError):  # what another diffc reported has another form
        text = page({"engines": reports["engines"]})
    (folder / REPORT).write_text(text, encoding="utf-8")
