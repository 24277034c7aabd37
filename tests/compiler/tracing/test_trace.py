"""Small samplers, written by hand: what is recorded is what they do, and what cannot be recorded is refused by line."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Guard, Input, Program, Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Image, Text
from diffc.compiler.tracing.trace import capture, trace
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers

EXACT = 0.0


class Model(nn.Module):
    """Stand for a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3, 3)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """Mix the columns."""
        return torch.tanh(self.mix(sample)) * (1 if timestep is None else timestep)


class Words:
    """Stand for a tokenizer: the id of a word is its length."""

    pad_token_id = 9

    def __call__(
        self, text: str | list[str], padding: str = "", truncation: bool = False, return_tensors: str = ""
    ) -> dict[str, torch.Tensor]:
        """Give four ids for each text."""
        texts = [text] if isinstance(text, str) else text
        ids = torch.tensor([([len(word) for word in one.split()] + [9] * 4)[:4] for one in texts])
        return {"input_ids": ids, "attention_mask": (ids != 9).long()}


def same_as_torch(function: Callable[..., Any], **components: nn.Module) -> Program:
    """Capture a sampler; what the program computes must be what the sampler computes."""
    program = verify(capture(function, components))
    torch.manual_seed(0)
    with torch.no_grad():
        result = function()
    wanted = list(result) if isinstance(result, tuple) else [result]
    torch.manual_seed(0)
    noises = [torch.randn(op.results[0].type.shape) for op in program.ops if op.operator == "noise"]
    assert difference(numbers(program, noises), wanted) == EXACT
    return program


def operators(program: Program) -> list[str]:
    """List what is applied, in order."""
    return [op.operator for op in program.ops]


# What is recorded


def test_a_loop_unrolls_itself() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        for sigma in torch.linspace(1, 0, 3):
            latents = latents - sigma * model(latents, sigma)
        return latents

    program = same_as_torch(sample, model=model)
    assert operators(program) == ["noise", *["model", "aten.mul.Tensor", "aten.sub.Tensor"] * 3]
    assert [op.attr("timestep") for op in program.ops if op.operator == "model"] == [1.0, 0.5, 0.0]


def test_shapes_are_known_while_tracing() -> None:
    seen = []

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        wide = torch.cat([latents, latents], dim=1)
        seen.append((tuple(wide.shape), wide.dtype, wide.device.type, wide.dim(), len(wide)))
        return wide.reshape(-1)[: wide.shape[0]]

    same_as_torch(sample)
    assert seen[0] == ((2, 6), torch.float32, "cpu", 2, 2)


def test_draws_are_noise_in_their_order() -> None:
    def sample() -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.randn(2, 3)
        torch.randn(4)
        second = torch.randn_like(first)
        third = torch.randn((2, 3), generator=None, device="cpu", dtype=torch.float32)
        return first - second, third

    program = same_as_torch(sample)
    shapes = [op.results[0].type for op in program.ops if op.operator == "noise"]
    assert shapes == [Type("float32", shape) for shape in ((2, 3), (4,), (2, 3), (2, 3))]


def test_what_touches_nothing_symbolic_just_runs() -> None:
    def sample() -> torch.Tensor:
        schedule = torch.linspace(0, 1, 5).cumprod(0).sqrt()
        if schedule[1].item() < 1 and bool(schedule.isfinite().all()):
            schedule[0] = 2.0
        return torch.randn(5) * schedule

    program = same_as_torch(sample)
    assert operators(program) == ["noise", "aten.mul.Tensor"]
    assert program.tables[0].data is not None and program.tables[0].data[0] == 2.0


def test_equal_constants_share_a_table() -> None:
    def sample() -> torch.Tensor:
        return torch.randn(3) * torch.arange(3.0) + torch.arange(3.0)

    assert len(same_as_torch(sample).tables) == 1


def test_a_constant_that_changes_later_is_the_one_that_was_used() -> None:
    def sample() -> torch.Tensor:
        weights = torch.ones(3)
        latents = torch.randn(3) * weights
        weights.mul_(5)
        return latents + weights

    same_as_torch(sample)


def test_writing_in_place_makes_a_new_value() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        alias = latents
        before = latents * 1
        latents.mul_(3.0).add_(before, alpha=2)
        alias += 1
        return latents - before

    assert "aten.mul_.Tensor" not in operators(same_as_torch(sample))


def test_a_view_of_what_is_written_changes_with_it() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0]
        latents.mul_(3.0)
        return row + 1

    same_as_torch(sample)


def test_a_component_reads_a_view_as_it_is_now() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0:1]
        latents.mul_(3.0)
        return model(row)

    same_as_torch(sample, model=model)


def test_a_returned_view_is_as_it_is_now() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0:1]
        latents.mul_(3.0)
        return row

    same_as_torch(sample)


def test_an_operator_with_several_results() -> None:
    def sample() -> torch.Tensor:
        one, other = torch.randn(4, 3).chunk(2)
        values, _ = torch.sort(one - other, dim=-1)
        return values

    assert "aten.split.Tensor" in operators(same_as_torch(sample))


def test_a_component_that_calls_a_component_is_one_call() -> None:
    inner = Model()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.inner(sample) + self.inner(-sample)

    outer = Outer()

    def sample() -> torch.Tensor:
        return outer(inner(torch.randn(2, 3)))

    assert operators(same_as_torch(sample, inner=inner, outer=outer)) == ["noise", "inner", "outer"]


def test_a_component_keeps_its_form_of_return() -> None:
    class Pair(nn.Module):
        def forward(self, sample: torch.Tensor) -> dict[str, Any]:
            return {"half": sample / 2, "name": "pair", "more": [sample + 1]}

    pair = Pair()

    def sample() -> torch.Tensor:
        given = pair(sample=torch.randn(2, 3))
        assert given["name"] == "pair"
        return given["half"] - given["more"][0]

    (graph,) = same_as_torch(sample, pair=pair).graphs
    assert [port.name for port in graph.outputs] == ["half", "more_0"]


def test_the_latents_of_each_step_are_told() -> None:
    def sample(on_step: Callable[[Any], None]) -> torch.Tensor:
        latents = torch.randn(2, 3)
        for _ in range(2):
            latents = latents * 0.5
            on_step(latents)
        return latents

    assert operators(capture(sample, {})) == ["noise", *["aten.mul.Tensor", "step"] * 2]


# Texts


def text_program(function: Callable[..., Any], batch: int = 1) -> Program:
    """Capture a function of a text."""
    return verify(capture(function, {"words": Words()}, batch=batch))


def test_a_text_becomes_ids() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        given = words(prompt, padding="max_length", truncation=True, return_tensors="pt")
        return given["input_ids"] * given["attention_mask"]

    program = verify(capture(sample, {"words": words}, batch=2))
    assert program.inputs == (Input("prompt", Type("text", (2,))),)
    assert str(program.ops[0]) == (
        'ids0: int64[2, 4], mask0: int64[2, 4] = tokenize(prompt, tokenizer="words", length=4, pad=9)'
    )


def test_what_stands_around_a_text_is_its_template() -> None:
    words = Words()

    def sample(prompt: list[str], other: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        first = words([f"a photo of {text}." for text in prompt], **options)
        return first["input_ids"] + 1, words(other[0], **options)["input_ids"] + 1

    program = capture(sample, {"words": words})
    first, second = (op for op in program.ops if op.operator == "tokenize")
    assert first.attr("template") == "a photo of {}."
    assert second.attr("template") is None
    assert [list(op.reads()) for op in (first, second)] == [["prompt"], ["other"]]


def test_a_text_of_the_sampler_itself_is_a_constant() -> None:
    words = Words()

    def sample() -> torch.Tensor:
        ids = words("a constant", padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return torch.randn(4) * ids[0]

    assert operators(capture(sample, {"words": words})) == ["noise", "aten.mul.Tensor"]


def test_several_texts_of_one_call_are_tokenized_apart() -> None:
    words = Words()
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}

    def sample(prompt: list[str], other: list[str]) -> torch.Tensor:
        return words([*prompt, "a constant", *other], **options)["input_ids"]

    program = verify(capture(sample, {"words": words}))
    assert operators(program) == ["tokenize", "tokenize", "aten.cat.default"]
    [table] = program.tables
    assert table.data is not None
    assert table.data.tolist() == [[1, 8, 9, 9]]
    assert str(program.ops[2]) == f"v0: int64[3, 4] = aten.cat.default([ids0, {table.name}, ids1])"


def test_a_text_that_is_repeated_is_tokenized_once() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([*prompt, *prompt], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    program = capture(sample, {"words": words})
    assert operators(program) == ["tokenize", "aten.cat.default"]
    assert str(program.ops[1]).endswith("aten.cat.default([ids0, ids0])")
    with pytest.raises(CaptureError, match="words is given 4 texts made of prompt"):  # in which order, nobody knows
        capture(sample, {"words": words}, batch=2)


def test_a_fixed_text_is_no_template_whatever_it_says() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        fixed = words("diffc0 and diffc1", **options)["input_ids"]
        return words(prompt, **options)["input_ids"] + fixed

    [tokenize] = [op for op in capture(sample, {"words": words}).ops if op.operator == "tokenize"]
    assert tokenize.attr("template") is None


@pytest.mark.parametrize(
    "options", [{"padding": True, "truncation": True}, {"padding": "max_length"}, {"truncation": True}, {}]
)
def test_tokens_whose_number_the_text_decides_are_refused_by_line(options: dict[str, Any]) -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        ids = words(prompt, return_tensors="pt", **options)["input_ids"]
        return ids * 2

    with pytest.raises(CaptureError, match="the text would decide the shape") as refused:
        capture(sample, {"words": words})
    assert 'ids = words(prompt, return_tensors="pt", **options)["input_ids"]' in str(refused.value.where)
    assert 'padding="max_length"' in str(refused.value.fix)


def test_tokens_that_nothing_needs_may_have_any_number() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        longest = words(prompt, padding="longest", return_tensors="pt")["input_ids"]
        ids = words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return ids if longest.shape[-1] > 0 else longest

    assert operators(capture(sample, {"words": words})) == ["tokenize"]


# Numbers


def guided(model: nn.Module) -> Callable[..., torch.Tensor]:
    """Give a sampler with guidance."""

    def sample(guidance: float = 4.0) -> torch.Tensor:
        latents = torch.randn(2, 3)
        one, other = model(latents), model(2 * latents)
        return one + guidance * (other - one) if guidance > 1 else one

    return sample


def test_a_number_of_the_request_is_followed() -> None:
    model = Model()
    program = verify(capture(guided(model), {"model": model}))
    assert program.inputs == (Input("guidance", Type("scalar"), 4.0),)
    assert program.guards == (Guard("guidance", ">", 1.0),)
    noises = draws(program)
    for guidance in (1.5, 4.0, 30.0):
        torch.manual_seed(0)
        one, other = (numbers(program, noises, guidance=g)[0] for g in (guidance, 4.0))
        with torch.no_grad():
            a, b = model(noises[0]), model(2 * noises[0])
        assert torch.allclose(one, a + guidance * (b - a), rtol=1e-5, atol=1e-6)
        assert guidance == 4.0 or not torch.equal(one, other)


def test_a_number_that_goes_through_a_curve_is_fixed() -> None:
    def sample(guidance: float = 4.0) -> torch.Tensor:
        return torch.randn(3) * torch.tensor(float(guidance)).sin()

    assert capture(sample, {}).guards == (Guard("guidance", "==", 4.0),)


def test_a_number_that_bounds_a_clamp_is_fixed() -> None:
    def sample(limit: float = 2.0) -> torch.Tensor:
        return torch.randn(3).clamp(-limit, limit)

    assert capture(sample, {}).guards == (Guard("limit", "==", 2.0),)


def test_the_range_of_a_picture_answers_questions_about_its_numbers() -> None:
    def sample(image: torch.Tensor) -> torch.Tensor:
        if image.min().item() < 0 or image.max().item() > 1:
            raise ValueError("out of range")
        return image + torch.randn(image.shape)

    made = trace(sample, {}, {"image": Image((1, 3, 4, 4))}, calls=ComponentCalls())
    assert made.guards == ()

    def asks(image: torch.Tensor) -> torch.Tensor:
        return image if image.mean().item() > 0.5 else -image

    with pytest.raises(CaptureError, match="between 0.0 and 1.0 is compared with 0.5"):
        trace(asks, {}, {"image": Image((1, 3, 4, 4))}, calls=ComponentCalls())


def test_a_number_that_changes_the_program_is_fixed() -> None:
    def sample(times: float = 2.0) -> torch.Tensor:
        latents = torch.randn(3)
        for _ in range(int(times)):
            latents = latents.abs()
        return latents

    assert capture(sample, {}).guards == (Guard("times", "==", 2.0),)


# Refusals, each with this file, the line and its source


def reads_an_item(x: torch.Tensor) -> Any:
    return x * x.sum().item()  # here


def reads_a_float(x: torch.Tensor) -> Any:
    return x * float(x[0, 0])  # here


def branches(x: torch.Tensor) -> Any:
    return x if x.sum() > 0 else -x  # here


def asks_for_truth(x: torch.Tensor) -> Any:
    return x * bool((x > 0).all())  # here


def lists(x: torch.Tensor) -> Any:
    return torch.randn(len(x.tolist()))  # here


def leaves_torch(x: torch.Tensor) -> Any:
    return torch.from_numpy(x.numpy())  # here


def finds(x: torch.Tensor) -> Any:
    return x.nonzero()  # here


def writes_into_a_constant(x: torch.Tensor) -> Any:
    result = torch.zeros(2, 3)
    result[0] = x[0]  # here
    return result


def draws_uniformly(x: torch.Tensor) -> Any:
    return x + torch.rand(2, 3)  # here


def drops_out(x: torch.Tensor) -> Any:
    return nn.functional.dropout(x)  # here


def draws_doubles(x: torch.Tensor) -> Any:
    return x + torch.randn(2, 3, dtype=torch.float64)  # here


def draws_into(x: torch.Tensor) -> Any:
    return x.normal_()  # here


def disagrees(x: torch.Tensor) -> Any:
    return x + torch.ones(7)  # here


def raises(x: torch.Tensor) -> Any:
    raise ValueError("no such mode")  # here


REFUSALS: Mapping[Callable[..., Any], str] = {
    reads_an_item: "asks a symbolic value for a number",
    reads_a_float: "asks a symbolic value for a number",
    branches: "asks a symbolic value for a number",
    asks_for_truth: "asks a symbolic value for a number",
    lists: "",
    leaves_torch: "",
    finds: "asks a symbolic value for a number",
    writes_into_a_constant: "into a constant",
    draws_uniformly: "aten.rand.default draws numbers that are not normal",
    drops_out: "draws numbers that are not normal",
    draws_doubles: "aten.randn.default draws torch.float64",
    draws_into: "draws numbers that are not normal",
    disagrees: "the pipeline refuses: ",
    raises: "the pipeline refuses: no such mode",
}


@pytest.mark.parametrize("refused", REFUSALS, ids=lambda function: function.__name__)
def test_refuses_with_the_line_of_the_sampler(refused: Callable[..., Any]) -> None:
    def sample() -> Any:
        return refused(torch.randn(2, 3))

    with pytest.raises(CaptureError) as caught:
        capture(sample, {})
    file, line, source = re.fullmatch(r"(.+?):(\d+): (.+)", caught.value.where or "").groups()  # type: ignore[union-attr]
    assert Path(file) == Path(__file__)
    assert source.endswith("# here") and linecache.getline(file, int(line)).strip() == source
    assert 0 < int(line) - refused.__code__.co_firstlineno < 3
    assert REFUSALS[refused] in caught.value.what
    assert caught.value.fix


def test_refuses_a_sampler_that_returns_no_value() -> None:
    with pytest.raises(CaptureError, match="returns nothing that depends on the request or on noise"):
        capture(lambda: torch.zeros(3), {})


def test_refuses_a_value_that_outlives_its_trace() -> None:
    kept = []

    def sample() -> torch.Tensor:
        kept.append(torch.randn(3))
        return kept[0]

    capture(sample, {})
    with pytest.raises(CaptureError, match="reaches a symbolic value after its trace has ended"):
        kept[0] + 1


# State


@pytest.mark.parametrize("fails", [False, True])
def test_components_are_as_they_were(fails: bool) -> None:
    model, words = Model(), Words()
    hooked = Model()
    hooked.forward = hooked.forward  # type: ignore[method-assign]
    before = hooked.__dict__["forward"]

    def sample(prompt: list[str]) -> torch.Tensor:
        words(prompt, return_tensors="pt")
        latents = hooked(model(torch.randn(2, 3)))
        return latents * latents[0, 0].item() if fails else latents

    components = {"model": model, "same": model, "hooked": hooked, "words": words}
    if fails:
        with pytest.raises(CaptureError):
            capture(sample, components)
    else:
        capture(sample, components)
    assert not {"forward", "encode", "decode"} & model.__dict__.keys()
    assert hooked.__dict__["forward"] is before
    assert type(words) is Words
    assert torch.is_grad_enabled()
    assert type(torch.randn(2)) is torch.Tensor
    assert model(torch.ones(1, 3)).shape == (1, 3)


def test_a_program_may_be_traced_before_its_graphs_are_made() -> None:
    model = Model()
    program = trace(
        lambda prompt: model(torch.randn(1, 3)), {"model": model}, {"prompt": Text()}, calls=ComponentCalls()
    )
    assert program.graphs == () and operators(program) == ["noise", "model"]


def test_a_component_may_be_moved_to_the_type_that_it_has() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        model.to(dtype=torch.float32)
        return model(torch.randn(2, 3))

    same_as_torch(sample, model=model)


def test_a_component_that_is_cast_is_refused() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        return model.to(torch.float16)(torch.randn(2, 3))

    with pytest.raises(CaptureError, match=r"casts model to torch\.float16"):
        capture(sample, {"model": model})
