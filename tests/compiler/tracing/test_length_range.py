"""Trace samplers that drop the padding of a text, and compare the programs with the samplers at every length."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Length
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.length_fit import LengthTrace, Misfit
from diffc.compiler.tracing.length_range import Counts, fit_over_lengths
from diffc.compiler.tracing.open_signatures import Span
from diffc.compiler.tracing.trace import capture
from tests.compiler.tracing.text_samples import (
    COMPONENTS,
    MOST,
    Encoder,
    Sample,
    cleared,
    encoded,
    encoded_again,
    evaluated,
    selected,
    traced,
    two,
    unpadded,
    words,
)


@pytest.mark.parametrize("sample", [selected, unpadded, cleared, encoded_again])
def test_every_length_is_exact(sample: Sample) -> None:
    program = traced(sample)
    assert Length("L0", 1, MOST) in program.lengths or Length("L0", 2, MOST) in program.lengths
    for count in (1, 2, 3, 5, 8, 14, 15, 30):
        text = "word " * count
        torch.testing.assert_close(evaluated(program, prompt=text), sample([text]))


def test_two_texts_have_lengths_of_their_own_and_share_a_graph() -> None:
    program = traced(two)
    assert [graph.component for graph in program.graphs].count("encoder") == 1
    for prompt, negative in (("", "a b c"), ("a b c d", "a"), ("a " * 30, "")):
        got = evaluated(program, prompt=prompt, negative=negative)
        torch.testing.assert_close(got, two([prompt], [negative]))


def bent(prompt: list[str]) -> torch.Tensor:
    hidden, _ = encoded(prompt, True)
    return hidden[:, :9].mean(1)


def test_a_size_that_stops_to_grow_bounds_the_length() -> None:
    assert Length("L0", 1, 9) in traced(bent).lengths


def squared(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, "max_length")
    return hidden.sum(1) * int(mask.sum()) ** 2


def looped(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, "max_length")
    return sum((hidden[:, at] for at in range(int(mask.sum()))), torch.zeros(()))


def rounded(prompt: list[str]) -> torch.Tensor:
    hidden, _ = encoded(prompt, True)
    return hidden[:, : hidden.shape[1] // 4 * 4].mean(1)


@pytest.mark.parametrize("sample", [squared, looped, rounded])
def test_what_is_not_affine_is_refused_with_its_line(sample: Sample) -> None:
    with pytest.raises(CaptureError, match="the number of tokens of a text decides what is computed") as refused:
        traced(sample)
    assert re.search(r"(test_length_range|text_samples)\.py:", str(refused.value.where))


def test_a_batch_is_refused() -> None:
    with pytest.raises(CaptureError, match="for a batch of 2"):
        capture(selected, COMPONENTS, batch=2)


def test_a_length_that_is_not_needed_leaves_the_program_as_it_is() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        hidden, mask = encoded(prompt, "max_length")
        return hidden if int(mask.sum()) < 100 else -hidden

    assert not traced(sample).lengths


def thresholded(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, "max_length")
    return hidden if int(mask.sum()) < 12 else -hidden


def test_a_branch_on_a_length_bounds_it_though_no_size_has_it() -> None:
    assert traced(thresholded).lengths == (Length("L0", 1, 11),)


class Branching(Encoder):
    """Compute by the number of tokens."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, count: int = 0) -> torch.Tensor:
        """Add the mean of all tokens if there are more than four."""
        return super().forward(ids, mask, count) if ids.shape[1] > 4 else self.embedding(ids)


branching = Branching().requires_grad_(False)


def test_a_component_that_branches_on_an_open_size_is_refused() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        tokens = words(prompt, return_tensors="pt", padding=True, truncation=True)
        return branching(tokens["input_ids"], tokens["attention_mask"]).sum(1)

    with pytest.raises(
        CaptureError, match="branching comput.* (something else where|by) .* size .*each request decides"
    ):
        capture(sample, COMPONENTS | {"branching": branching})


class Single(Encoder):
    """Compute something else for a single token: an export does not see that, since its open sizes are two or more."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, count: int = 0) -> torch.Tensor:
        """Add the mean of all tokens unless there is but one."""
        return super().forward(ids, mask, count) if ids.shape[1] != 1 else -self.embedding(ids)


single = Single().requires_grad_(False)


def test_a_component_that_branches_on_a_single_token_bounds_the_length() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        tokens = words(prompt, return_tensors="pt", padding=True, truncation=True)
        return single(tokens["input_ids"], tokens["attention_mask"]).sum(1)

    program = capture(sample, COMPONENTS | {"single": single})
    assert program.lengths[0] == Length("L0", 2, MOST)


class Heads(Encoder):
    """Split into heads: PyTorch copies them to merge them with the batch, unless there is a single token."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, count: int = 0) -> torch.Tensor:
        """Weight the tokens by all of their heads."""
        hidden = super().forward(ids, mask, count)
        heads = hidden.repeat(2, 1, 1).unflatten(2, (3, 1)).transpose(1, 2).reshape(6, -1, 1)
        return hidden * heads.square().sum(0)


heads = Heads().requires_grad_(False)


def test_a_copy_for_several_tokens_is_no_other_computation() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        tokens = words(prompt, return_tensors="pt", padding=True, truncation=True)
        return heads(tokens["input_ids"], tokens["attention_mask"]).sum(1)

    program = traced(sample, heads=heads)
    assert Length("L0", 1, MOST) in program.lengths
    for text in ("", "a", "one two three four"):
        torch.testing.assert_close(evaluated(program, prompt=text), sample([text]))


def test_the_longer_of_two_texts_is_refused_where_either_may_be_longer() -> None:
    def trace(counts: Counts) -> LengthTrace:
        line = f"v: float32[{max(counts.values())}, 9] = aten.slice.Tensor(n, 0, 0, {max(counts.values())})"
        program = parse(f"program p() {{ n: float32[20, 9] = noise() {line} return v }}")
        return LengthTrace(counts, program, ComponentCalls())

    bounds = {"L0": Span(2, MOST, 5), "L1": Span(9, MOST, 12)}
    with pytest.raises(Misfit, match="the number of tokens of a text decides what is computed"):
        fit_over_lengths(trace({"L0": 5, "L1": 12}), bounds, trace)


class Times(nn.Module):
    """Multiply by a tensor."""

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Return the product, in the type of the first."""
        return x * count


@pytest.mark.parametrize(("shape", "dtype"), [((), torch.int64), ((1,), torch.int32), ((1,), torch.float32)])
def test_a_length_is_a_tensor_of_a_component(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    times = Times()

    def sample(prompt: list[str]) -> torch.Tensor:
        hidden, mask = encoded(prompt, "max_length")
        return times(hidden, torch.full(shape, int(mask.sum()) + 2, dtype=dtype))

    program = traced(sample, times=times)
    for count in (1, 5, 14):
        text = "word " * count
        torch.testing.assert_close(evaluated(program, prompt=text), sample([text]))


def test_a_text_that_is_encoded_again_without_padding_is_refused() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        return encoded(prompt, True)[0].sum(1) + 2 * encoded(prompt, True)[0].sum(1)

    with pytest.raises(CaptureError, match="encoded again without padding") as refused:
        capture(sample, COMPONENTS)
    assert re.search(r"(test_length_range|text_samples)\.py:", str(refused.value.where))


class Scaled(Encoder):
    """Multiply by what a pipeline sets before a call."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: Any = [1]

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, count: int = 0) -> torch.Tensor:
        """Multiply by the sum of the factors."""
        return super().forward(ids, mask, count) * sum(self.factors)


STATES: dict[str, Callable[[Scaled, int], Any]] = {
    "a number": lambda module, count: module.factors.append(count),
    "a float": lambda module, count: module.factors.append(1 + 0.1 * count),
    "a small tensor": lambda module, count: module.factors.append(torch.tensor(count)),
    "a large tensor": lambda module, count: module.factors.append(torch.arange(300)[:, None, None].float() * count),
}


@pytest.mark.parametrize("state", STATES)
def test_a_component_whose_state_holds_the_length_is_refused(state: str) -> None:
    scaled = Scaled().requires_grad_(False)

    def sample(prompt: list[str]) -> torch.Tensor:
        tokens = words(prompt, return_tensors="pt", padding="max_length", truncation=True)
        scaled.factors = [1]
        STATES[state](scaled, int(tokens["attention_mask"].sum()))
        hidden = scaled(tokens["input_ids"], tokens["attention_mask"])
        return hidden.sum(1)

    with pytest.raises(CaptureError, match="the number of tokens of a text decides the state of scaled"):
        capture(sample, COMPONENTS | {"scaled": scaled})


def test_a_component_whose_state_notes_the_length_and_computes_without_it_is_exact() -> None:
    scaled = Scaled().requires_grad_(False)

    def sample(prompt: list[str]) -> torch.Tensor:
        tokens = words(prompt, return_tensors="pt", padding=True, truncation=True)
        scaled.noted = int(tokens["attention_mask"].sum())
        return scaled(tokens["input_ids"], tokens["attention_mask"]).sum(1)

    program = traced(sample, scaled=scaled)
    for text in ("", "word " * 9):
        torch.testing.assert_close(evaluated(program, prompt=text), sample([text]))


def count(prompt: list[str]) -> int:
    return int(words(prompt, return_tensors="pt", padding="longest")["input_ids"].shape[-1])


COUNTED: dict[str, Callable[[torch.Tensor, float, int], torch.Tensor]] = {
    "a factor": lambda hidden, guidance, n: hidden * (guidance * (1 + 0.1 * n)),
    "a sum": lambda hidden, guidance, n: hidden * (guidance + n / 1000),
    "a threshold": lambda hidden, guidance, n: hidden * (guidance + (n > 2)),
    "a long text": lambda hidden, guidance, n: hidden * (guidance + (n > 13)),
    "a root": lambda hidden, guidance, n: hidden * (abs(guidance) ** 0.5 * n),
    "a slice": lambda hidden, guidance, n: hidden[:, :n].sum(1) * guidance,
    "noise": lambda hidden, guidance, n: hidden + guidance * torch.randn(1, n, 1).sum(),
    "a loop": lambda hidden, guidance, n: hidden * guidance + sum(torch.randn(1) for _ in range(n)),
}


@pytest.mark.parametrize(("name", "is_guided"), [("a factor", False), *((name, True) for name in COUNTED)])
def test_a_number_of_tokens_without_the_tokens_is_refused(name: str, is_guided: bool) -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        return COUNTED[name](encoded(prompt, "max_length")[0], 4.0, count(prompt)) + torch.randn(1)

    def guided(prompt: list[str], guidance: float = 4.0) -> torch.Tensor:
        return COUNTED[name](encoded(prompt, "max_length")[0], guidance, count(prompt)) + torch.randn(1)

    with pytest.raises(CaptureError, match="but its tokens do not") as refused:
        capture(guided if is_guided else sample, COMPONENTS)
    assert re.search(r"(test_length_range|text_samples)\.py:", str(refused.value.where))


def test_a_number_of_tokens_that_decides_nothing_needs_traces_of_what_it_is_compared_with_only() -> None:
    counts = set[int]()

    def sample(prompt: list[str], guidance: float = 4.0) -> torch.Tensor:
        hidden, mask = encoded(prompt, "max_length")
        tokens = words(prompt, return_tensors="pt", padding="longest")["input_ids"]
        counts.add(tokens.fake.shape[-1])  # type: ignore[attr-defined]
        if tokens.shape[-1] > mask.shape[1]:
            warnings.append(f"{words.batch_decode(tokens[:, mask.shape[1] :])} is cut off")
        return hidden * guidance

    warnings = list[str]()
    assert not capture(sample, COMPONENTS).guards
    assert counts == {1, 6, MOST - 1, MOST + 1} and warnings


def test_the_text_of_tokens_is_printed_only() -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        hidden, mask = encoded(prompt, "max_length")
        tokens = words(prompt, return_tensors="pt", padding="longest")["input_ids"]
        return encoded(words.batch_decode(tokens), "max_length")[0] if tokens.shape[-1] > mask.shape[1] else hidden

    with pytest.raises(CaptureError, match="the tokens of tokens that are decoded"):
        capture(sample, COMPONENTS)


COMPARED: dict[str, Callable[[torch.Tensor], bool]] = {
    "cut": lambda tokens: tokens.shape[-1] > MOST,
    "an interval": lambda tokens: 9 < tokens.shape[-1] < 12,
    "a number": lambda tokens: tokens.size(1) == 9,
    "far more": lambda tokens: max(1, tokens.shape[1] - 40) > 1,
    "a remainder": lambda tokens: tokens.numel() % 5 == 3,
    "a part": lambda tokens: tokens[0, 1:-1].shape[0] == 8,
    "a half": lambda tokens: 4.4 < tokens.shape[1] / 2 < 5.1,
    "an integer": lambda tokens: int(tokens.shape[1]) == 10,
    "a key": lambda tokens: tokens.shape[1] in {10: 1.0},
    "rows": lambda tokens: len(tokens[0]) == 9,
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_a_number_of_tokens_is_compared_with_decides_where_it_is_traced(name: str) -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        hidden, _ = encoded(prompt, "max_length")
        tokens = words(prompt, return_tensors="pt", padding="longest")["input_ids"]
        return hidden * 0.5 if COMPARED[name](tokens) else hidden

    with pytest.raises(CaptureError, match="but its tokens do not"):
        capture(sample, COMPONENTS)
