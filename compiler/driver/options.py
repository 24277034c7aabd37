"""Read the options of a build: the command line, which provenance records as the bundle's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import Target, parse_target
from diffc.compiler.calibration.prompts import read_prompts
from diffc.compiler.checkpoint.load import ENCODER
from diffc.compiler.driver.option_values import (
    read_arguments,
    read_counts,
    read_flag,
    read_fractions,
    read_integer,
    read_mapping,
    read_number,
    read_path,
    read_task,
    read_text,
)
from diffc.compiler.errors import RecipeError
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.recipe_file import RecipeFile, parse_passes, read_recipe
from diffc.compiler.recipe import Optional, Pass, name_of, options_of
from diffc.compiler.tracing.pipeline import requested_sizes
from diffc.compiler.tracing.pipeline_inputs import PREPARED, Size
from diffc.passes.cache import CACHES, FeatureCache, Need
from diffc.passes.quantize import FORMER_NAMES, RECIPES, TECHNIQUES, Recipe

IP_ADAPTER_IMAGE = "ip_adapter_image"
CACHE = "--cache"
NO_CACHE = "none"
QUANT = "--quant"


@dataclass(frozen=True)
class CacheOptions:
    """Hold the feature cache of a build and its options."""

    technique: FeatureCache
    options: Mapping[str, Any]
    is_optional: bool = False

    @property
    def may_change_nothing(self) -> bool:
        """Return whether a program may stay as it is: the cache is optional, or an interval of 1 reuses nothing."""
        return self.is_optional or self.options.get("interval") == 1

    @property
    def recorded(self) -> list[Any]:
        """Return the options as provenance records them."""
        return [self.technique.name, dict(self.options)]

    @property
    def is_calibrated(self) -> bool:
        """Return whether the cache needs trajectories."""
        return Need.CALIBRATOR in self.technique.needs

    @property
    def is_compared(self) -> bool:
        """Return whether the cache needs the program of twice as many steps."""
        return Need.FINER_PROGRAM in self.technique.needs


@dataclass(frozen=True)
class QuantizationOptions:
    """Hold how a build quantizes: the formats of each kind of layer, the techniques, and overrides of layers."""

    recipe: Recipe
    techniques: tuple[Pass[Plan], ...]
    file: RecipeFile
    seed: int = 0
    min_psnr: float | None = None

    @property
    def recorded(self) -> dict[str, Any]:
        """Return the options as provenance records them."""
        overrides = [
            [override.pattern, {name: str(spec or "float") for name, spec in override.specs.items()}]
            for override in self.file.overrides
        ]
        kinds = {name: getattr(self.recipe, name) for name in ("linear", "conv", "attention", "other")}
        techniques = [[name_of(technique), dict(options_of(technique))] for technique in self.techniques]
        return kinds | {"methods": techniques, "layers": overrides, "seed": self.seed}


@dataclass(frozen=True)
class PrecisionOptions:
    """Hold the 16-bit type that a target computes in."""

    dtype: torch.dtype

    @property
    def is_calibrated(self) -> bool:
        """Return whether calibrated ranges decide which nodes stay in float32: bfloat16 has float32's range."""
        return self.dtype == torch.float16


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold the options of a build. None and empty stand for the pipeline's own.

    ``steps`` are step counts, a program for each; ``sizes`` [width, height] in pixels, the default first; ``guidance``
    the default scale; ``guidance_interval`` the fractions of the steps between which there is guidance; ``strength``
    the share of the steps that an input image is sampled anew for; ``settings`` other arguments of the pipeline's call,
    and ``inputs`` those that the request brings (`diffc.compiler.tracing.pipeline_inputs`). ``prompts`` and ``seed``
    are those of the calibration. ``dump`` is the folder for the programs' text after each phase.
    """

    target: Target
    task: str = "text-to-image"
    sampler: str | None = None
    steps: tuple[int, ...] = ()
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    sizes: tuple[Size, ...] = ()
    batch: int = 1
    strength: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    ip_adapter: Path | None = None
    component_files: Mapping[str, Path | str] = field(default_factory=dict)
    online: bool = False
    cache: CacheOptions | None = None
    quantization: QuantizationOptions | None = None
    precision: PrecisionOptions | None = None
    prompts: tuple[str, ...] = ()
    seed: int = 0
    dump: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Map each file of weights beside the checkpoint, and the folder of an adapter's image encoder, to its path."""
        files = {name: Path(path) for name, path in self.component_files.items()}
        if self.ip_adapter is not None:
            encoder = self.ip_adapter.parent / ENCODER
            files |= {"ip_adapter": self.ip_adapter, **({ENCODER: encoder} if encoder.is_dir() else {})}
        return files

    @property
    def recorded(self) -> dict[str, Any]:
        """Return the options as provenance records them."""
        files = {name: Path(path).name for name, path in self.component_files.items()}
        return {
            "task": self.task,
            "sampler": self.sampler,
            "steps": list(self.steps),
            "guidance": self.guidance,
            "sizes": self.sizes,
            "batch": self.batch,
            "strength": self.strength,
            "options": dict(self.settings),
            "inputs": dict(self.inputs),
            "guidance_interval": self.guidance_interval,
            "quantization": self.quantization and self.quantization.recorded,
            "ip_adapter": self.ip_adapter and self.ip_adapter.name,
            "cache": self.cache and self.cache.recorded,
            **({"component_files": files} if files else {}),
        }


def read_options(
    target: str,
    *,
    task: str = "text-to-image",
    sampler: str | None = None,
    steps: int | Sequence[int] | None = None,
    guidance: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    size: int | Sequence[int] | Sequence[Size] | None = None,
    batch: int = 1,
    strength: float | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    inputs: Mapping[str, str] = MappingProxyType({}),
    ip_adapter: Path | str | None = None,
    component_files: Mapping[str, Path | str] = MappingProxyType({}),
    online: bool = False,
    cache: str | None = None,
    quant: str | None = None,
    recipe: Path | str | None = None,
    calibration: Path | str | None = None,
    seed: int = 0,
    min_psnr: float | None = None,
    dump: Path | str | None = None,
) -> Options:
    """Read the options of `diffc.compiler.build`: those of the command line, as Python's callers write them.

    ``steps`` is a count or several, ``size`` an edge of a square, a width and a height, or several of these.
    Raises `TargetError`, `RecipeError`, and `BuildError` for a value that the command line would refuse.
    """
    parsed, seed = parse_target(target), read_integer("seed", seed)
    cache, quant = read_text("cache", cache), read_text("quant", quant)
    recipe, calibration = read_path("recipe", recipe), read_path("calibration", calibration)
    features, precision = read_cache(cache), precision_of(parsed)
    is_calibrated = any(part is not None and part.is_calibrated for part in (features, precision))
    quantization = read_quantization(
        parsed,
        quant,
        recipe,
        calibration,
        seed,
        read_number("min_psnr", min_psnr),
        is_calibrated_anyway=is_calibrated,
    )
    adapter = read_path("ip_adapter", ip_adapter)
    return Options(
        target=parsed,
        task=read_task(task),
        sampler=read_text("sampler", sampler),
        steps=read_counts("steps", steps),
        guidance=read_number("guidance", guidance),
        guidance_interval=read_fractions("guidance_interval", guidance_interval),
        sizes=requested_sizes(size),
        batch=read_integer("batch", batch, 1),
        strength=read_number("strength", strength, 0.0, 1.0),
        settings=read_arguments("options", options),
        inputs=({IP_ADAPTER_IMAGE: PREPARED} if adapter else {}) | read_mapping("inputs", inputs),
        ip_adapter=adapter,
        component_files=read_mapping("component_files", component_files),
        online=read_flag("online", online),
        cache=features,
        quantization=quantization,
        precision=precision,
        prompts=read_prompts(calibration) if calibration is not None else (),
        seed=seed,
        dump=read_path("dump", dump),
    )


def read_cache(text: str | None) -> CacheOptions | None:
    """Read a feature cache, as ``deepcache:interval=3``; None for nothing or ``none``. Raises `RecipeError`."""
    if text is None or text.removesuffix("?") == NO_CACHE:
        return None
    cache, *more = parse_passes(text, {name: cache.apply for name, cache in CACHES.items()}, CACHE, "cache")
    if more:
        fix = "choose one, such as deepcache:interval=3"
        raise RecipeError(f"{text!r} is more than one cache", where=CACHE, fix=fix)
    technique = next(technique for technique in CACHES.values() if name_of(technique.apply) == name_of(cache))
    return CacheOptions(technique, options_of(cache), isinstance(cache, Optional))


def read_quantization(
    target: Target,
    quant: str | None = None,
    recipe: Path | str | None = None,
    calibration: Path | str | None = None,
    seed: int = 0,
    min_psnr: float | None = None,
    *,
    is_calibrated_anyway: bool = False,
) -> QuantizationOptions | None:
    """Read the options of a quantized target; None for another, which has none. Raises `RecipeError`.

    A ``calibration`` is of use to a target that is not quantized where something else is calibrated.
    """
    options = {"--quant": quant, "--recipe": recipe, "--min-psnr": min_psnr}
    options |= {} if is_calibrated_anyway else {"--calibration": calibration}
    precisions = find_backend(target.backend).precisions
    name_of_recipe = precisions[target.precision].recipe
    if not name_of_recipe:
        for name in (name for name, value in options.items() if value is not None):
            quantized = ", ".join(row.name for row in precisions.values() if row.recipe)
            fix = f"choose a precision that is quantized: {quantized}"
            raise RecipeError(f"the target {target} is not quantized", where=name, fix=fix)
        return None
    file = read_recipe(Path(recipe)) if recipe is not None else RecipeFile({})
    settings: dict[str, Any] = {key: tuple(value) for key, value in file.settings.items() if key != "methods"}
    formats = replace(RECIPES[name_of_recipe], **settings)
    text = quant or file.settings.get("methods")
    techniques = formats.techniques if text is None else parse_passes(text, TECHNIQUES, QUANT, former=FORMER_NAMES)
    return QuantizationOptions(formats, techniques, file, seed, min_psnr)


def precision_of(target: Target) -> PrecisionOptions | None:
    """Return the 16-bit type that a target computes in; None where it computes in float32."""
    name = find_backend(target.backend).computes.get(target.precision)
    return None if name is None else PrecisionOptions(getattr(torch, name))
