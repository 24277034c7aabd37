"""Run the phases of quantization: the schemes of layers, calibration, techniques, and the measurement of the bundle."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import Target
from diffc.compiler.bundle.write import add_file, json_of
from diffc.compiler.calibration.calibrate import Calibrate
from diffc.compiler.driver.options import QuantizationOptions
from diffc.compiler.driver.pass_manager import Subject, Times, run_recipe
from diffc.compiler.driver.state import State
from diffc.compiler.errors import DiffcWarning, Progress, RecipeError
from diffc.compiler.graph.lazy_weights import release
from diffc.compiler.ir.program import Program, require_fixed_sizes
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.recipe_file import matching
from diffc.compiler.quantization.report import ImageError, check, image_errors, layer_errors, report
from diffc.compiler.quantization.verify_plan import verify_plan
from diffc.compiler.recipe import is_unchanged
from diffc.passes.quantize import EMBEDDING, REST
from diffc.runtime.errors import BundleError

PLAN = Subject(
    verify_plan,
    is_same=lambda before, after: is_unchanged(replace(before, refusals=()), replace(after, refusals=())),
    reasons=lambda plan, technique: plan.reasons(technique),
)

SMALLEST_GROUP = 16
"""A group is halved until it divides a row; below this many values, the entire row has one scale instead."""


def quantize(state: State, *, options: QuantizationOptions) -> State:
    """Quantize all programs, calibrated on the trajectories of the first."""
    require_fixed_sizes((graph for program in state.programs for graph in program.graphs), "quantized layers")
    times = Times()
    plan, notes = plan_of(state.programs, state.options.target, options, state.calibrator, state.progress, times)
    provenance = {**state.provenance, "calibration": plan.calibration.digest}
    return replace(state, programs=applied(plan), plan=plan, notes=notes, provenance=provenance, pass_seconds=times)


def plan_of(
    programs: Sequence[Program],
    target: Target,
    options: QuantizationOptions,
    calibrate: Calibrate,
    progress: Progress,
    seen: Callable[[str, Plan, float], None] = lambda *_: None,
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan that the techniques decide, and notes on schemes that the engine computes otherwise."""
    schemes = _Schemes(programs, target, options)
    plan = schemes.applied_to(Plan.of(programs, calibrate(programs[0]), lambda _: Scheme()))
    plan = run_recipe(plan, options.techniques, PLAN, progress=lambda name: progress(f"quantize: {name}"), seen=seen)
    plan, notes = schemes.adapted(plan)
    finished = run_recipe(plan, REST, PLAN, progress=lambda name: progress(f"quantize: {name}"), seen=seen)
    plan = replace(finished, refusals=plan.refusals)  # that nothing was left to do is no refusal
    for note in notes:
        progress(note)
    return plan, notes


def measure(state: State, *, options: QuantizationOptions) -> State:
    """Measure the error of quantization in the bundle; raises `BuildError` where it misses ``min_psnr``."""
    assert state.plan is not None, "quantize makes the plan"
    errors = layer_errors(state.plan)
    for weight in (layer.weight for layer in state.plan.layers):
        if weight is not None:
            release(weight)
    images, notes = list[ImageError](), state.notes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiffcWarning)  # it does not matter here which engine runs
            images = image_errors(state.folder, state.plan.calibration, state.progress)
    except BundleError as error:
        runs_here = not find_backend(state.options.target.backend).archs
        if runs_here or options.min_psnr is not None:
            raise
        notes = (*notes, f"nothing was sampled, for this machine cannot: {error.what}")
        state.progress(notes[-1])
    if options.min_psnr is not None:
        check(errors, images, options.min_psnr)
    measured = report(errors, images, state.plan, notes)
    add_file(state.folder, "quantization.json", json_of(measured))
    return replace(state, reports={**state.reports, "quantization": measured})


class _Schemes:
    """Choose the scheme of each layer: its kind's, as the engine computes it, or the recipe file's."""

    def __init__(self, programs: Sequence[Program], target: Target, options: QuantizationOptions) -> None:
        graph = denoiser(programs[0])
        self.component = graph.component if graph else ""
        self.backend, self.options = find_backend(target.backend), options
        self.notes: Counter[str] = Counter()

    def applied_to(self, plan: Plan) -> Plan:
        """Return the plan with a scheme for every layer. Raises `RecipeError` for one that cannot be computed."""
        overrides: dict[str, dict[str, Spec | None]] = {}
        for override in self.options.file.overrides:
            for name in matching(override, [layer.name for layer in plan.layers]):
                overrides.setdefault(name, {}).update(override.specs)

        def change(layer: Layer) -> Layer:
            specs = overrides.get(layer.name, {})
            return replace(layer, scheme=self._of(layer, specs), requested=bool(specs))

        return plan.mapped(change)

    def _of(self, layer: Layer, specs: Mapping[str, Spec | None]) -> Scheme:
        requested = fitted(replace(self._usual(layer), **specs), layer)
        scheme, note = self.backend.adapted(layer.kind, requested)
        wrong = _impossible(layer.kind, requested) or (note if specs else "")
        if wrong:
            where = "[[layer]]" if specs else "[quantize]"
            fix = "choose a spec that it computes, or leave the layer to the recipe of the target"
            raise RecipeError(f"{layer.name} cannot be computed so: {wrong}", where=where, fix=fix)
        if note and scheme != requested:  # an unchanged scheme is noted at the end
            self.notes[note] += 1
        return scheme

    def adapted(self, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
        """Return the plan with schemes that the engine computes, and a note for each change.

        Raises `RecipeError` for a weight that a technique has rounded to a number format that the engine does not read.
        """
        notes = Counter(self.notes)

        def change(layer: Layer) -> Layer:
            scheme, note = self.backend.adapted(layer.kind, layer.scheme)
            notes.update([note] if note else [])
            return _adapted(layer, scheme)

        return plan.mapped(change), tuple(f"{count} layers: {note}" for note, count in notes.items())

    def _usual(self, layer: Layer) -> Scheme:
        recipe = self.options.recipe
        if layer.kind == "attention":
            return _attention(recipe.attention) if layer.component == self.component else Scheme()
        if layer.kind == "embedding":
            return Scheme(parse_spec(EMBEDDING))
        if layer.component != self.component or layer.groups > 1:
            return Scheme(parse_spec(recipe.other[layer.kind == "conv"]))
        return Scheme(*map(parse_spec, recipe.conv if layer.kind == "conv" else recipe.linear))


def _adapted(layer: Layer, scheme: Scheme) -> Layer:
    """Return a layer with the scheme that the engine computes; ranges for scales of another kind are chosen again."""
    if layer.rounded is not None and scheme.weight != layer.scheme.weight:
        what = (
            f"{layer.name} is rounded as {layer.scheme.weight}, which the engine computes as {scheme.weight or 'float'}"
        )
        raise RecipeError(what, where="--quant", fix="leave the technique out that chooses this format of the weight")
    before, after = layer.scheme.activation, scheme.activation
    if before and after and (before.per, before.when) != (after.per, after.when):
        layer = replace(layer, low=None, high=None)
    return replace(layer, scheme=scheme)


def fitted(scheme: Scheme, layer: Layer) -> Scheme:
    """Return a scheme whose groups divide the rows of a weight, and the channels of its input."""
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
    """Return why no engine computes a scheme; empty where one may."""
    weight, activation = scheme.weight, scheme.activation
    read = (activation, scheme.values, scheme.probabilities)
    if kind == "attention" and any(spec and (spec.per != "tensor" or spec.when != "static") for spec in read):
        return "operands of attention have one static scale, such as int8:tensor"
    if weight is not None and (weight.per == "token" or weight.when != "static"):
        return "a weight has no tokens, and is constant"
    if kind == "embedding" and (activation is not None or not _can_be_looked_up(weight)):
        return "tables are signed integers with a scale per row, such as int8:channel"
    if activation is None:
        return ""
    if activation.per == "channel" or (activation.per == "group" and activation.is_affine):
        return "activations have one scale, one per token, or one per group of signed values"
    if activation.scale in ("uint4", "float16"):
        return f"scales of activations are float32, e4m3 or e8m0, not {activation.scale}"
    return ""


def _attention(products: tuple[str, str]) -> Scheme:
    """Return the scheme of attention, a format for each of its two products; the results of a softmax have no sign."""
    first, second = map(parse_spec, products)
    if second is None:
        return Scheme(activation=first)
    form = FORMATS.get(f"u{second.format.name}", second.format)
    return Scheme(activation=first, values=second, probabilities=replace(second, format=form))


def _can_be_looked_up(weight: Spec | None) -> bool:
    return weight is None or (weight.format.is_integer and not weight.is_affine and weight.per == "channel")
