"""Define the commands. Results go to stdout, lines for people to stderr."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from diffc.compiler.checkpoint.source_path import check_source
from diffc.compiler.checkpoint.tasks import TASKS
from diffc.compiler.commands.command import (
    bundle_argument,
    command,
    component_option,
    guidance_option,
    ip_adapter_option,
    named_option,
    online_option,
    path_argument,
    path_option,
    program_option,
    seed_option,
    setting_option,
    show,
    source_argument,
    target_option,
    timed,
)
from diffc.compiler.commands.parameter_types import Counts, Interval, Named, Names, Size, Sizes
from diffc.compiler.commands.request_files import (
    check_names,
    check_output,
    is_array,
    read_array,
    read_inputs,
    save_outputs,
    set_once,
)
from diffc.runtime.errors import DiffcError
from diffc.runtime.memory import peak_bytes

INPUT = "An array or image of the request, as image_embeds=1280 or last_image=image; image=image,image is a list."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="diffc")
def main() -> None:
    """Compile diffusion models into bundles that run without PyTorch.

    \b
    diffc build model.safetensors --target ort-fp32
    diffc run model.diffc "a red circle left of a blue square" -o out.png
    """


@command(main)
@source_argument
@target_option
@path_option("-o", "--output", help="The bundle.  [default: SOURCE's name.diffc, here, or beside SOURCE]")
@click.option("--steps", type=Counts(), help="Steps of the sampler; one program for each.  [default: the pipeline's]")
@click.option("--sampler", help="Another sampler: ddim, dpmpp-2m, euler, … or a diffusers scheduler class.")
@click.option("--guidance", type=float, help="Default guidance scale; --guidance of run changes it.")
@click.option("--guidance-interval", type=Interval(), help="Fractions of the steps between which there is guidance.")
@click.option("--size", type=Sizes(), help="Width and height in pixels; programs for each.  [default: the model's]")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once.")
@click.option(
    "--task",
    type=click.Choice(list(TASKS)),
    default="text-to-image",
    show_default=True,
    help="What the bundle makes, and from what.",
)
@click.option("--strength", type=click.FloatRange(0, 1), help="How much of an input image is sampled anew.")
@setting_option("options", "An argument of the pipeline's call, as num_frames=16: JSON, or a text.")
@named_option("--input", "inputs", type=Named("image_embeds=1280"), metavar="NAME=KIND", help=INPUT)
@ip_adapter_option
@component_option
@click.option("--cache", help="Which features steps reuse, as deepcache:interval=3,branch=0.  [default: none]")
@click.option("--quant", help="Techniques of a low-bit target, as smoothquant:alpha=0.5+gptq.")
@path_option("--recipe", help="A .toml file with the number formats of layers.")
@path_option("--calibration", help="A text file of prompts to calibrate with, one a line.")
@path_option("--dump", help="A new folder for the text of all programs after each phase.")
@seed_option("The seed of the calibration.")
@click.option("--min-psnr", type=float, help="Fail where a calibration image has fewer dB against float32.")
@online_option
def build(output: Path | None, steps: tuple[int, ...] | None, **settings: Any) -> dict[str, Any]:
    """Compile SOURCE, a .safetensors file or a diffusers folder, into a bundle.

    \b
    diffc build model.safetensors
    diffc build ./stable-diffusion-3 --target ort-fp16 --steps 10,20 --sampler flow-euler -o sd3.diffc
    diffc build model.safetensors --size 512x512,768x512
    diffc build model.safetensors --steps 50 --cache deepcache:interval=5,branch=0
    diffc build model.safetensors --target ort-w4a8 --quant gptq --calibration prompts.txt --min-psnr 25
    """
    check_source(settings["source"])
    from diffc.compiler.driver.build import build as compile_

    start = time.monotonic()
    with timed() as progress:
        source = settings.pop("source")
        path = compile_(source, output=output, steps=steps or (), progress=progress, **settings)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    show(f"{path}: {size / 1e6:.1f} MB")
    return {"bundle": str(path), "bytes": size, "seconds": time.monotonic() - start, "peak_bytes": peak_bytes()}


@command(main)
@bundle_argument
@path_option("-o", "--output", help="Leave BUNDLE as it is, and write another.")
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
    with timed() as progress:
        path = build_engines(bundle, progress=progress, **options)
    engines = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["engines"]
    _show_engines(engines)
    return {"bundle": str(path), "engines": engines, "seconds": time.monotonic() - start, "peak_bytes": peak_bytes()}


@command(main)
@bundle_argument
@click.argument("prompt")
@path_option("-o", "--output", required=True, help="The file of the image, video or audio; .npy for the array.")
@click.option("--negative", help="What the image should not show.")
@click.option("--seed", type=int, help="The image's seed, from -2^63 to 2^64 - 1.  [default: random]")
@guidance_option
@path_option("--latents", help="A .npy file that replaces the first noise.")
@path_option("--image", help="The image to start from, or that conditions the sampling.")
@path_option("--mask", help="White where the image is sampled anew.")
@named_option(
    "--input", "inputs", type=Named("image_embeds=x.npy"), metavar="NAME=FILE", help="Another image, or array (.npy)."
)
@setting_option("settings", "Another scalar of the request, as true_cfg_scale=4.")
@click.option("--size", type=Size(), help="Which of the bundle's sizes, in pixels.  [default: the first]")
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="How many, saved as a grid.")
@program_option
def run(output: Path, **options: Any) -> dict[str, Any]:
    """Sample an image, video or audio of PROMPT with BUNDLE.

    \b
    diffc run shapes.diffc "a red circle left of a blue square" -o out.png
    diffc run shapes.diffc "a green star" --seed 7 --guidance 5 --images 4 -o grid.png
    diffc run shapes.diffc "a blue circle above a red star" --size 96x64 -o wide.png   # of build --size 64x64,96x64
    """
    from diffc.runtime import load
    from diffc.runtime.engines.openvino import advice

    check_output(output)
    scalars = set_once("--set", options["settings"], {"guidance_scale": ("--guidance", options["guidance"])})
    shorthands = {"image": ("--image", options["image"]), "mask_image": ("--mask", options["mask"])}
    files = set_once("--input", options["inputs"], shorthands)
    start = time.monotonic()
    sampler = load(options["bundle"])
    check_output(output, sampler.output_kind)
    check_names("--set", "scalar", options["settings"], sampler.scalars)
    check_names("--input", "image or array", options["inputs"], sampler.arrays)
    seed = secrets.randbits(32) if options["seed"] is None else options["seed"]
    with click.progressbar(length=1, label="sample", file=sys.stderr) as bar:

        def advance(progress: Any) -> None:
            bar.length = progress.steps
            bar.update(1)

        outputs = sampler(
            options["prompt"],
            output="np" if is_array(output) else "pil",
            negative_prompt=options["negative"],
            seed=seed,
            latents=None if options["latents"] is None else read_array(options["latents"]),
            num_images=options["images"],
            size=options["size"],
            program=options["program"],
            callback=advance,
            **scalars,
            **read_inputs(files),
        )
    save_outputs(outputs, output)
    seconds = time.monotonic() - start
    show(f"{output}: seed {seed}, {seconds:.1f} s, {' and '.join(sampler.engines)}")
    if line := advice(sampler.target, sampler.bytes):
        show(line)
    measured = {"seconds": seconds, "peak_bytes": peak_bytes()}
    return {"image": str(output), "seed": seed, "engines": list(sampler.engines), **measured}


def _show_engines(engines: Mapping[str, Any]) -> None:
    for name, engine in engines.items():
        without = ", without weights" if engine.get("stripped") else ""
        show(f"{name}: {engine['builder']}, {', '.join(engine['archs'])}{without}")


@command(main)
@bundle_argument
@click.option("--program", help="Show this program only.")
def inspect(bundle: Path, program: str | None) -> dict[str, Any]:
    """Show the sizes, stages and provenance of BUNDLE, and then the text of its programs.

    \b
    diffc inspect shapes.diffc
    diffc inspect shapes.diffc --program text_to_image_50
    """
    from diffc.runtime import load

    sampler = load(bundle)
    if program is not None and program not in sampler.programs:
        raise DiffcError(f"{bundle} has no program {program}", fix=f"use one of {', '.join(sampler.programs)}")
    programs = {name: text for name, text in sampler.programs.items() if program in (None, name)}
    manifest = sampler.manifest
    show(f"{bundle}: {sampler.bytes:,} B for {sampler.target}, programs {', '.join(programs)}")
    _show_engines(engines := manifest.get("engines", {}))
    for what, counts in (("parameters", manifest["stages"]), ("multiply-adds", manifest["multiply_adds"])):
        total = sum(counts.values()) or 1
        show(f"denoiser's {what}: " + ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in counts.items()))
    show("provenance: " + json.dumps(manifest["provenance"]))
    if (quantized := sampler.quantization) is not None:
        show("layers, the worst first, in dB of the error of quantizing each alone:")
        for layer in quantized["layers"]:
            show(f"{layer['sqnr']:7.1f}  {layer['name']}  {layer['weight']}  {layer['activation']}")
        show(f"worst image of the build: {quantized['psnr']:.1f} dB; report.html shows the rest")
    for path, file in manifest["files"].items():
        show(f"{file['bytes']:>14,} B  {path}")
    show("\n".join(programs.values()))
    shown = ("target", "files", "graphs", "tokenizers", "stages", "multiply_adds", "provenance")
    rest = {key: manifest[key] for key in shown} | {"engines": engines, "quantization": quantized}
    return {"programs": programs, "bytes": sampler.bytes, **rest}


@command(main)
@bundle_argument
@path_option("--against", "source", required=True, help="The checkpoint that it was built from; another is named.")
@path_option("--prompts", help="A text file, one prompt a line.")
@path_option("--ip-adapter", help="The IP-Adapter that it was built with.")
@component_option
@click.option("--min-psnr", type=float, help="Fail below this many dB.")
@seed_option("The seed of the first prompt's image.")
@guidance_option
@program_option
def verify(bundle: Path, source: Path, prompts: Path | None, min_psnr: float | None, **options: Any) -> dict[str, Any]:
    """Compare BUNDLE's images, and each component, with the diffusers pipeline that it was built from.

    \b
    diffc verify shapes.diffc --against shapes.safetensors --min-psnr 60
    """
    check_source(source)
    from diffc.compiler.calibration.prompts import read_prompts
    from diffc.compiler.commands.compare import PROMPT_WIDTH, VERIFICATION_PROMPTS, compare

    with timed() as progress:
        texts = VERIFICATION_PROMPTS if prompts is None else read_prompts(prompts)
        result = compare(bundle, source, prompts=texts, progress=progress, **options)
    for name, component in result["components"].items():
        show(f"{name:>24}: SQNR {component['sqnr']:6.1f} dB, max |difference| {component['max_abs']:.2e}")
    for name, reason in result["not_compared"].items():
        show(f"{name:>24}: not compared: {reason}")
    for image in result["images"]:
        similarity = "" if image["ssim"] is None else f" SSIM {image['ssim']:.4f},"
        prompt = shorten(image["prompt"], PROMPT_WIDTH, placeholder="…")
        show(f"{image['psnr']:6.1f} dB,{similarity} max {image['max_abs']:.2e}: {prompt}")
    show(f"PSNR {result['psnr']:.1f} dB (the worst image)")
    if min_psnr is not None and result["psnr"] < min_psnr:
        show(f"{bundle} is below {min_psnr} dB")
        result["failed"] = True
    return dict(result)


@command(main)
@bundle_argument
@click.option(
    "--against", type=Names(), default=(), help="Baselines. torch: the pipeline that it was built from, eager."
)
@path_option("--source", help="The checkpoint that the bundle was built from, for the baselines.")
@component_option
@click.option(
    "--prompt", default="a red circle left of a blue square", show_default=True, help="The prompt of every image."
)
@seed_option("The seed of every image.")
@guidance_option
@program_option
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each process.  [default: all cores]")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Measurements of each.")
def bench(bundle: Path, **options: Any) -> dict[str, Any]:
    """Measure the time and memory of BUNDLE and of baselines, alternately, each time in a fresh process.

    \b
    diffc bench shapes.diffc
    diffc bench shapes.diffc --against torch --source shapes.safetensors --repeat 5
    """
    if options["source"] is not None:
        check_source(options["source"])
    from diffc.compiler.commands.bench import bench as measure
    from diffc.compiler.commands.bench import table

    with timed() as progress:
        result = measure(bundle, progress=progress, **options)
    show(table(result))
    return result


@command(main)
@source_argument
@target_option
@ip_adapter_option
@component_option
@online_option
def estimate(**options: Any) -> dict[str, Any]:
    """Estimate the disk, memory and time that a build of SOURCE takes, and its bundle, from the shapes of weights.

    \b
    diffc estimate model.safetensors --target ort-fp16
    """
    check_source(options["source"])
    from diffc.compiler.commands.estimate import estimate as look

    result = look(**options)
    for name, count in result["parameters"].items():
        show(f"{name:>24}: {count:,} parameters")
    show(f"bundle: about {result['bundle_bytes'] / 1e6:,.0f} MB")
    show(f"build:  {result['disk_bytes'] / 1e6:,.0f} MB of disk, of {result['free_bytes'] / 1e6:,.0f} MB free here")
    show(f"        {result['memory_bytes'] / 1e6:,.0f} MB of memory at least")
    show(f"        {result['seconds']:,.0f} s on two cores, very roughly, for one number of steps and nothing cached")
    return result


@command(main)
@path_argument("bundle", required=False)
def doctor(bundle: Path | None) -> dict[str, Any]:
    """Show the targets that this machine can build and run, and missing packages; with BUNDLE, whether it can run that.

    \b
    diffc doctor
    diffc doctor shapes.diffc
    """
    from diffc.compiler.commands.doctor import examine, label

    result = examine(bundle)
    for name, state in result["checks"].items():
        show(f"{label(name, state['ok']):>12}  {name}: {state['detail']}")
    return dict(result)


@command(main, "build-cache", alias="cache")
@click.option("--clear", is_flag=True, help="Remove all entries.")
def build_cache(*, clear: bool) -> dict[str, Any]:
    """Show the files that builds store for later builds, or remove them.

    A build of the same architecture with other steps, another sampler or other weights reuses it, and so does the
    next try of an interrupted one. DIFFC_CACHE names the folder, DIFFC_CACHE_BYTES bounds its size.

    \b
    diffc build-cache
    diffc build-cache --clear
    """
    from diffc.runtime.disk_cache import Cache

    stored = Cache.default()
    removed = stored.clear() if clear else 0
    entries = stored.entries()
    size = sum(state.st_size for _, state in entries)
    if clear:
        show(f"removed {removed / 1e6:.1f} MB")
    show(f"{stored.folder}: {len(entries)} entries, {size / 1e6:.1f} MB of at most {stored.limit / 1e6:.1f} MB")
    return {
        "folder": str(stored.folder),
        "entries": len(entries),
        "bytes": size,
        "limit": stored.limit,
        "removed": removed,
    }
