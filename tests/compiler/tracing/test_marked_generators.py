"""Separate the noise that a pipeline draws without its generator: the seed decides what it decides in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffc.compiler import write_bundle
from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.marked_generators import MarkedGenerator
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.runtime import Sampler
from tests.compiler.tracing.test_pipeline import Scheduler
from tests.small_models import Model

SEED = 7


class Encoding:
    """Sample latents beside an encoding, whose distribution is sampled with the generator or without."""

    encodes_with_generator, samples_with_generator = False, True

    def __init__(self) -> None:
        self.components: dict[str, Any] = {"model": Model()}
        self.scheduler = Scheduler()

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Take what pipelines of diffusers take."""
        assert disable

    def __call__(
        self,
        num_inference_steps: int = 2,
        generator: Any = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        """Return the encoding's sample beside the latents."""
        encoding = DiagonalGaussianDistribution(torch.linspace(-1, 1, 6).reshape(1, 6, 1, 1))
        encoded = encoding.sample(generator if self.encodes_with_generator else None)[..., 0, 0]
        of_images = encoded.expand(num_images_per_prompt, -1)
        generator = generator if self.samples_with_generator else None
        latents = torch.randn(num_images_per_prompt, 3, generator=generator)
        for _ in range(num_inference_steps):
            latents = self.scheduler.step(latents, self.components["model"](latents))
        return (torch.cat([of_images, latents], 1)[:, :, None, None],)


def traced(pipeline: Any) -> tuple[ComponentCalls, Program]:
    """Trace a pipeline into one program."""
    calls = ComponentCalls()
    [program] = trace_pipeline(pipeline, Sampling(), calls)
    return calls, program


def noises(program: Program) -> list[dict[str, Any]]:
    """Return the attributes of each noise."""
    return [dict(op.attrs) for op in program.ops if op.operator == "noise"]


def test_the_seed_decides_what_it_does_in_pytorch(tmp_path: Path) -> None:
    calls, program = traced(Encoding())
    assert noises(program) == [{"separate": True}, {}]
    sampler = Sampler(write_bundle(calls.graphs([program]), tmp_path / "x.diffc"))
    got = sampler(seed=SEED, output="np").flatten()
    pipeline = Encoding()
    torch.manual_seed(~SEED)
    with torch.no_grad():
        [expected] = pipeline(generator=torch.Generator().manual_seed(SEED))
    torch.testing.assert_close(torch.as_tensor(got), expected.flatten())
    assert (sampler(seed=SEED, output="np").flatten() == got).all()


@pytest.mark.parametrize(("encodes", "samples"), [(False, False), (True, True)])
def test_noise_of_one_kind_only_stays_as_it_is(encodes: bool, samples: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoding, "encodes_with_generator", encodes)
    monkeypatch.setattr(Encoding, "samples_with_generator", samples)
    assert noises(traced(Encoding())[1]) == [{}, {}]


def test_a_pipeline_that_reads_the_seed_is_refused() -> None:
    with pytest.raises(CaptureError, match="the seed of the generator is read"):
        int(MarkedGenerator(3).initial_seed())
