"""Measure the cost of reusing each feature in each step, on the program's own trajectory, and choose the schedule.

Source: diffc, decision 0010. Errors of single reuses are measured (`diffc.passes.cache.auto.cost`), as are
        times; the schedules of least error for every time follow by dynamic programming
        (`diffc.passes.cache.auto.search`), and those near the budget are tried, beside schedules with fixed
        intervals: the schedule built is the fastest whose images keep the budget.

Before (a UNet):
    y0 = unet(x0)
    x1 = linear(x0, y0)
    y1 = unet(x1)

After (min_psnr=1.0):
    h0 = outer_down(x0)
    d0 = deep(h0)
    y0 = outer_up(h0, d0)
    x1 = linear(x0, y0)
    h1 = outer_down(x1)
    y1 = outer_up(h1, d0)

With ``min_psnr=1.0`` every schedule is good enough, and the fastest is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import cached
from diffc.compiler.ir.program import Program
from diffc.passes.cache.auto.search import Searched, Trial
from diffc.passes.cache.auto.trials import PROMPTS, Trials, features_to_try, following


def auto(
    programs: Sequence[Program],
    calibrated: Callable[[Program], Calibration],
    finer: Program | None,
    *,
    max_drop: float = 0.5,
    min_psnr: float = 0.0,
) -> Searched:
    """Reuse as much as the budget allows: the first program is measured, the others follow at their own steps.

    ``max_drop`` is the maximum PSNR loss, in dB, relative to the uncached images, both measured against ``finer``: the
    same sampler with twice as many steps. ``min_psnr`` replaces it by the minimum PSNR, in dB, against the uncached
    images. Raises `PassError` where no schedule meets the budget, with the nearest.
    """
    if max_drop < 0 or min_psnr < 0:
        raise PassError(f"auto: max-drop={max_drop:g}, min-psnr={min_psnr:g}", fix="give 0 dB or more")
    program = programs[0]
    graph = denoiser(program)
    options = [] if graph is None else features_to_try(graph, programs)
    if graph is None or not options:
        raise PassError("auto: the denoiser has neither skip connections nor transformer blocks", where=program.name)
    if finer is not None and _noises(finer) != _noises(program):
        finer = None
    if finer is None and not min_psnr:
        what = "auto: twice as many steps read other noise, and so compute another image"
        raise PassError(what, where=program.name, fix="set the budget with auto:min-psnr=35")
    calibration = calibrated(program)
    calibration = replace(calibration, trajectories=calibration.trajectories[:PROMPTS])
    with calibration.sampling(program) as run_sampler:
        trials = Trials(program, graph, options, calibration, run_sampler, finer)
        tried = trials.tried(max_drop, min_psnr)
    acceptable = [each for each in tried if each.keeps(max_drop, min_psnr) and any(each.reuses)]
    if not acceptable:
        budget = f"{min_psnr:g} dB" if min_psnr else f"a drop of at most {max_drop:g} dB"
        raise PassError(
            f"auto: no schedule keeps {budget}; {_nearest(tried)}", where=program.name, fix="set a lower budget"
        )
    fastest = min(acceptable, key=lambda each: each.time)
    follow = following(fastest.reuses)
    return Searched(cached(programs, follow), fastest, tuple(tried))


def _nearest(tried: Sequence[Trial]) -> str:
    best = max((each for each in tried if any(each.reuses)), key=lambda each: each.psnr)
    drop = "" if best.drop is None else f" and drops {best.drop:.2f} dB"
    return f"the nearest takes {best.time:.0%} of the time, has {best.psnr:.1f} dB{drop}"


def _noises(program: Program) -> list[object]:
    return [value.type for op in program.ops if op.operator == "noise" for value in op.results]
