"""Draw what diffusers draws: both trained models, their samplers, with and without guidance, three pictures at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler import write_bundle
from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.scheduler_choice import new_scheduler
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.runtime import Sampler
from tests.conftest import DIT, UNET
from tests.tolerances import PICTURE

STEPS = 20
SAMPLERS = {
    UNET: ("ddim", "dpmpp-2m", "unipc", "euler", "euler-ancestral"),
    DIT: ("flow-euler", "flow-heun"),
}
CASES = [
    pytest.param(model, name, marks=pytest.mark.slow if name == "flow-heun" else (), id=f"{model.stem}-{name}")
    for model, names in SAMPLERS.items()
    for name in names
]
PROMPTS = ["a red circle left of a blue square", "a small green triangle", "a large yellow star above a red square"]

Compiled = tuple[Sampler, Callable[..., Any]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Compiled]:
    """Compile a model for all its samplers into one bundle, whose programs share graphs and weights."""
    made: dict[Path, Compiled] = {}

    def get(model: Path) -> Compiled:
        if model not in made:
            calls, programs = ComponentCalls(), list[Program]()
            pipeline = load(model)
            schedulers = {name: new_scheduler(name, pipeline.scheduler) for name in SAMPLERS[model]}
            for name, scheduler in schedulers.items():
                pipeline.scheduler = scheduler
                for program in trace_pipeline(pipeline, Sampling(steps=STEPS, batch=len(PROMPTS)), calls):
                    unguided = "_unguided" if program.name.endswith("_unguided") else ""
                    programs.append(replace(program, name=name.replace("-", "_") + unguided))
            output = tmp_path_factory.mktemp("parity") / "all.diffc"
            tokenizers = {key: value for key, value in pipeline.components.items() if key.startswith("tokenizer")}
            write_bundle(calls.graphs(programs), output, tokenizers={k: v for k, v in tokenizers.items() if v})
            pipeline.set_progress_bar_config(disable=True)

            def reference(sampler: str, **options: Any) -> np.ndarray[Any, Any]:
                pipeline.scheduler = schedulers[sampler]
                generator = torch.Generator("cpu").manual_seed(11)
                drawn = pipeline(PROMPTS, num_inference_steps=STEPS, generator=generator, output_type="np", **options)
                return np.asarray(drawn.images)

            made[model] = (Sampler(output), reference)
        return made[model]

    return get


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("model", "sampler"), CASES)
def test_the_picture_of_a_seed_is_that_of_diffusers(
    compiled: Callable[[Path], Compiled], model: Path, sampler: str, guidance: float
) -> None:
    bundle, reference = compiled(model)
    program = sampler.replace("-", "_") + ("_unguided" if guidance == 1.0 else "")
    got = bundle(PROMPTS, seed=11, guidance_scale=guidance, program=program, output="np")
    wanted = reference(sampler, guidance_scale=guidance)
    assert got.shape == wanted.shape == (3, 64, 64, 3)
    assert np.abs(got - wanted).max() <= PICTURE
    assert wanted.std() > 0.05, "the reference drew nothing that could differ"
    check_steps(bundle.programs[program], "unet" if model == UNET else "transformer")


def check_steps(text: str, denoiser: str) -> None:
    """A solver step is one ``linear``."""
    evaluations = len(re.findall(rf" = {denoiser}(?:_\d+)?\(", text))
    assert evaluations >= STEPS
    assert text.count("= linear(") <= evaluations + 2
    assert text.count("    step(") == evaluations, "the pipeline tells of each evaluation"
    assert "aten." not in text
