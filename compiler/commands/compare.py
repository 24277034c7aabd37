"""Compare a bundle with the diffusers pipeline that it was built from: pictures, and each component on equal inputs."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffc.compiler.bundle.provenance import arguments_of, size_of
from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import BuildError, Progress
from diffc.compiler.ir.parse import parse
from diffc.compiler.metrics import Array, psnr, sqnr, ssim
from diffc.compiler.tracing.component_calls import ENTRY_POINTS, bind, returned_tensors, tensor_ports, with_tensors
from diffc.compiler.tracing.pipeline import CALLBACK, GUIDANCE, NEGATIVE, TEXTS
from diffc.compiler.tracing.pipeline_inputs import DENOISERS, as_arguments, asked_arrays
from diffc.compiler.tracing.trace import Asked, Picture, Tensor
from diffc.runtime import Sampler
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.interpreter import Interpreter
from diffc.runtime.program.program import Op, Program, Ref, Type

PROMPTS = ("a red circle left of a blue square", "a small green triangle", "")
"""What to draw when no prompts are given; the last is the unconditional picture."""


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Read a file of prompts, one a line; without a file, give the built-in ones."""
    if path is None:
        return PROMPTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} cannot be read: {error}", fix="give a UTF-8 text file, one prompt a line") from error
    if not any(lines):
        raise BuildError(f"{path} holds no prompts", fix="write one prompt a line")
    return tuple(lines)


@dataclass(frozen=True)
class Call:
    """Hold what a component of the pipeline was given, by the names of its ports, and what it gave."""

    component: str
    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]

    @property
    def types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Map each port to its element type and shape."""
        return {port: (str(array.dtype), array.shape) for port, array in self.feeds.items()}

    def takes(self, ports: Mapping[str, Type]) -> bool:
        """Say whether there is a tensor of the right type for each port."""
        return all(self.types.get(port) == (type_.dtype, type_.shape) for port, type_ in ports.items())


def compare(
    bundle: Path | str,
    source: Path | str,
    *,
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    guidance: float | None = None,
    program: str | None = None,
    ip_adapter: Path | str | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Draw each prompt with both, from the same seed, and run each graph on what the pipeline gave its component.

    Gives ``psnr`` and ``ssim`` of the worst picture, ``max_abs`` over all, ``pictures`` and ``components``. A film's
    ``ssim`` is that of its worst frame; what is no picture has none, and its peak is the reference's.
    """
    sampler = Sampler(bundle)
    recipe = sampler.manifest["provenance"]["recipe"]
    name, text = _program(sampler, program)
    size = size_of(name, recipe)
    progress("load")
    if recipe["ip_adapter"] and ip_adapter is None:
        what = f"the bundle was built with the IP-Adapter {recipe['ip_adapter']}"
        raise BuildError(what, where=str(bundle), fix="give it with --ip-adapter")
    pipeline = load(source, sampler=recipe["sampler"], task=recipe["task"], ip_adapter=ip_adapter)
    pipeline.set_progress_bar_config(disable=True)
    reads_prompt = any(item.name == TEXTS[0] for item in parse(text).inputs)
    prompts = prompts if reads_prompt else ("",)
    reads_negative = program is not None and any(item.name == NEGATIVE for item in parse(text).inputs)
    negative = {NEGATIVE: ""} if reads_negative else {}
    scale = guidance if guidance is not None else _default(text)
    asked = asked_arrays(pipeline, recipe["inputs"], batch=recipe["batch"], size=size)
    arrays = _test_arrays(asked, seed)
    marks = sum(op.operator == "step" for op in parse(text).ops)
    calls = list[Call]()
    pictures = list[dict[str, Any]]()
    for at, prompt in enumerate(prompts):
        progress(f"draw {at + 1}/{len(prompts)}: {prompt}")
        texts = {TEXTS[0]: prompt, **negative}
        with _recorded(pipeline, calls), _guided_inside(pipeline, recipe, marks) as limited:
            wanted = _reference(pipeline, texts, limited, name, scale, seed + at, arrays)
        options: dict[str, Any] = {} if scale is None else {GUIDANCE: scale}
        options |= negative | _for_the_bundle(sampler, asked, arrays)
        got = sampler(
            [prompt] * recipe["batch"] if reads_prompt else "", seed=seed + at, program=program, output="np", **options
        )
        for drawn, by in ((got, "the bundle"), (wanted, "the pipeline")):
            if not np.isfinite(drawn).all():
                raise BuildError(f"{by} drew NaN or infinity", where=prompt, fix="compare with another prompt or scale")
        pictures += [{"prompt": prompt, **_judged(a, b)} for a, b in zip(got, wanted, strict=True)]
    progress("compare components")
    return {
        "psnr": min(picture["psnr"] for picture in pictures),
        "ssim": min((picture["ssim"] for picture in pictures if picture["ssim"] is not None), default=None),
        "max_abs": max(picture["max_abs"] for picture in pictures),
        "pictures": pictures,
        "components": _components(Path(bundle), name, calls),
    }


def _judged(drawn: Array, wanted: Array) -> dict[str, Any]:
    """Compare one picture [H, W, C], one film [F, H, W, C], or other numbers of any shape."""
    seen = drawn.ndim in (3, 4) and drawn.shape[-1] in (1, 3)
    frames = (drawn[None], wanted[None]) if drawn.ndim == 3 else (drawn, wanted)
    alike = min(ssim(a, b) for a, b in zip(*frames, strict=True)) if seen else None
    peak = 1.0 if seen else float(np.abs(wanted).max())
    return {"psnr": psnr(drawn, wanted, peak), "ssim": alike, "max_abs": float(np.abs(drawn - wanted).max())}


def _program(sampler: Sampler, name: str | None) -> tuple[str, str]:
    if name is not None and name not in sampler.programs:
        raise BuildError(f"the bundle has no program {name}", fix=f"use one of {', '.join(sampler.programs)}")
    name = name or next(iter(sampler.programs))
    return name, sampler.programs[name]


def _test_arrays(asked: Mapping[str, Asked], seed: int) -> dict[str, Array]:
    """Make what the pipeline asks for: smooth colours, a mask of the right half, normal numbers for other tensors."""
    made, random = {}, np.random.default_rng(seed)
    for name, item in asked.items():
        if isinstance(item, Picture):
            batch, channels, height, width = item.shape
            x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
            colours = np.stack([x, y, 1 - x]) if channels == 3 else (x > 0.5)[None]
            made[name] = np.broadcast_to(colours, item.shape).astype(np.float32)
        elif isinstance(item, Tensor):
            made[name] = random.standard_normal(item.shape, np.float32)
    return made


def _for_the_bundle(sampler: Sampler, asked: Mapping[str, Asked], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Leave out what no program reads, and let pictures end with their channels."""
    read = {item.name for text in sampler.programs.values() for item in parse(text).inputs}
    pictures = {name for name, item in asked.items() if isinstance(item, Picture)}
    return {k: np.moveaxis(array, 1, -1) if k in pictures else array for k, array in arrays.items() if k in read}


def _default(text: str) -> float | None:
    return next((item.default for item in parse(text).inputs if item.name == GUIDANCE), None)


def _reference(
    pipeline: Any, texts: Mapping[str, Any], recipe: Any, program: str, guidance: float | None, seed: int, given: Any
) -> Array:
    options: dict[str, Any] = {} if guidance is None else {GUIDANCE: guidance}
    options |= as_arguments(pipeline, recipe["inputs"], {key: torch.from_numpy(a) for key, a in given.items()})
    takes = inspect.signature(type(pipeline).__call__).parameters
    options |= {key: value for key, value in arguments_of(program, recipe).items() if key in takes}
    generator = torch.Generator("cpu").manual_seed(seed)
    texts = {name: [text] * recipe["batch"] for name, text in texts.items() if name in takes}
    drawn = pipeline(**texts, **options, generator=generator, output_type="np")
    return np.asarray(drawn[0])


@contextlib.contextmanager
def _guided_inside(pipeline: Any, recipe: Any, steps: int) -> Iterator[dict[str, Any]]:
    """Outside the guidance interval let the conditional branch stand for both, so that no scale changes anything.

    The branches are the halves of a batch, the conditional one last, or two calls, the conditional one first, as
    diffusers orders them. Gives the recipe with the pipeline's option that counts the steps.
    """
    if not recipe["guidance_interval"]:
        yield recipe
        return
    start, stop = (int(fraction * steps) for fraction in recipe["guidance_interval"])
    done, first = 0, list[torch.Tensor]()

    def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        first.clear()
        return values

    def conditional(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        returned = forward(*args, **kwargs)
        if start <= done < stop:
            return returned
        tensors = returned_tensors(returned)
        if len(tensors[0]) == 2 * recipe["batch"]:
            return with_tensors(returned, (torch.cat([tensor.chunk(2)[1]] * 2) for tensor in tensors))
        first.extend(tensors if not first else [])
        return with_tensors(returned, iter(first))

    denoisers = [getattr(pipeline, name) for name in DENOISERS if getattr(pipeline, name, None)]
    before = [denoiser.forward for denoiser in denoisers]
    for denoiser, forward in zip(denoisers, before, strict=True):
        denoiser.__dict__["forward"] = partial(conditional, forward)
    try:
        yield recipe | {"options": recipe["options"] | {CALLBACK: after}}
    finally:
        for denoiser, forward in zip(denoisers, before, strict=True):
            denoiser.__dict__["forward"] = forward


@contextlib.contextmanager
def _recorded(pipeline: Any, calls: list[Call]) -> Iterator[None]:
    """Note the inputs and outputs of each component, once for each set of types of its inputs."""
    with contextlib.ExitStack() as stack:
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                for method in ENTRY_POINTS:
                    if callable(getattr(type(module), method, None)):
                        module.__dict__[method] = _noting(name, module, method, calls)
                        stack.callback(module.__dict__.pop, method)
        yield


def _noting(name: str, module: torch.nn.Module, method: str, calls: list[Call]) -> Callable[..., Any]:
    original = getattr(type(module), method).__get__(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        returned = original(*args, **kwargs)
        ports, tensors = tensor_ports(bind(original, args, kwargs))
        outputs = returned_tensors(returned)
        feeds = {port.name: tensor.numpy(force=True) for port, tensor in zip(ports, tensors, strict=True)}
        made = Call(name, feeds, [output.numpy(force=True) for output in outputs])
        if made.types not in [call.types for call in calls if call.component == name]:
            calls.append(made)
        return returned

    return call


def _components(path: Path, name: str, calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
    """Run the first call of each graph on what its component was given, and compare with what the component gave.

    Of a graph that is cut into pieces, those that end it are run, after all that they need.
    """
    bundle = open_bundle(path)
    interpreter, program, found = Interpreter(bundle), bundle.programs[name], {}
    hidden = _between_pieces(program, bundle)
    for graph in program.graphs.values():
        ops = _with_prelude(program, next(op for op in program.ops if op.operator == graph.name), bundle)
        names = [value.name for value in ops[-1].results if value.name not in hidden]
        call = None if bundle.manifest.stage(graph.name) else _first(calls, program, ops, bundle)
        if call is None or not names:
            continue
        made = {value.name for op in ops for value in op.results}
        given = {ref.name: call.feeds[port] for op in ops for port, ref in _refs(op) if ref.name not in made}
        errors = []
        for result in interpreter.run(program, given, {}, ops=ops, outputs=names).values():
            alike = [output for output in call.outputs if output.shape == result.shape]
            ratios = [(sqnr(result, output), float(np.abs(result - output).max())) for output in alike]
            errors.append(max(ratios, default=(0.0, math.inf)))
        ratio, difference = min(errors)
        found[graph.name] = {"component": call.component, "sqnr": ratio, "max_abs": difference}
    return found


def _with_prelude(program: Program, op: Op, bundle: Bundle) -> list[Op]:
    """List a call after all that its component does for it before: splits of tables, parts split off, other pieces."""
    made_by = {value.name: maker for maker in program.ops for value in maker.results}
    tables, prelude = {table.name for table in program.tables}, dict[str, Op]()

    def add(op: Op) -> None:
        for maker in (made_by[ref.name] for _, ref in _refs(op) if ref.name in made_by):
            whole = next(maker.reads(), "") if maker.operator == "split" else ""
            source = made_by.get(whole, maker)
            if _component(source, bundle) == _component(op, bundle):
                add(source)
            if whole in tables or _component(source, bundle) == _component(op, bundle):
                prelude.update({each.source: each for each in (source, maker)})

    add(op)
    return [*prelude.values(), op]


def _component(op: Op, bundle: Bundle) -> str | None:
    found = bundle.manifest.raw["graphs"].get(op.operator)
    return None if found is None else str(found["component"])


def _between_pieces(program: Program, bundle: Bundle) -> set[str]:
    """List the values that one graph of a component gives another."""
    made_by = {value.name: maker for maker in program.ops for value in maker.results}
    read = [(op, ref.name) for op in program.ops for _, ref in _refs(op) if ref.name in made_by]
    pairs = [(op, made_by[name], name) for op, name in read]
    alike = [(op, maker, name) for op, maker, name in pairs if _component(op, bundle) == _component(maker, bundle)]
    return {name for op, maker, name in alike if _component(op, bundle) and op.operator != maker.operator}


def _refs(op: Op) -> list[tuple[str, Ref]]:
    return [(port, given) for port, given in op.attrs.items() if isinstance(given, Ref)]


def _first(calls: Sequence[Call], program: Program, ops: Sequence[Op], bundle: Bundle) -> Call | None:
    """Find the first call of the component with the types that its graphs take from outside."""
    component = _component(ops[-1], bundle)
    made = {value.name for op in ops for value in op.results}
    wanted = {p: program.types[ref.name] for op in ops for p, ref in _refs(op) if ref.name not in made}
    return next((call for call in calls if call.component == component and call.takes(wanted)), None)
