"""The baseline calls the pipeline with the arguments that it takes, from the request's seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffc.compiler.commands import bench_diffusers

REQUEST = {
    "threads": torch.get_num_threads(),
    "source": "model",
    "component_files": {"vae": "vae.safetensors"},
    "sampler": "ddim",
    "task": "inpaint",
    "seed": 7,
    "arguments": {"guidance_scale": 5.0, "strength": 0.5},
}


class Pipeline:
    def __init__(self) -> None:
        self.called = list[dict[str, Any]]()

    def set_progress_bar_config(self, *, disable: bool) -> None:
        assert disable

    def __call__(self, prompt: Any, guidance_scale: float, generator: Any, callback_on_step_end: Any = None) -> None:
        self.called.append({"prompt": prompt, "scale": guidance_scale, "noise": torch.randn(4, generator=generator)})
        for step in range(3):
            assert callback_on_step_end(self, step, 0, {"latents": step}) == {"latents": step}


def test_samples_with_the_seed_and_reports_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, loaded = Pipeline(), list[Any]()

    def load(source: str, **options: Any) -> Pipeline:
        loaded.append((source, options))
        return pipeline

    monkeypatch.setattr(bench_diffusers, "load", load)
    sample, steps = bench_diffusers.load_pipeline(REQUEST), list[None]()
    for _ in range(2):
        sample(["a circle"], lambda: steps.append(None))
    options = {"sampler": "ddim", "task": "inpaint", "component_files": {"vae": "vae.safetensors"}}
    assert loaded == [("model", options)]
    assert len(steps) == 6
    noise = torch.randn(4, generator=torch.Generator("cpu").manual_seed(7))
    for call in pipeline.called:
        assert (call["prompt"], call["scale"]) == (["a circle"], 5.0), "the pipeline takes no strength"
        assert torch.equal(call["noise"], noise)
