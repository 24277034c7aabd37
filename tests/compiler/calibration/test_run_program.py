"""A request of a prompt and a seed has all that a program takes."""

from __future__ import annotations

import numpy as np
import torch

from diffc.compiler.calibration.run_program import ProgramRun, request_of
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Input, Op, Program, Type, Value
from tests.runtime.conftest import word_tokenizer

TEXTS = """program p(prompt: text[1]) {
    a: text[1] = replace(prompt, old="_", new=" ")
    b: text[1] = expand(a, tokenizer="words", words=[["red", "small red"]])
    i: int64[1, 5] = tokenize(b, tokenizer="words", length=5, pad=1)
    y: float32[1, 5] = linear(i; 1.0)
    return y
}
"""


def test_texts_are_changed_before_they_are_tokenized() -> None:
    run = ProgramRun(parse(TEXTS), {"words": word_tokenizer().encode()})
    assert torch.equal(run.trajectory("red_circle", 0, 0).output, torch.tensor([[0.0, 7, 3, 5, 1]]))
    assert torch.equal(run.trajectory("blue_circle", 0, 0).output, torch.tensor([[0.0, 4, 5, 1, 1]]))


def test_other_inputs_are_smooth_pictures_and_normal_numbers() -> None:
    inputs = (
        Input("prompt", Type("text", (2,))),
        Input("negative_prompt", Type("text", (2,))),
        Input("image", Type("float32", (1, 3, 8, 8)), is_image=True),
        Input("embedding", Type("float32", (1, 4000))),
        Input("guidance", Type("scalar"), 2.0),
    )
    noise = Op("noise", results=(Value("n", Type("float32", (1, 4))),))
    texts, arrays = request_of(Program("main", inputs, ops=(noise,), outputs=("n",)), "a", 0)
    assert texts == {"prompt": ["a", "a"], "negative_prompt": ["", ""]}
    assert {name: array.shape for name, array in arrays.items()} == {
        "n": (1, 4),
        "image": (1, 3, 8, 8),
        "embedding": (1, 4000),
    }
    image, embedding = arrays["image"], arrays["embedding"]
    assert image.min() == 0 and image.max() == 1 and np.abs(np.diff(image)).max() < 0.2
    assert abs(embedding.mean()) < 0.1 and abs(embedding.std() - 1) < 0.1
