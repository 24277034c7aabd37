"""Texts of small samplers, written by hand: what is tokenized, with which template, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Input, Type
from diffc.compiler.tracing.pipeline_errors import PipelineRefusal
from diffc.compiler.tracing.trace import capture
from diffc.runtime.program.verify import verify
from tests.small_models import OPTIONS, Words, operators
from tests.zoo.components import clip_tokenizer, qwen_tokenizer


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


def test_a_tokenizer_that_works_on_the_left_is_recorded_so() -> None:
    words = Words()
    words.padding_side, words.truncation_side = "left", "right"

    def sample(prompt: list[str]) -> torch.Tensor:
        return words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    assert str(capture(sample, {"words": words}).ops[0]).endswith('length=4, pad=9, padding_side="left")')
    words.padding_side, words.truncation_side = "right", "left"
    assert str(capture(sample, {"words": words}).ops[0]).endswith('length=4, pad=9, truncation_side="left")')


def test_an_option_that_no_operation_has_is_refused() -> None:
    class Others(Words):
        def __call__(
            self, text: Any, *_: Any, stride: int = 0, split_special_tokens: bool = False, **options: Any
        ) -> Any:
            return super().__call__(text, **options)

    words, options = Others(), {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    for more in ({"stride": 2}, {"split_special_tokens": True}):
        changed = options | more
        with pytest.raises(CaptureError, match=f"words is called with {next(iter(more))}=.*no operation for"):
            capture(lambda prompt: words(prompt, **changed)["input_ids"] * 2, {"words": words})  # noqa: B023
    with pytest.raises(CaptureError, match="words is called with argument 2='a pair'"):
        capture(lambda prompt: words(prompt, "a pair", **options)["input_ids"] * 2, {"words": words})
    assert capture(lambda prompt: words(prompt, **options, stride=0)["input_ids"] * 2, {"words": words}).ops


def test_a_tokenizer_may_return_no_mask() -> None:
    class Unmasked(Words):
        def __call__(self, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
            return {"input_ids": super().__call__(*args, **options)["input_ids"]}

    words, options = Unmasked(), {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    program = verify(capture(lambda prompt: words(prompt, **options)["input_ids"] * 2, {"words": words}))
    assert str(program.ops[0]) == 'ids0: int64[1, 4] = tokenize(prompt, tokenizer="words", length=4, pad=9)'


def test_a_text_stands_for_few_tokens() -> None:
    """Pipelines encode a text a second time, unpadded, and compare it with the first where that is shorter."""

    class Seen(Words):
        texts = list[Any]()

        def __call__(self, text: Any, **options: Any) -> dict[str, torch.Tensor]:
            self.texts.append(text)
            return super().__call__(text, **options)

    words, options = Seen(), {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    capture(lambda prompt: words([f"of {text}" for text in prompt], **options)["input_ids"] * 2, {"words": words})
    assert words.texts[0] == ["of a"]


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


def test_what_is_done_to_a_text_before_a_chat_template_is_recorded() -> None:
    tokenizer = qwen_tokenizer()
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 32, "return_tensors": "pt"}

    def sample(prompt: list[str]) -> torch.Tensor:
        texts = [{"type": "text", "text": text.replace("<image>", "")} for text in prompt]
        messages = [[{"role": "user", "content": [text]}] for text in texts]
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"] + 1

    program = verify(capture(sample, {"tokenizer": tokenizer}))
    replaced = next(op for op in program.ops if op.operator == "replace")
    assert (replaced.attr("old"), replaced.attr("new")) == ("<image>", "")
    tokenized = next(op for op in program.ops if op.operator == "tokenize")
    assert list(tokenized.reads()) == [replaced.results[0].name]
    assert str(tokenized.attr("template")).startswith("<|im_start|>user\n{}<|im_end|>")


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


def test_several_texts_of_one_call_are_padded_to_the_longest() -> None:
    words = Words()

    def sample(prompt: list[str], negative: list[str]) -> torch.Tensor:
        texts = [*prompt, *negative]
        ids = words(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        longest = words(texts, padding="longest", return_tensors="pt")["input_ids"]
        return ids * 2 if longest.shape[-1] < 9 else longest

    program = capture(sample, {"words": words})
    assert [op.operator for op in program.ops].count("tokenize") == 2


def test_a_text_that_is_repeated_is_tokenized_once() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([*prompt, *prompt], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    program = capture(sample, {"words": words})
    assert operators(program) == ["tokenize", "aten.cat.default"]
    assert str(program.ops[1]).endswith("aten.cat.default([ids0, ids0])")
    with pytest.raises(CaptureError, match="words is given 4 texts made of prompt"):  # in which order, nobody knows
        capture(sample, {"words": words}, batch=2)


def test_tokens_of_one_text_are_equal_and_those_of_two_are_not_compared() -> None:
    words = Words()

    def sample(prompt: list[str], negative_prompt: list[str]) -> torch.Tensor:
        ids, again = (words(prompt, **OPTIONS)["input_ids"] for _ in range(2))
        negative = words(negative_prompt, **OPTIONS)["input_ids"]
        assert torch.equal(ids, again) and not torch.equal(ids[:, :2], negative)
        again[:, 0] = 0
        for tensor in (negative, again):
            with pytest.raises(DataDependentOutputException):
                torch.equal(ids, tensor)
        return ids + again + negative

    capture(sample, {"words": words})


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
        ids = words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        longest = words(prompt, padding="longest", return_tensors="pt")["input_ids"]
        return ids if longest.shape[-1] < ids.shape[-1] else longest

    assert operators(capture(sample, {"words": words})) == ["tokenize"]


@pytest.mark.parametrize(
    "read",
    [
        lambda encoding: encoding["length"].sum(),
        lambda encoding: encoding["special_tokens_mask"].sum(),
        lambda encoding: len(encoding.tokens()),
        lambda encoding: sum(word is None for word in encoding.word_ids(0)),
        lambda encoding: sum(encoding[0].attention_mask),
    ],
)
def test_what_belongs_to_the_string_in_the_place_of_a_text_is_not_returned(read: Callable[[Any], Any]) -> None:
    tokenizer = clip_tokenizer()
    options: dict[str, Any] = {"max_length": 8, "padding": "max_length", "truncation": True, "return_tensors": "pt"}

    def sample(prompt: list[str]) -> torch.Tensor:
        encoding = tokenizer(prompt, **options, return_length=True, return_special_tokens_mask=True)
        return encoding["input_ids"] * read(encoding)

    with pytest.raises(PipelineRefusal):
        capture(sample, {"tokenizer": tokenizer})


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (lambda tokenizer, text: len(list(tokenizer.tokenize(text))), "but its tokens do not"),
        (lambda tokenizer, text: sum(1 for _ in tokenizer.tokenize(f"{text}!")), "something else for ''"),
        (lambda tokenizer, text: tokenizer.convert_tokens_to_ids(text), "tokenizer.convert_tokens_to_ids of prompt"),
        (
            lambda tokenizer, text: tokenizer.convert_tokens_to_ids(str(text)),
            "tokenizer.convert_tokens_to_ids of prompt",
        ),
        (lambda tokenizer, text: len(tokenizer.encode(text)), "tokenizer.encode of prompt"),
    ],
)
def test_numbers_of_a_text_that_are_not_its_tokens_are_refused(count: Callable[[Any, str], int], message: str) -> None:
    tokenizer = clip_tokenizer()
    options: dict[str, Any] = {"max_length": 8, "padding": "max_length", "truncation": True, "return_tensors": "pt"}

    def sample(prompt: list[str]) -> torch.Tensor:
        return tokenizer(prompt, **options)["input_ids"] * count(tokenizer, prompt[0])

    with pytest.raises(CaptureError, match=message):
        capture(sample, {"tokenizer": tokenizer})


def test_types_of_tokens_are_zero_for_any_text() -> None:
    class Typed(Words):
        def __call__(self, text: Any, **options: Any) -> Any:
            encoding = super().__call__(text, **options)
            return encoding | {"token_type_ids": torch.zeros_like(encoding["input_ids"])}

    words = Typed()

    def sample(prompt: list[str]) -> torch.Tensor:
        encoding = words(prompt, padding="max_length", truncation=True, return_tensors="pt")
        return encoding["input_ids"] + encoding["token_type_ids"]

    assert operators(capture(sample, {"words": words})) == ["tokenize", "aten.add.Tensor"]


def test_an_open_text_that_nothing_needs_is_dropped() -> None:
    class Cut(Words):
        def __call__(self, text: Any, padding: str = "", max_length: int = 4, **options: Any) -> Any:
            return super().__call__(text, padding, **options)

    words, options = Cut(), {"padding": "longest", "truncation": True, "max_length": 4, "return_tensors": "pt"}

    def sample(prompt: list[str], negative: list[str]) -> torch.Tensor:
        ids = words(prompt, **options)["input_ids"]
        words(negative, **options)["input_ids"].float().sum(1)
        return ids.float().sum(1, keepdim=True)

    program = capture(sample, {"words": words})
    assert [op.operator for op in program.ops].count("tokenize") == 1
    assert [length.name for length in program.lengths] == ["L0"]
