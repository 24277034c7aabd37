"""Run the commands. Results go to stdout, what people read meanwhile to stderr."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from diffc.compiler.checkpoint.tasks import TASKS
from diffc.compiler.commands.parameter_types import Counts, Interval, Named, Names, Setting, Size, Sizes
from diffc.runtime.errors import DiffcError, DiffcWarning
from diffc.runtime.memory import peak_bytes

Command = Callable[..., Any]

INPUT = "NAME=SHAPE for each picture, as image_embeds=1280; NAME=picture,picture for a list."
IP_ADAPTER = "An IP-Adapter's .safetensors file; its picture is asked for as ip_adapter_image."
SETTING = Setting("num_frames=16")
EXTRA = "this command needs the compiler: pip install 'diffc[compiler]'"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="diffc")
def main() -> None:
    """Compile diffusion models into bundles that run without PyTorch.

    \b
    diffc build model.safetensors --target ort-fp32
    diffc run model.diffc "a red circle left of a blue square" -o out.png
    """


def _command(function: Command) -> Command:
    """Make a command of a function that returns what ``--json`` prints."""

    @wraps(function)
    def run(*, as_json: bool, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with warnings.catch_warnings():
            warnings.simplefilter("always", DiffcWarning)
            warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
            try:
                result = function(**options)
            except DiffcError as error:
                _fail(error, as_json)
            except ModuleNotFoundError as error:
                _fail(DiffcError(f"{error.name} is not installed", fix=EXTRA), as_json)
            except KeyboardInterrupt:
                _fail(DiffcError("interrupted", fix="nothing was left half-made; run it again"), as_json)
        if as_json:
            click.echo(json.dumps(result, indent=1))
        if result.get("failed"):
            sys.exit(1)

    flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
    return main.command(name=function.__name__.removesuffix("_"))(flag(run))


def _fail(error: DiffcError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": {"what": error.what, "where": error.where, "fix": error.fix}}, indent=1))
    click.echo(str(error), err=True)
    sys.exit(1)


def _say(text: str = "") -> None:
    click.echo(text, err=True)


@contextmanager
def _timed(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what happens, each line with the seconds since the start."""
    start = time.monotonic()

    def progress(stage: str) -> None:
        _say(f"{time.monotonic() - start:7.1f} s  {stage}")

    yield progress
    progress(what)


@_command
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--target", default="ort-fp32", show_default=True, help="BACKEND-PRECISION, such as ort-fp16.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle  [default: SOURCE's name.diffc]")
@click.option("--steps", type=Counts(), help="Steps of the sampler; one program for each.  [default: the pipeline's]")
@click.option("--sampler", help="Another sampler: ddim, dpmpp-2m, euler, … or a diffusers scheduler class.")
@click.option("--guidance", type=float, help="Default guidance scale; --guidance of run changes it.")
@click.option("--guidance-interval", type=Interval(), help="Fractions of the steps between which there is guidance.")
@click.option("--size", type=Sizes(), help="Width and height in pixels; programs for each.  [default: the model's]")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures at once.")
@click.option(
    "--task", type=click.Choice(list(TASKS)), default="text-to-image", show_default=True, help="What to draw from."
)
@click.option("--strength", type=click.FloatRange(0, 1), help="How much of a given picture is drawn anew.")
@click.option("--set", "options", type=SETTING, multiple=True, help="NAME=VALUE for the pipeline, as num_frames=16.")
@click.option("--input", "inputs", type=Named("image_embeds=1280"), multiple=True, help=INPUT)
@click.option("--ip-adapter", type=click.Path(path_type=Path), help=IP_ADAPTER)
@click.option("--cache", help="Which features steps reuse, as deepcache:interval=3,branch=0.  [default: none]")
@click.option("--quant", help="How a target of few bits is quantized, as smoothquant:alpha=0.5+gptq.")
@click.option("--recipe", type=click.Path(path_type=Path), help="A .toml file with the formats of layers.")
@click.option("--calibration", type=click.Path(path_type=Path), help="A text file of prompts, one a line.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the calibration.")
@click.option("--min-psnr", type=float, help="Fail where a calibrated picture has fewer dB against float32.")
@click.option("--online", is_flag=True, help="Allow a single file's missing configuration to be fetched.")
def build(output: Path | None, steps: tuple[int, ...] | None, **settings: Any) -> dict[str, Any]:
    """Compile SOURCE, a .safetensors file or a diffusers folder, into a bundle.

    \b
    diffc build model.safetensors
    diffc build ./stable-diffusion-3 --target ort-fp16 --steps 10,20 --sampler flow-euler -o sd3.diffc
    diffc build model.safetensors --size 512x512,768x512
    diffc build model.safetensors --steps 50 --cache deepcache:interval=5,branch=0
    diffc build model.safetensors --target ort-w4a8 --quant gptq --calibration prompts.txt --min-psnr 25
    """
    from diffc.compiler.driver.build import build as compile_

    start = time.monotonic()
    with _timed("done") as progress:
        source = settings.pop("source")
        settings |= {name: dict(settings[name]) for name in ("options", "inputs")}
        path = compile_(source, output=output, steps=steps or (), progress=progress, **settings)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    _say(f"{path}: {size / 1e6:.1f} MB")
    return {"bundle": str(path), "bytes": size, "seconds": time.monotonic() - start, "peak_bytes": peak_bytes()}


@_command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Leave BUNDLE as it is, and write another.")
@click.option("--arch", "archs", type=Names(), default=(), help="GPUs, as sm86,sm89.  [default: this machine's]")
@click.option(
    "--strip", is_flag=True, help="Leave the weights out of the engines, which take the graphs'. Needs a GPU."
)
def finalize(bundle: Path, **options: Any) -> dict[str, Any]:
    """Build the TensorRT engines of BUNDLE, which was built for trt-…, on the machine that runs it.

    The classic TensorRT builds them where it is installed, and TensorRT for RTX elsewhere, or for the GPUs of --arch.
    With --strip BUNDLE holds its weights once: engines read them from the graphs whenever they are opened.

    \b
    diffc finalize model.diffc
    diffc finalize model.diffc --arch sm86,sm89 -o elsewhere.diffc
    diffc finalize model.diffc --strip
    """
    from diffc.compiler.bundle.finalize import finalize as build_engines

    start = time.monotonic()
    with _timed("done") as progress:
        path = build_engines(bundle, progress=progress, **options)
    engines = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["engines"]
    _say_engines(engines)
    return {"bundle": str(path), "engines": engines, "seconds": time.monotonic() - start, "peak_bytes": peak_bytes()}


@_command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file of the picture or film; .npy for the numbers.",
)
@click.option("--negative", help="What the picture should not show.")
@click.option("--seed", type=int, help="The picture's seed.  [default: random]")
@click.option("--guidance", type=float, help="Guidance scale.  [default: the bundle's]")
@click.option("--latents", type=click.Path(path_type=Path), help="A .npy file that stands for the first noise.")
@click.option("--image", type=click.Path(path_type=Path), help="The picture to start from, or to be guided by.")
@click.option("--mask", type=click.Path(path_type=Path), help="White where the picture is drawn anew.")
@click.option("--input", "inputs", type=Named("image_embeds=x.npy"), multiple=True, help="NAME=FILE, .npy or picture.")
@click.option("--set", "settings", type=SETTING, multiple=True, help="NAME=VALUE for another number of the request.")
@click.option("--size", type=Size(), help="Which of the bundle's sizes, in pixels.  [default: the first]")
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures, drawn as a grid.")
@click.option("--program", help="Which program of the bundle.  [default: the first that serves the request]")
def run(output: Path, **options: Any) -> dict[str, Any]:
    """Draw what PROMPT says with BUNDLE.

    \b
    diffc run shapes.diffc "a red circle left of a blue square" -o out.png
    diffc run shapes.diffc "a green star" --seed 7 --guidance 5 --images 4 -o grid.png
    diffc run shapes.diffc "a blue circle above a red star" --size 96x64 -o wide.png
    """
    from diffc.runtime import load
    from diffc.runtime.engines.openvino import advice
    from diffc.runtime.images import check_path

    numbers = output.suffix.lower() == ".npy"
    if not numbers:
        check_path(output)
    start = time.monotonic()
    sampler = load(options["bundle"])
    if not numbers:
        check_path(output, is_video=sampler.output_kind == "videos")
    seed = secrets.randbits(32) if options["seed"] is None else options["seed"]
    with click.progressbar(length=1, label="draw", file=sys.stderr) as bar:

        def show(progress: Any) -> None:
            bar.length = progress.steps
            bar.update(1)

        drawn = sampler(
            options["prompt"],
            output="np" if numbers else "pil",
            negative_prompt=options["negative"],
            seed=seed,
            latents=None if options["latents"] is None else _array(options["latents"]),
            num_images=options["images"],
            size=options["size"],
            program=options["program"],
            callback=show,
            **_numbers(sampler.scalars, options["guidance"], options["settings"]),
            **_inputs([("image", options["image"]), ("mask_image", options["mask"]), *options["inputs"]]),
        )
    _save(drawn, output)
    seconds = time.monotonic() - start
    _say(f"{output}: seed {seed}, {seconds:.1f} s, {' and '.join(sampler.engines)}")
    if said := advice(sampler.target, sampler.bytes):
        _say(said)
    measured = {"seconds": seconds, "peak_bytes": peak_bytes()}
    return {"image": str(output), "seed": seed, "engines": list(sampler.engines), **measured}


def _say_engines(engines: Mapping[str, Any]) -> None:
    for name, engine in engines.items():
        without = ", without weights" if engine.get("stripped") else ""
        _say(f"{name}: {engine['builder']}, {', '.join(engine['archs'])}{without}")


def _save(drawn: Any, output: Path) -> None:
    """Save the numbers of an array, or one picture or film, or several side by side."""
    from diffc.runtime.images import grid, save, save_array

    if not isinstance(drawn, list):
        save_array(drawn, output)
    elif not isinstance(drawn[0], list):
        save(drawn[0] if len(drawn) == 1 else grid(drawn), output)
    else:
        save(drawn[0] if len(drawn) == 1 else [grid(frames) for frames in zip(*drawn, strict=True)], output)


def _numbers(scalars: Mapping[str, float | None], guidance: float | None, settings: Any) -> dict[str, Any]:
    """Check that what is set are numbers of a request; a picture or a text has an option of its own."""
    if unknown := [name for name, _ in settings if name not in scalars]:
        fix = f"set one of {', '.join(scalars)}" if scalars else "leave --set out"
        raise DiffcError(f"{unknown[0]} is no number of the request", where="--set", fix=fix)
    return {"guidance_scale": guidance} | dict(settings)


def _inputs(files: Iterable[tuple[str, Path | str | None]]) -> dict[str, Any]:
    from diffc.runtime.images import open_image

    paths = {name: Path(file) for name, file in files if file is not None}
    return {name: _array(path) if path.suffix.lower() == ".npy" else open_image(path) for name, path in paths.items()}


def _array(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DiffcError(f"{path} cannot be read: {error}", fix="give a .npy file of numbers") from error


@_command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--program", help="Show this program only.")
def inspect(bundle: Path, program: str | None) -> dict[str, Any]:
    """Show what BUNDLE holds: programs, sizes, stages and where it came from.

    \b
    diffc inspect shapes.diffc --program text_to_image_50
    """
    from diffc.runtime import load

    sampler = load(bundle)
    if program is not None and program not in sampler.programs:
        raise DiffcError(f"{bundle} has no program {program}", fix=f"use one of {', '.join(sampler.programs)}")
    programs = {name: text for name, text in sampler.programs.items() if program in (None, name)}
    manifest = sampler.manifest
    _say("\n".join(programs.values()))
    for path, file in manifest["files"].items():
        _say(f"{file['bytes']:>14,} B  {path}")
    _say(f"{sampler.bytes:>14,} B  in total, for {sampler.target}")
    _say_engines(engines := manifest.get("engines", {}))
    for what, counts in (("parameters", manifest["stages"]), ("multiply-adds", manifest["multiply_adds"])):
        total = sum(counts.values()) or 1
        _say(f"denoiser's {what}: " + ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in counts.items()))
    _say("provenance: " + json.dumps(manifest["provenance"]))
    if (quantized := sampler.quantization) is not None:
        _say("layers, the worst first, in dB of what quantizing each alone changes:")
        for layer in quantized["layers"]:
            _say(f"{layer['sqnr']:7.1f}  {layer['name']}  {layer['weight']}  {layer['activation']}")
        _say(f"worst picture of the build: {quantized['psnr']:.1f} dB; report.html shows the rest")
    shown = ("target", "files", "graphs", "tokenizers", "stages", "multiply_adds", "provenance")
    rest = {key: manifest[key] for key in shown} | {"engines": engines, "quantization": quantized}
    return {"programs": programs, "bytes": sampler.bytes, **rest}


@_command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "source", required=True, type=click.Path(path_type=Path), help="What it was built from.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file, one prompt a line.")
@click.option("--ip-adapter", type=click.Path(path_type=Path), help="The IP-Adapter that it was built with.")
@click.option("--min-psnr", type=float, help="Fail below this many dB.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the first prompt's picture.")
@click.option("--guidance", type=float, help="Guidance scale.  [default: the bundle's]")
@click.option("--program", help="Which program of the bundle.  [default: the first that serves the request]")
def verify(bundle: Path, source: Path, prompts: Path | None, min_psnr: float | None, **options: Any) -> dict[str, Any]:
    """Compare BUNDLE's pictures, and each component, with the diffusers pipeline that it was built from.

    \b
    diffc verify shapes.diffc --against shapes.safetensors --min-psnr 60
    """
    from diffc.compiler.commands.compare import compare, read_prompts

    with _timed("done") as progress:
        found = compare(bundle, source, prompts=read_prompts(prompts), progress=progress, **options)
    for name, component in found["components"].items():
        _say(f"{name:>24}: SQNR {component['sqnr']:6.1f} dB, max |difference| {component['max_abs']:.2e}")
    for image in found["images"]:
        similarity = "" if image["ssim"] is None else f" SSIM {image['ssim']:.4f},"
        _say(f"{image['psnr']:6.1f} dB,{similarity} max {image['max_abs']:.2e}: {image['prompt']}")
    _say(f"PSNR {found['psnr']:.1f} dB (the worst image)")
    if min_psnr is not None and found["psnr"] < min_psnr:
        _say(f"{bundle} is below {min_psnr} dB")
        found["failed"] = True
    return dict(found)


@_command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against", type=Names(), default=(), help="Baselines. torch: the pipeline that it was built from, eager."
)
@click.option("--source", type=click.Path(path_type=Path), help="What the bundle was built from, for the baselines.")
@click.option("--prompt", default="a red circle left of a blue square", show_default=True, help="What to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of every picture.")
@click.option("--guidance", type=float, help="Guidance scale.  [default: the bundle's]")
@click.option("--program", help="Which program of the bundle.  [default: the first that serves the request]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each process.  [default: all cores]")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Measurements of each.")
def bench(bundle: Path, **options: Any) -> dict[str, Any]:
    """Measure the time and memory of BUNDLE and of baselines, alternately, each time in a fresh process.

    \b
    diffc bench shapes.diffc
    diffc bench shapes.diffc --against torch --source shapes.safetensors --repeat 5
    """
    from diffc.compiler.commands.bench import bench as measure
    from diffc.compiler.commands.bench import table

    with _timed("done") as progress:
        found = measure(bundle, progress=progress, **options)
    _say(table(found))
    return found


@_command
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--target", default="ort-fp32", show_default=True, help="BACKEND-PRECISION, such as ort-fp16.")
@click.option("--ip-adapter", type=click.Path(path_type=Path), help=IP_ADAPTER)
@click.option("--online", is_flag=True, help="Allow a single file's missing configuration to be fetched.")
def estimate(**options: Any) -> dict[str, Any]:
    """Say what a build of SOURCE and its bundle take, from the shapes of its weights.

    \b
    diffc estimate model.safetensors --target ort-fp16
    """
    from diffc.compiler.commands.estimate import estimate as look

    found = look(**options)
    for name, count in found["parameters"].items():
        _say(f"{name:>24}: {count:,} parameters")
    _say(f"bundle: about {found['bundle_bytes'] / 1e6:,.0f} MB")
    _say(f"build:  {found['disk_bytes'] / 1e6:,.0f} MB of disk, of {found['free_bytes'] / 1e6:,.0f} MB free here")
    _say(f"        {found['memory_bytes'] / 1e6:,.0f} MB of memory at least")
    _say(f"        {found['seconds']:,.0f} s on two cores, very roughly, for one number of steps and nothing cached")
    return found


@_command
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
def doctor(bundle: Path | None) -> dict[str, Any]:
    """Say what this machine can build and run, and what is missing; with BUNDLE, whether it can run that.

    \b
    diffc doctor
    diffc doctor shapes.diffc
    """
    from diffc.compiler.commands.doctor import examine

    found = examine(bundle)
    for name, state in found["checks"].items():
        _say(f"{'ok' if state['ok'] else 'missing':>8}  {name}: {state['detail']}")
    return dict(found)


@_command
@click.option("--clear", is_flag=True, help="Remove what is kept.")
def cache(*, clear: bool) -> dict[str, Any]:
    """Show what builds keep for later builds, or remove it.

    A build of the same architecture with other steps, another sampler or other weights takes it over, and so does the
    next try of an interrupted one. DIFFC_CACHE names the folder, DIFFC_CACHE_BYTES bounds its size.

    \b
    diffc cache
    diffc cache --clear
    """
    from diffc.runtime.disk_cache import Cache

    kept = Cache.default()
    removed = kept.clear() if clear else 0
    entries = kept.entries()
    size = sum(state.st_size for _, state in entries)
    if clear:
        _say(f"removed {removed / 1e6:.1f} MB")
    _say(f"{kept.folder}: {len(entries)} entries, {size / 1e6:.1f} MB of at most {kept.limit / 1e6:.1f} MB")
    return {"folder": str(kept.folder), "entries": len(entries), "bytes": size, "limit": kept.limit, "removed": removed}
