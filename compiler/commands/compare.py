"""Compare a bundle with the diffusers pipeline that it was built from: images, and each component on equal inputs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from diffc.compiler.bundle.provenance import arguments_of, check_component_files, differing_sources, facts_of
from diffc.compiler.checkpoint.load import load, quiet
from diffc.compiler.checkpoint.load_errors import LIBRARY_ERRORS
from diffc.compiler.commands.compare_components import ComponentCall, compare_components, not_compared, recorded
from diffc.compiler.commands.limit_guidance import limit_guidance
from diffc.compiler.errors import BuildError, Progress, first_line
from diffc.compiler.ir.parse import parse
from diffc.compiler.metrics import Array, psnr, ssim
from diffc.compiler.tracing.pipeline import GUIDANCE, NEGATIVE, TEXTS, text_inputs
from diffc.compiler.tracing.pipeline_inputs import (
    as_arguments,
    call_parameters,
    parameter_at,
    pil_images,
    requested_arrays,
    with_conditions,
)
from diffc.compiler.tracing.request_inputs import Image, RequestInput, Tensor
from diffc.runtime import Sampler
from diffc.runtime.errors import DiffcWarning
from diffc.runtime.program.facts import Facts

AS_BUILT = "name the checkpoint that the bundle was built from, or one of the same pipeline and shapes"

PROMPT_WIDTH = 80
"""Characters of a prompt that are shown."""

TOO_LONG = ", ".join(f"a small green triangle above large yellow star number {at}" for at in range(60))

CHANGED = "  A RED Circle,\u00e0 la \u201cCaf\u00e9\u201d &amp; cafe\u0301:\u3000no\tGREEN  star! \U0001f534 "

VERIFICATION_PROMPTS: Mapping[str, str | None] = {
    "a red circle left of a blue square": None,
    CHANGED: " BLURRY &lt;b&gt;  Lines\n",
    TOO_LONG: None,
    "": None,
}
"""The default prompts, and the negative prompt of one: plain, with all that a pipeline may change, too long, empty."""


def compare(
    bundle: Path | str,
    source: Path | str,
    *,
    prompts: Collection[str] = VERIFICATION_PROMPTS,
    seed: int = 0,
    guidance: float | None = None,
    program: str | None = None,
    ip_adapter: Path | str | None = None,
    component_files: Mapping[str, Path | str] = MappingProxyType({}),
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Sample each prompt with both from the same seed, and compare the images and the components.

    Returns ``psnr`` and ``ssim`` of the worst image, ``max_abs`` over all, ``images`` (``pictures`` is the same
    under its old name), ``components``, and ``not_compared``, which maps other components to the reason. The ``ssim``
    of a video is that of its worst frame. Other outputs, such as audio, have no ``ssim``, and the peak of their
    ``psnr`` is that of the reference. A `DiffcWarning` names a source that is not the one of the build. Raises
    `BuildError` where its outputs are of other shapes, or its pipeline cannot sample what the bundle does.
    """
    sampler = Sampler(bundle)
    recipe = sampler.manifest["provenance"]["recipe"]
    name, text = _program(sampler, program)
    facts = facts_of(sampler.facts, name)
    progress("load")
    pipeline = _load_as_recorded(bundle, source, recipe, ip_adapter, component_files)
    files = dict(component_files) | ({} if ip_adapter is None else {"ip_adapter": ip_adapter})
    paths = {name: Path(path) for name, path in files.items()}
    for difference in differing_sources(sampler.manifest["provenance"], Path(source), paths):
        warnings.warn(difference, DiffcWarning, stacklevel=2)
    reads_prompt = any(item.name == TEXTS[0] for item in parse(text).inputs)
    prompts = prompts if reads_prompt else ("",)
    reads_negative = any(item.name == NEGATIVE for item in parse(text).inputs)
    scale = guidance if guidance is not None else _default(text)
    inputs = requested_arrays(pipeline, recipe["inputs"], batch=recipe["batch"], size=facts.size)
    arrays = _test_arrays(inputs, seed)
    steps = sum(op.operator == "step" for op in parse(text).ops)
    calls = list[ComponentCall]()
    images = list[dict[str, Any]]()
    for at, prompt in enumerate(prompts):
        progress(f"sample {at + 1}/{len(prompts)}: {shorten(prompt, PROMPT_WIDTH, placeholder='…')}")
        negative = _negative(prompt, is_required=program is not None) if reads_negative else {}
        texts = {TEXTS[0]: prompt, **negative}
        hooks = recorded(pipeline, calls), limit_guidance(pipeline, recipe, steps)
        with _refusing(source), hooks[0], hooks[1] as limited:
            reference = _reference(pipeline, texts, limited, facts, scale, seed + at, arrays)
        options: dict[str, Any] = {} if scale is None else {GUIDANCE: scale}
        options |= negative | _for_the_bundle(sampler, inputs, arrays)
        positive = [prompt] * recipe["batch"] if reads_prompt else ""
        with warnings.catch_warnings():
            if prompt in VERIFICATION_PROMPTS:  # one is too long, and one has a negative prompt that may not be read
                warnings.simplefilter("ignore", DiffcWarning)
            output = sampler(positive, seed=seed + at, program=program, output="np", **options)
        _check_finite(prompt, {"the bundle": output, "the pipeline": reference})
        _check_shapes(output, reference, source)
        images += [{"prompt": prompt, **_compared(a, b)} for a, b in zip(output, reference, strict=True)]
    progress("compare components")
    components = compare_components(Path(bundle), name, calls)
    graphs = {graph.name: sampler.manifest["graphs"][graph.name] for graph in parse(text).graphs}
    rest = not_compared({graph["component"] for graph in graphs.values()}, components, calls, pipeline.components)
    return {**_worst(images), "images": images, "pictures": images, "components": components, "not_compared": rest}


@contextlib.contextmanager
def _refusing(source: Path | str) -> Iterator[None]:
    """Raise `BuildError` for an error of the source's pipeline: it does not sample as the bundle's does."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_ERRORS as error:
        what = f"the pipeline of {source} cannot sample what the bundle does: {first_line(error)}"
        raise BuildError(what, where="--against", fix=AS_BUILT) from error


def _check_shapes(output: Array, reference: Array, source: Path | str) -> None:
    if output.shape != reference.shape:
        what = f"the bundle samples {list(output.shape)}, the pipeline of {source} {list(reference.shape)}"
        raise BuildError(what, where="--against", fix=AS_BUILT)


def _load_as_recorded(
    bundle: Path | str,
    source: Path | str,
    recipe: Mapping[str, Any],
    ip_adapter: Path | str | None,
    component_files: Mapping[str, Path | str],
) -> Any:
    """Load the pipeline that the bundle was built from. Raises `BuildError` for a file of its build that is missing."""
    if recipe["ip_adapter"] and ip_adapter is None:
        what = f"the bundle was built with the IP-Adapter {recipe['ip_adapter']}"
        raise BuildError(what, where=str(bundle), fix="name its file with --ip-adapter")
    check_component_files(recipe, component_files, bundle)
    pipeline: Any = load(
        source,
        sampler=recipe["sampler"],
        task=recipe["task"],
        ip_adapter=ip_adapter,
        component_files=component_files,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _negative(prompt: str, *, is_required: bool) -> dict[str, str]:
    """Return the negative prompt of a prompt, by the name of the input; none where an absent one is what to verify."""
    negative = VERIFICATION_PROMPTS.get(prompt)
    return {NEGATIVE: negative or ""} if negative is not None or is_required else {}


def _check_finite(prompt: str, outputs: Mapping[str, Array]) -> None:
    for source, values in outputs.items():
        if not np.isfinite(values).all():
            fix = "compare with another prompt or scale"
            raise BuildError(f"{source} returned NaN or infinity", where=prompt, fix=fix)


def _worst(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "psnr": min(image["psnr"] for image in images),
        "ssim": min((image["ssim"] for image in images if image["ssim"] is not None), default=None),
        "max_abs": max(image["max_abs"] for image in images),
    }


def _compared(output: Array, reference: Array) -> dict[str, Any]:
    """Compare one image [H, W, C], one video [F, H, W, C], or another array of any shape."""
    is_visible = output.ndim in (3, 4) and output.shape[-1] in (1, 3)
    frames = (output[None], reference[None]) if output.ndim == 3 else (output, reference)
    similarity = min(ssim(a, b) for a, b in zip(*frames, strict=True)) if is_visible else None
    peak = 1.0 if is_visible else float(np.abs(reference).max())
    max_abs = float(np.abs(output - reference).max())
    return {"psnr": psnr(output, reference, peak), "ssim": similarity, "max_abs": max_abs}


def _program(sampler: Sampler, name: str | None) -> tuple[str, str]:
    if name is not None and name not in sampler.programs:
        raise BuildError(f"the bundle has no program {name}", fix=f"use one of {', '.join(sampler.programs)}")
    name = name or next(iter(sampler.programs))
    return name, sampler.programs[name]


def _test_arrays(inputs: Mapping[str, RequestInput], seed: int) -> dict[str, Array]:
    """Generate the inputs: images of smooth colours in 8 bits, masks of the right half, normal values for tensors."""
    arrays, random = {}, np.random.default_rng(seed)
    for name, item in inputs.items():
        if isinstance(item, Image):
            batch, channels, height, width = item.shape
            x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
            colours = np.stack([x, y, 1 - x]) if channels == 3 else (x > 0.5)[None]
            rounded = np.rint(colours * 255).astype(np.float32) / np.float32(255)
            arrays[name] = np.broadcast_to(rounded, item.shape).copy()
        elif isinstance(item, Tensor):
            arrays[name] = random.standard_normal(item.shape, np.float32)
    return arrays


def _for_the_bundle(
    sampler: Sampler, inputs: Mapping[str, RequestInput], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the arrays that programs read, with the channels of images at the end."""
    reads = {item.name for text in sampler.programs.values() for item in parse(text).inputs}
    images = {name for name, item in inputs.items() if isinstance(item, Image)}
    return {k: np.moveaxis(array, 1, -1) if k in images else array for k, array in arrays.items() if k in reads}


def _default(text: str) -> float | None:
    return next((item.default for item in parse(text).inputs if item.name == GUIDANCE), None)


def _reference(
    pipeline: Any, texts: Mapping[str, Any], recipe: Any, facts: Facts, guidance: float | None, seed: int, arrays: Any
) -> Array:
    """Sample with the pipeline as a user does, who hands it images; tensors, with a warning, where it refuses these."""
    options: dict[str, Any] = {} if guidance is None else {GUIDANCE: guidance}
    takes = call_parameters(pipeline)
    options |= {key: value for key, value in arguments_of(facts, recipe).items() if parameter_at(takes, key)}
    read = text_inputs(takes, recipe["inputs"])
    several = recipe["batch"] > 1
    options |= {name: [text] * recipe["batch"] if several else text for name, text in texts.items() if name in read}
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}

    def sample(as_image: Callable[[Any], Any] | None) -> Array:
        generator = torch.Generator("cpu").manual_seed(seed)
        with quiet():
            arguments = as_arguments(pipeline, recipe["inputs"], tensors, as_image)
            arguments = with_conditions(pipeline, {**options, **arguments})
            return np.asarray(pipeline(**arguments, generator=generator, output_type="np")[0])

    if not arrays:
        return sample(None)
    try:
        return sample(pil_images)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"the pipeline refuses images ({first_line(error)}): compared with what it samples from tensors"
        warnings.warn(what, DiffcWarning, stacklevel=2)
        return sample(None)
