"""Check that a plan of quantization is consistent: run after every technique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from diffc.compiler.errors import VerifyError
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.runtime.program.verify import verify


def verify_plan(plan: Plan) -> Plan:
    """Return the plan, or raise `VerifyError` naming the layer and the rule that it breaks."""
    for program in plan.programs:
        verify(program)
    graphs = {graph.name for program in plan.programs for graph in program.graphs}
    counts = Counter(layer.name for layer in plan.layers)
    for layer in plan.layers:
        broken = [f"there are {counts[layer.name]} layers of this name"] if counts[layer.name] > 1 else []
        broken += [f"the graph {site.graph} is in no program" for site in layer.sites if site.graph not in graphs]
        broken += _broken(layer)
        if broken:
            raise VerifyError(broken[0], where=layer.name)
    for sample in plan.calibration.samples:
        if sample.graph not in graphs:
            raise VerifyError(f"a calibration sample of the graph {sample.graph}, which is in no program")
    return plan


def _broken(layer: Layer) -> Iterator[str]:
    """Yield the rules that the values of a layer break."""
    shape = None if layer.weight is None else layer.weight.shape
    if layer.rounded is not None and (layer.scheme.weight is None or layer.rounded.quantized.shape != shape):
        yield "its rounded weight is not one of its scheme and shape"
    if (layer.low is None) != (layer.high is None) or (
        layer.low is not None and layer.high is not None and bool((layer.low > layer.high).any())
    ):
        yield "its ranges do not have a low and a high end"
    if layer.smoothing is not None and (shape is None or layer.smoothing.shape != (shape[1] * layer.groups,)):
        yield "its smoothing factors are not one for each input channel"
    if layer.branch is not None and shape is not None:
        down, up = layer.branch
        if (len(up), down.shape[1], len(down)) != (shape[0], shape[1:].numel(), up.shape[1]):
            yield "its low-rank branch is not of its weight's shape"
    if layer.shift is not None and shape is not None and layer.shift.shape != shape[:1]:
        yield "its shift is not one value for each output channel"
