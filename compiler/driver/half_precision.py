"""Let the graphs of a bundle compute in 16 bits where the target does, but for what float16 does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffc.compiler.calibration.calibrate import Calibrate, Calibration
from diffc.compiler.calibration.float16_overflow import HEADROOM, LARGEST, Overflow, overflowing, with_readers
from diffc.compiler.driver.options import PrecisionOptions
from diffc.compiler.driver.state import State
from diffc.compiler.errors import Progress
from diffc.compiler.graph.body import body_of, size
from diffc.compiler.ir.program import Graph, Program
from diffc.passes.mixed_precision import mixed_precision


def legalize(state: State, *, options: PrecisionOptions) -> State:
    """Rewrite the graphs to compute in the 16-bit type of the target, but for values that it cannot hold."""
    floats = {program.name: program for program in state.floats}
    calibrations = dict[str, Calibration]()

    def calibrate(program: Program) -> Calibration:
        calibrations[program.name] = state.calibrator(floats[program.name])
        return calibrations[program.name]

    looks = calibrate if options.is_calibrated else None
    programs, report = half_precision(state.programs, looks, options.dtype, state.progress)
    prompts = next((calibration.prompts for calibration in calibrations.values()), ())
    return replace(
        state, programs=programs, reports={**state.reports, "precision": report | {"prompts": list(prompts)}}
    )


def half_precision(
    programs: Sequence[Program], calibrated: Calibrate | None, dtype: torch.dtype, progress: Progress
) -> tuple[tuple[Program, ...], dict[str, Any]]:
    """Let graphs with weights compute in ``dtype``, and say what of them stays in float32, as a bundle's report does.

    The arithmetic between them stays in float32: it is little, and its errors add up from step to step. Without
    ``calibrated`` nothing is looked at.
    """
    found = {} if calibrated is None else _overflows(programs, calibrated, progress)
    made = dict[str, Graph]()
    for graph in (graph for program in programs for graph in program.graphs if size(graph)):
        if graph.name not in made:
            progress(f"convert {graph.name}")
            wide = with_readers(graph, found.get(graph.name, ()))
            made[graph.name] = mixed_precision(graph, dtype=dtype, wide=wide)
    rewritten = (replace(p, graphs=tuple(made.get(graph.name, graph) for graph in p.graphs)) for p in programs)
    return tuple(rewritten), _report(dtype, found)


def _overflows(programs: Sequence[Program], calibrated: Calibrate, progress: Progress) -> dict[str, Sequence[Overflow]]:
    """Look at each graph in the first program that calls it; one of other shapes alone is as the other is."""
    found, alike = dict[str, Sequence[Overflow]](), dict[object, str]()
    for program in programs:
        for graph in (graph for graph in program.graphs if size(graph) and graph.name not in found):
            twin = alike.setdefault(_operators(graph), graph.name)
            if twin != graph.name:
                found[graph.name] = found[twin]
                continue
            calibration = calibrated(program)
            progress(f"look at the range of {graph.name}")
            found[graph.name] = overflowing(calibration, program, graph)
            if found[graph.name]:
                largest = max(found[graph.name], key=lambda each: each.largest)
                where = f"{largest.largest:.3g} in {largest.layer or largest.node}"
                progress(f"keep {len(found[graph.name])} values of {graph.name} in float32: up to {where}")
    return found


def _operators(graph: Graph) -> tuple[str, ...]:
    """Say what a graph computes, of tensors of any shape."""
    return graph.component, *(f"{node.name} {node.target}" for node in body_of(graph).graph.nodes)


def _report(dtype: torch.dtype, found: Mapping[str, Sequence[Overflow]]) -> dict[str, Any]:
    largest = dict[tuple[str, str], float]()
    for graph, overflows in found.items():
        for each in overflows:
            key = graph, each.layer or each.node
            largest[key] = max(each.largest, largest.get(key, 0.0))
    rows = [{"graph": graph, "layer": layer, "largest": value} for (graph, layer), value in largest.items()]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "limit": LARGEST / HEADROOM,
        "wide": sorted(rows, key=lambda row: -float(row["largest"])),
    }
