"""Trace a trained model for several samplers, to cache its features, and draw with diffusers beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffc.compiler import write_bundle
from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.scheduler_choice import new_scheduler
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.passes import NORMAL_FORM, stage
from diffc.runtime import Sampler
from tests.conftest import PROMPT

Picture = np.ndarray[Any, Any]


class Traced:
    """Hold a pipeline, and its programs for several samplers."""

    def __init__(self, model: Path, samplers: Sequence[str], steps: int) -> None:
        self.pipeline: Any = load(model)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps = steps
        self.schedulers = {name: new_scheduler(name, self.pipeline.scheduler) for name in samplers}
        self.programs, calls, found = dict[str, list[Program]](), ComponentCalls(), list[list[Program]]()
        for scheduler in self.schedulers.values():
            self.pipeline.scheduler = scheduler
            found.append(trace_pipeline(self.pipeline, Sampling(steps=steps), calls))
        made = iter(calls.graphs([program for each in found for program in each]))
        for name, each in zip(samplers, found, strict=True):
            self.programs[name] = [next(made) for _ in each]

    def bundle(self, sampler: str, folder: Path, cache: str) -> Sampler:
        """Compile the programs of one sampler."""
        tokenizers = {key: value for key, value in self.pipeline.components.items() if key.startswith("tokenizer")}
        made = write_bundle(self.programs[sampler], folder / "x.diffc", tokenizers=tokenizers, cache=cache)
        return Sampler(made)

    def drawn(self, sampler: str, guidance: float, **options: Any) -> Picture:
        """Draw with diffusers, with whatever hooks there are."""
        self.pipeline.scheduler = self.schedulers[sampler]
        options |= {"generator": torch.Generator("cpu").manual_seed(3), "output_type": "np"}
        drawn = self.pipeline(PROMPT, guidance_scale=guidance, num_inference_steps=self.steps, **options)
        return np.asarray(drawn.images)


def staged(programs: Sequence[Program]) -> tuple[Program, ...]:
    """Bring programs to where a cache is applied."""
    return stage([run(program, NORMAL_FORM) for program in programs])
