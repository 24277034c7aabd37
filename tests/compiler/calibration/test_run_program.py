"""A request of a prompt and a seed has all that a program takes."""

from __future__ import annotations

import numpy as np

from diffc.compiler.calibration.run_program import request_of
from diffc.compiler.ir.program import Input, Op, Program, Type, Value


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
