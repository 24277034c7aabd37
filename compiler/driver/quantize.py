"""Quantize a bundle's programs as its target and the user ask: schemes, calibration, techniques, and what they cost."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import Target
from diffc.compiler.calibration.calibrate import Calibrate
from diffc.compiler.driver.pass_manager import Subject, run_recipe
from diffc.compiler.errors import DiffcWarning, Progress, RecipeError
from diffc.compiler.graph.lazy_weights import release
from diffc.compiler.ir.program import Program
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.recipe_file import RecipeFile, matching, parse_passes, read_recipe
from diffc.compiler.quantization.report import Drift, check, drift, layer_errors, report
from diffc.compiler.quantization.verify_plan import verify_plan
from diffc.compiler.recipe import Pass, name_of, options_of
from diffc.passes.quantize import EMBEDDING, OF_TARGETS, RECIPES, REST, TECHNIQUES, Recipe
from diffc.runtime.errors import BundleError

PLAN = Subject(verify_plan)

SMALLEST_GROUP = 16
"""A group is halved until it divides a row; below this many numbers, the whole row has one scale instead."""


@dataclass(frozen=True)
class Asked:
    """Hold what a user asked for."""

    recipe: Recipe
    techniques: tuple[Pass[Plan], ...]
    file: RecipeFile
    seed: int = 0
    min_psnr: float | None = None

    @property
    def described(self) -> dict[str, Any]:
        """Say it as provenance does."""
        overrides = [
            [each.pattern, {k: str(v or "float") for k, v in each.specs.items()}] for each in self.file.overrides
        ]
        kinds = {name: getattr(self.recipe, name) for name in ("linear", "conv", "attention", "other")}
        techniques = [[name_of(technique), dict(options_of(technique))] for technique in self.techniques]
        return kinds | {"methods": techniques, "layers": overrides, "seed": self.seed}


def asked_quantization(
    target: Target,
    quant: str | None = None,
    recipe: Path | str | None = None,
    calibration: Path | str | None = None,
    seed: int = 0,
    min_psnr: float | None = None,
    *,
    calibrates: bool = False,
) -> Asked | None:
    """Read what is asked for; None for a target that is not quantized. Raises `RecipeError`.

    ``calibrates`` says that something else is calibrated as well, so that a file of prompts is of use in any case.
    """
    given = {"--quant": quant, "--recipe": recipe, "--min-psnr": min_psnr}
    given |= {} if calibrates else {"--calibration": calibration}
    if target.precision not in RECIPES:
        for name in (name for name, value in given.items() if value is not None):
            fix = f"choose a precision that is quantized: {', '.join(RECIPES)}"
            raise RecipeError(f"the target {target} is not quantized", where=name, fix=fix)
        return None
    file = read_recipe(Path(recipe)) if recipe is not None else RecipeFile({})
    settings: dict[str, Any] = {key: tuple(value) for key, value in file.settings.items() if key != "methods"}
    usual = OF_TARGETS.get(f"{target.backend}-{target.precision}", RECIPES[target.precision])
    chosen = replace(usual, **settings)
    text = quant or file.settings.get("methods")
    techniques = chosen.techniques if text is None else parse_passes(text, TECHNIQUES, "--quant")
    return Asked(chosen, techniques, file, seed, min_psnr)


@dataclass(frozen=True)
class Quantized:
    """Hold the quantized programs, the plan that made them, and what was done otherwise than asked.

    What is built for other machines need not run here.
    """

    programs: tuple[Program, ...]
    plan: Plan
    notes: tuple[str, ...]
    min_psnr: float | None
    runs_here: bool = True

    def measured(self, bundle: Path, progress: Progress) -> dict[str, Any]:
        """Measure the bundle that they became; raises `BuildError` where it misses ``min_psnr``."""
        progress("measure layers")
        errors = layer_errors(self.plan)
        for weight in (layer.weight for layer in self.plan.layers):
            if weight is not None:
                release(weight)
        drifts, notes = list[Drift](), self.notes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DiffcWarning)  # it does not matter here which engine draws
                drifts = drift(bundle, self.plan.calibration, progress)
        except BundleError as error:
            if self.runs_here or self.min_psnr is not None:
                raise
            notes = (*notes, f"no picture was drawn, for this machine cannot: {error.what}")
            progress(notes[-1])
        if self.min_psnr is not None:
            check(errors, drifts, self.min_psnr)
        return report(errors, drifts, self.plan, notes)


def quantize(
    programs: Sequence[Program],
    target: Target,
    asked: Asked,
    calibrate: Calibrate,
    progress: Progress,
) -> Quantized:
    """Calibrate on the first program's own trajectory, run the techniques, and write what they decided."""
    schemes = _Schemes(programs, target, asked)
    plan = schemes.applied_to(Plan.of(programs, calibrate(programs[0]), lambda _: Scheme()))
    techniques = (*asked.techniques, *REST)
    plan = run_recipe(plan, techniques, PLAN, progress=lambda name: progress(f"quantize: {name}"))
    plan, notes = schemes.adapted(plan)
    for note in notes:
        progress(note)
    runs_here = not find_backend(target.backend).archs
    return Quantized(applied(plan), plan, notes, asked.min_psnr, runs_here)


class _Schemes:
    """Choose the scheme of each layer: its kind's, as the engine computes it, unless the user's file says otherwise."""

    def __init__(self, programs: Sequence[Program], target: Target, asked: Asked) -> None:
        found = denoiser(programs[0])
        self.component = found.component if found else ""
        self.backend, self.asked = find_backend(target.backend), asked
        self.notes: Counter[str] = Counter()

    def applied_to(self, plan: Plan) -> Plan:
        """Give every layer its scheme. Raises `RecipeError` for one that does not exist or cannot be computed so."""
        overrides: dict[str, dict[str, Spec | None]] = {}
        for override in self.asked.file.overrides:
            for name in matching(override, [layer.name for layer in plan.layers]):
                overrides.setdefault(name, {}).update(override.specs)

        def change(layer: Layer) -> Layer:
            specs = overrides.get(layer.name, {})
            return replace(layer, scheme=self._of(layer, specs), asked=bool(specs))

        return plan.mapped(change)

    def _of(self, layer: Layer, specs: Mapping[str, Spec | None]) -> Scheme:
        asked = fitted(replace(self._usual(layer), **specs), layer)
        scheme, note = self.backend.adapted(layer.kind, asked)
        wrong = _impossible(layer.kind, asked) or (note if specs else "")
        if wrong:
            where = "[[layer]]" if specs else "[quantize]"
            fix = "choose what it computes, or leave the layer to the recipe of the target"
            raise RecipeError(f"{layer.name} cannot be computed as asked: {wrong}", where=where, fix=fix)
        if note and scheme != asked:  # what stays as it was is noted at the end
            self.notes[note] += 1
        return scheme

    def adapted(self, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
        """Let the engine have what it computes of the schemes that techniques chose, and say what it does instead."""
        notes = Counter(self.notes)

        def change(layer: Layer) -> Layer:
            scheme, note = self.backend.adapted(layer.kind, layer.scheme)
            notes.update([note] if note else [])
            return replace(layer, scheme=scheme)

        return plan.mapped(change), tuple(f"{count} layers: {note}" for note, count in notes.items())

    def _usual(self, layer: Layer) -> Scheme:
        recipe = self.asked.recipe
        if layer.kind == "attention":
            return _attention(recipe.attention) if layer.component == self.component else Scheme()
        if layer.kind == "embedding":
            return Scheme(parse_spec(EMBEDDING))
        if layer.component != self.component or layer.groups > 1:
            return Scheme(parse_spec(recipe.other[layer.kind == "conv"]))
        return Scheme(*map(parse_spec, recipe.conv if layer.kind == "conv" else recipe.linear))


def fitted(scheme: Scheme, layer: Layer) -> Scheme:
    """Let groups divide the rows of a weight, and the channels of its input."""
    if layer.weight is None:
        return scheme
    row, channels = layer.weight[0].numel(), layer.weight.shape[1]
    activation = scheme.activation
    if activation is not None and activation.per == "group":
        activation = _divided(activation, channels, "token")
    return replace(scheme, weight=scheme.weight and _divided(scheme.weight, row, "channel"), activation=activation)


def _divided(spec: Spec, size: int, otherwise: str) -> Spec:
    group = spec.group
    while group > SMALLEST_GROUP and size % group:
        group //= 2
    if not group or size % group == 0:
        return replace(spec, group=group)
    when = "dynamic" if otherwise == "token" else spec.when
    return replace(spec, per=otherwise, group=0, scale="float32", when=when)


def _impossible(kind: str, scheme: Scheme) -> str:
    """Say why no engine computes a scheme, if so."""
    weight, activation = scheme.weight, scheme.activation
    read = (activation, scheme.values, scheme.probabilities)
    if kind == "attention" and any(spec and (spec.per != "tensor" or spec.when != "static") for spec in read):
        return "what attention reads has one static scale, such as int8:tensor"
    if weight is not None and (weight.per == "token" or weight.when != "static"):
        return "a weight has no tokens, and is known at build"
    if kind == "embedding" and (activation is not None or not _can_be_looked_up(weight)):
        return "tables are looked up as signed integers with a scale for each row, such as int8:channel"
    if activation is None:
        return ""
    if activation.per == "channel" or (activation.per == "group" and activation.is_affine):
        return "activations have one scale, one for each token, or one for each group of numbers with a sign"
    if activation.scale in ("uint4", "float16"):
        return f"scales of activations are float32, e4m3 or e8m0, not {activation.scale}"
    return ""


def _attention(products: tuple[str, str]) -> Scheme:
    """Give the scheme of attention whose products each read one format; what a softmax gives has no sign."""
    first, second = map(parse_spec, products)
    if second is None:
        return Scheme(activation=first)
    form = FORMATS.get(f"u{second.format.name}", second.format)
    return Scheme(activation=first, values=second, probabilities=replace(second, format=form))


def _can_be_looked_up(weight: Spec | None) -> bool:
    return weight is None or (weight.format.is_integer and not weight.is_affine and weight.per == "channel")
