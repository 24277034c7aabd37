"""Record functions of texts for several images, and find the noise that images share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Program, Ref
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.noise_of_texts import with_noise_of_texts
from diffc.compiler.tracing.noise_rows import SEEDS, generators
from diffc.compiler.tracing.request_inputs import Text
from diffc.compiler.tracing.trace import trace

Noise = Callable[[int, int, list[torch.Generator | None]], torch.Tensor]
MODEL = nn.Linear(3, 3)


class Tokenizer:
    """Make one token of a text."""

    pad_token_id = 0

    def __call__(self, text: list[str], **_: object) -> dict[str, torch.Tensor]:
        """Return the tokens of texts."""
        return {"input_ids": torch.zeros(len(text), 3, dtype=torch.int64)}


TOKENIZER = Tokenizer()


def rows(count: int, used: list[torch.Generator | None]) -> torch.Tensor:
    """Return rows of one generator, or one row of each."""
    return torch.cat([torch.randn(count // len(used), 3, generator=generator) for generator in used])


def own(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return rows(texts * images, used)


def of_texts(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return rows(texts, used[:1]).repeat_interleave(images, 0)


def of_all(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return rows(1, used[:1]).repeat(texts * images, 1)


def of_images(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return rows(images, used[:1]).repeat(texts, 1)


def first_row(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return own(texts, images, used)[:1].expand(texts * images, 3)


def reversed_rows(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return own(texts, images, used).flip(0)


def image_by_image(texts: int, images: int, used: list[torch.Generator | None]) -> torch.Tensor:
    return torch.cat([rows(1, used[:1]) for _ in range(texts * images)])


def recorder(noise: Noise, *, lists: bool = True, most: int = 2) -> Callable[[int, int, bool], Program]:
    """Record a function that adds noise to noise of each image; it takes so many images of a text."""

    def record(texts: int, images: int, one_generator_each: bool) -> Program:
        used: list[torch.Generator | None] = [*generators()] if one_generator_each else [None]

        def sample(prompt: list[str]) -> torch.Tensor:
            if images > most or (len(prompt) > 1 and not lists):
                raise ValueError("too many")
            ids = TOKENIZER(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
            embedded = MODEL(ids.float()).repeat_interleave(images, 0)
            return embedded * MODEL(noise(len(prompt), images, used)) + own(len(prompt), images, used)

        components, tokenizers, prompt = {"model": MODEL}, {"tokenizer": TOKENIZER}, {"prompt": Text(texts)}
        return trace(sample, components, prompt, calls=ComponentCalls(), tokenizers=tokenizers, seeds=SEEDS)

    return record


def found(noise: Noise, *, batch: int = 1, lists: bool = True, most: int = 2) -> Program:
    """Find the noise of such a function."""
    record = recorder(noise, lists=lists, most=most)
    [program] = with_noise_of_texts([record(batch, 1, False)], lambda _, *counts: record(*counts))
    return program


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("lists", "most"), [(True, 2), (False, 2), (True, 1), (False, 1)])
def test_noise_of_each_image_follows_nothing(batch: int, lists: bool, most: int) -> None:
    program = found(own, batch=batch, lists=lists or batch > 1, most=most)
    assert [op.args for op in program.ops if op.operator == "noise"] == [(), ()]


def test_noise_that_the_images_of_a_text_share_follows_the_text() -> None:
    program = found(of_texts)
    first, second = (op for op in program.ops if op.operator == "noise")
    assert (first.args, second.args) == ((Ref("prompt"),), ())
    assert first.attr("each") is None, "the first seed of a list draws it"


@pytest.mark.parametrize("noise", [of_all, of_images, first_row, reversed_rows, image_by_image])
def test_noise_that_images_share_otherwise_is_refused(noise: Noise) -> None:
    with pytest.raises(CaptureError, match="main generates other noise for several images than for one"):
        found(noise)


def test_each_program_shares_noise_of_its_own() -> None:
    guided, unguided = recorder(own)(1, 1, False), replace(recorder(of_all)(1, 1, False), name="unguided")

    def record(program: Program, *counts: Any) -> Program:
        return recorder(own if program is guided else of_all)(*counts)

    assert with_noise_of_texts([guided], record) == [guided]
    with pytest.raises(CaptureError, match="unguided generates other noise"):
        with_noise_of_texts([guided, unguided], record)


def test_what_is_shared_by_images_that_the_function_samples_alone_is_no_reason_to_refuse_it() -> None:
    program = found(of_all, lists=False, most=1)
    assert [op.args for op in program.ops if op.operator == "noise"] == [(), ()]
    with pytest.raises(CaptureError, match="images share"):
        found(of_all, lists=False)
    with pytest.raises(CaptureError, match="images share"):
        found(of_all, most=1)
