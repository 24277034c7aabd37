"""Trace a pipeline for a request: which programs there are, what they compute, and which requests are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from diffc.compiler.errors import BuildError, CaptureError, DiffcWarning
from diffc.compiler.ir.program import Guard, Input, Program, Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, default_steps, requested_sizes, text_inputs, trace_pipeline
from diffc.compiler.tracing.pipeline_inputs import takes_tuples
from diffc.runtime.program.facts import NO_NEGATIVE, UNGUIDED, Facts
from diffc.runtime.program.verify import verify
from tests.compiler.conftest import tiny_tokenizer
from tests.random_programs import difference, draws, numbers
from tests.small_models import Model, operators


class Scheduler:
    """Take smaller and smaller parts of the noise away, and remember how many."""

    def __init__(self) -> None:
        self.index = 0

    def set_timesteps(self) -> None:
        """Begin a trajectory."""
        self.index = 0

    def step(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the next latents."""
        self.index += 1
        return latents - noise / (2 * self.index)


class Pipeline:
    """Sample rows of three values, with guidance where its scale is above 1."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {"model": Model()}
        self.scheduler = Scheduler()

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Take what pipelines of diffusers take."""
        assert disable

    def __call__(
        self,
        num_inference_steps: int = 3,
        guidance_scale: float = 4.0,
        eta: float = 0.0,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> tuple[torch.Tensor]:
        """Sample."""
        assert output_type == "np" and not return_dict
        model, latents = self.components["model"], torch.randn(2, 3)
        self.scheduler.set_timesteps()
        for step in range(num_inference_steps):
            noise = model(latents)
            if guidance_scale > 1:
                noise = noise + guidance_scale * (model(-latents) - noise)
            latents = self.scheduler.step(latents, noise) + eta
            if callback_on_step_end:
                latents = callback_on_step_end(self, step, step, {"latents": latents})["latents"]
        return (latents,)


def traced(pipeline: Any, **options: Any) -> list[Program]:
    """Trace a pipeline, graphs included, and check its programs."""
    calls = ComponentCalls()
    programs = trace_pipeline(pipeline, Sampling(**options), calls)
    return [verify(program) for program in calls.graphs(programs)]


def test_a_pipeline_that_drops_guidance_has_a_program_for_each_branch() -> None:
    guided, unguided = traced(Pipeline(), steps=2)
    assert (guided.facts, unguided.facts) == tuple(Facts("text-to-image", 2, None, v) for v in ("", UNGUIDED))
    assert guided.inputs == (Input("guidance_scale", Type("scalar"), 4.0),)
    assert guided.guards == (Guard("guidance_scale", ">", 1.0),)
    assert unguided.guards == (Guard("guidance_scale", "<=", 1.0),)
    assert [operators(program).count("model") for program in (guided, unguided)] == [4, 2]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_program_computes_what_the_pipeline_computes(guidance: float) -> None:
    pipeline = Pipeline()
    program = traced(pipeline, steps=2, options={"eta": 0.25})[0 if guidance > 1 else 1]
    noises = draws(program)
    torch.manual_seed(0)
    with torch.no_grad():
        (expected,) = pipeline(2, guidance, 0.25, output_type="np", return_dict=False)
    assert difference(numbers(program, noises, guidance_scale=guidance), [expected]) == 0


def test_the_scheduler_of_the_pipeline_is_as_it_was() -> None:
    pipeline = Pipeline()
    scheduler = pipeline.scheduler
    scheduler.index = 7
    traced(pipeline)
    assert pipeline.scheduler is scheduler and scheduler.index == 7


def test_each_step_tells_its_latents() -> None:
    assert default_steps(Pipeline()) == 3
    assert [operators(program).count("step") for program in traced(Pipeline())] == [3, 3]


def test_the_default_guidance_is_the_request_s() -> None:
    (program, _) = traced(Pipeline(), guidance=7.5)
    assert program.inputs == (Input("guidance_scale", Type("scalar"), 7.5),)


def test_images_that_are_laid_out_for_numpy_have_their_channels_first() -> None:
    class Images(Pipeline):
        def __call__(  # type: ignore[override]
            self, num_inference_steps: int = 1, output_type: str = "", return_dict: bool = True
        ) -> torch.Tensor:
            image = self.components["model"](torch.randn(5, 3)).reshape(1, 5, 1, 3)
            return image * num_inference_steps

    (program,) = traced(Images())
    (image,) = numbers(program, draws(program))
    assert image.shape == (1, 3, 5, 1)


class Negative(Pipeline):
    """Have a negative prompt, which some pipelines leave out where there is none."""

    def __init__(self, *, leaves_out: bool) -> None:
        super().__init__()
        self.components |= {"tokenizer": tiny_tokenizer(), "embedding": nn.Embedding(64, 3)}
        self.leaves_out = leaves_out

    def __call__(  # type: ignore[override]
        self,
        num_inference_steps: int = 1,
        negative_prompt: str | list[str] | None = None,
        output_type: str = "",
        return_dict: bool = True,
    ) -> torch.Tensor:
        latents = self.components["model"](torch.randn(8, 3))
        if negative_prompt is None and self.leaves_out:
            return latents * num_inference_steps
        tokens = self.components["tokenizer"](
            negative_prompt or [""], padding="max_length", truncation=True, return_tensors="pt"
        )
        return latents + self.components["embedding"](tokens["input_ids"])[0]


@pytest.mark.parametrize("leaves_out", [True, False])
def test_no_negative_prompt_has_a_program_where_it_differs_from_an_empty_one(leaves_out: bool) -> None:
    programs = traced(Negative(leaves_out=leaves_out))
    assert [program.facts.variant for program in programs] == ["", *([NO_NEGATIVE] if leaves_out else [])]
    assert [item.name for item in programs[0].inputs] == ["negative_prompt"]
    assert all(program.inputs == () for program in programs[1:])


def test_a_pipeline_that_refuses_no_negative_prompt_is_built_with_a_warning() -> None:
    class Needs(Negative):
        def __call__(self, negative_prompt: Any = None, **request: Any) -> torch.Tensor:  # type: ignore[override]
            return super().__call__(negative_prompt=list(negative_prompt), **request)

    Needs.__call__.__signature__ = inspect.signature(Negative.__call__)  # type: ignore[attr-defined]
    with pytest.warns(DiffcWarning, match="Needs refuses a request without negative_prompt"):
        (program,) = traced(Needs(leaves_out=False))
    assert [item.name for item in program.inputs] == ["negative_prompt"]


def test_a_pipeline_that_refuses_to_run_without_guidance_is_built_with_a_warning() -> None:
    class Guided(Pipeline):
        def __call__(self, guidance_scale: float = 4.0, **request: Any) -> tuple[torch.Tensor]:  # type: ignore[override]
            narrow = guidance_scale <= 1
            (image,) = super().__call__(guidance_scale=guidance_scale, **request)
            return (self.components["model"](image[:, :2] if narrow else image),)

    Guided.__call__.__signature__ = inspect.signature(Pipeline.__call__)  # type: ignore[attr-defined]
    with pytest.warns(
        DiffcWarning, match="Guided refuses a request without guidance, and so will .*: model does not fit"
    ):
        (program,) = traced(Guided())
    assert program.guards == (Guard("guidance_scale", ">", 1.0),)


class OneText(Negative):
    """Refuse a list of texts, in code that is not the scheduler's."""

    def __init__(self) -> None:
        super().__init__(leaves_out=False)
        self.scheduler: Any = DDIMScheduler()

    def __call__(self, negative_prompt: Any = "", **request: Any) -> torch.Tensor:  # type: ignore[override]
        if isinstance(negative_prompt, list):
            raise TypeError("no lists of texts")
        return super().__call__(negative_prompt=[negative_prompt or ""], **request)


OneText.__call__.__signature__ = inspect.signature(Negative.__call__)  # type: ignore[attr-defined]


def test_a_text_is_handed_over_alone_where_a_pipeline_refuses_a_list() -> None:
    programs = traced(OneText())
    assert [str(item) for item in programs[0].inputs] == ["negative_prompt: text[1]"]
    with pytest.raises(CaptureError, match="the pipeline refuses: no lists of texts"):
        traced(OneText(), batch=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "0 steps"),
        ({"strength": 0.5}, "this task takes no strength"),
        ({"options": {"clip_skip": 2}}, "Pipeline takes no clip_skip here\n.*--set\n  fix: set one of .*eta"),
        ({"guidance": True}, "guidance_scale is True"),
        ({"options": {"generator": 1}}, "Pipeline takes no generator here"),
        ({"inputs": {"image": "picture"}}, "Pipeline takes neither images nor tensors as image"),
    ],
)
def test_a_request_that_the_pipeline_cannot_serve_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        traced(Pipeline(), **options)


def test_guidance_is_refused_where_the_pipeline_takes_none() -> None:
    with pytest.raises(BuildError, match="takes no guidance scale\n  at:  Negative\n  fix: leave --guidance out"):
        traced(Negative(leaves_out=False), guidance=3.0)


class Stages(Pipeline):
    """Sample in two stages of fixed lengths, each with a scheduler that remembers its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.second = self.scheduler
        del self.scheduler

    def __call__(self, second_steps: int = 2) -> torch.Tensor:  # type: ignore[override]
        latents = torch.randn(2, 3)
        for _ in range(second_steps):
            latents = self.second.step(latents, self.components["model"](latents))
        return latents


def test_a_pipeline_that_takes_no_number_of_steps_is_one_step() -> None:
    pipeline = Stages()
    assert default_steps(pipeline) == 1
    (program,) = traced(pipeline, options={"second_steps": 3})
    assert program.facts == Facts("text-to-image", 1, None)
    assert operators(program).count("model") == 3
    assert pipeline.second.index == 0, "the trace has schedulers of its own"
    with pytest.raises(BuildError, match="this pipeline takes no number of steps\n  at:  Stages"):
        traced(pipeline, steps=2)


def test_a_size_is_one_or_a_list() -> None:
    assert requested_sizes(None) == () and requested_sizes(64) == ((64, 64),)
    assert requested_sizes((64, 32)) == ((64, 32),)
    assert requested_sizes([(64, 32), (32, 64), (64, 32)]) == ((64, 32), (32, 64))


@pytest.mark.parametrize("size", [(64,), (64, 0), [(64, 64), 32], [(64, 64), (32,)], "64x64", ((64, 64.0),)])
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(BuildError, match="is no size"):
        requested_sizes(size)


def test_lists_become_tuples_where_an_argument_is_one() -> None:
    def call(
        a: tuple[int, int], b: list[int], c: Any = (0, 0), d: tuple[int, ...] | list[int] | None = None
    ) -> None: ...

    parameters = inspect.signature(call, eval_str=True).parameters
    assert [name for name, parameter in parameters.items() if takes_tuples(parameter)] == ["a", "c"]


def test_embeddings_take_the_place_of_their_text() -> None:
    parameters = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "guidance_scale")
    assert text_inputs(parameters, ()) == ["prompt", "negative_prompt"]
    assert text_inputs(parameters, ("prompt_embeds", "image")) == ["negative_prompt"]
    assert text_inputs(parameters, ("negative_prompt_embeds",)) == ["prompt"]
    assert text_inputs(("prompt",), ()) == ["prompt"]
