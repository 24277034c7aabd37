"""What a single reuse does to the latents at the end, against a program that reuses once."""

from __future__ import annotations

import numpy as np
import pytest

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.bundle.tokenizer_file import tokenizer_text
from diffc.compiler.calibration.calibrate import Calibrator
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, cached
from diffc.passes.cache.auto.cost import LONGEST, Calls, measure
from tests.conftest import UNET
from tests.tolerances import REWRITE_SINGLE
from tests.traced import Traced, staged

STEPS = 4


def test_the_last_evaluation_errs_by_what_it_reuses() -> None:
    traced = Traced(UNET, ("dpmpp-2m",), STEPS)
    program = staged(traced.programs["dpmpp-2m"])[0]
    graph = denoiser(program)
    assert graph is not None
    tokenizers = {"tokenizer": tokenizer_text("tokenizer", traced.pipeline.tokenizer).encode()}
    found = skips(graph, [program])
    options = [(Feature(found[at].up),) for at in (0, 2)]
    calibration = Calibrator(tokenizers, prompts=("a red circle", "a blue square"), seed=3)(program)
    costs = measure(program, Calls(graph, options), calibration)
    assert costs.errors.shape == (2, STEPS, STEPS)
    possible = np.isfinite(costs.errors[0])
    distance = np.arange(STEPS)[:, None] - np.arange(STEPS)
    assert np.array_equal(possible, (distance > 0) & (distance < LONGEST))
    for option, source in ((0, STEPS - 2), (1, 0)):
        reuse = tuple(Reuse(feature, source) for feature in options[option])
        (once,) = cached([program], lambda *_, reuse=reuse: [*[()] * (STEPS - 1), reuse])
        changes = [
            float((a.steps[-1] - b.steps[-1]).norm() / b.steps[-1].norm())
            for a, b in zip(calibration.rerun(once, 2), calibration.trajectories, strict=True)
        ]
        assert costs.errors[option, -1, source] == pytest.approx(np.mean(changes), rel=1e3 * REWRITE_SINGLE)
    assert 0 < costs.reusing[0] < costs.full
