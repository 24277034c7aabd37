"""Run the phase in which graphs are legalized to the 16-bit type of a target, except where float16 overflows."""

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
    """Rewrite graphs with weights to compute in ``dtype``; return the programs and the report of float32 nodes.

    The arithmetic between graphs stays in float32: it is little, and its errors add up from step to step. Without
    ``calibrated`` no values are observed.
    """
    overflows = {} if calibrated is None else _overflows(programs, calibrated, progress)
    legalized = dict[str, Graph]()
    for graph in (graph for program in programs for graph in program.graphs if size(graph)):
        if graph.name not in legalized:
            progress(f"convert {graph.name}")
            wide = with_readers(graph, overflows.get(graph.name, ()))
            legalized[graph.name] = mixed_precision(graph, dtype=dtype, wide=wide)
    rewritten = (replace(p, graphs=tuple(legalized.get(graph.name, graph) for graph in p.graphs)) for p in programs)
    return tuple(rewritten), _report(dtype, overflows)


def _overflows(programs: Sequence[Program], calibrated: Calibrate, progress: Progress) -> dict[str, Sequence[Overflow]]:
    """Find the overflows of each graph in the first program that calls it; graphs of the same operators share them."""
    overflows, alike = dict[str, Sequence[Overflow]](), dict[object, str]()
    for program in programs:
        for graph in (graph for graph in program.graphs if size(graph) and graph.name not in overflows):
            twin = alike.setdefault(_operators(graph), graph.name)
            if twin != graph.name:
                overflows[graph.name] = overflows[twin]
                continue
            calibration = calibrated(program)
            progress(f"observe the range of {graph.name}")
            overflows[graph.name] = overflowing(calibration, program, graph)
            if overflows[graph.name]:
                largest = max(overflows[graph.name], key=lambda each: each.largest)
                where = f"{largest.largest:.3g} in {largest.layer or largest.node}"
                progress(f"keep {len(overflows[graph.name])} values of {graph.name} in float32: up to {where}")
    return overflows


def _operators(graph: Graph) -> tuple[str, ...]:
    """Return the operators of a graph, without shapes."""
    return graph.component, *(f"{node.name} {node.target}" for node in body_of(graph).graph.nodes)


def _report(dtype: torch.dtype, overflows: Mapping[str, Sequence[Overflow]]) -> dict[str, Any]:
    largest = dict[tuple[str, str], float]()
    for graph, values in overflows.items():
        for each in values:
            key = graph, each.layer or each.node
            largest[key] = max(each.largest, largest.get(key, 0.0))
    rows = [{"graph": graph, "layer": layer, "largest": value} for (graph, layer), value in largest.items()]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "limit": LARGEST / HEADROOM,
        "wide": sorted(rows, key=lambda row: -float(row["largest"])),
    }
