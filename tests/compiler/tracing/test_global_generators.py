"""Refuse generators of the whole process in a traced function: their values would be constants of every image."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffc.compiler import capture
from diffc.compiler.errors import CaptureError

USES: dict[str, Callable[[], object]] = {
    "random": random.random,
    "numpy.random": np.random.rand,
    "torch": lambda: torch.manual_seed(12345),
}


@pytest.mark.parametrize("name", USES)
def test_a_generator_of_the_process_is_refused(name: str) -> None:
    def sample() -> torch.Tensor:
        USES[name]()
        return torch.randn(1, 3, 4, 4)

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with pytest.raises(CaptureError, match=f"uses the generator of {name}, which no seed of a request reaches"):
            capture(sample, {})
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def test_a_generator_of_its_own_is_the_functions_business() -> None:
    def sample() -> torch.Tensor:
        return torch.randn(1, 3, 4, 4) * float(np.random.default_rng(0).random()) * random.Random(0).random()

    assert [op.operator for op in capture(sample, {}).ops] == ["noise", "aten.mul.Tensor", "aten.mul.Tensor"]
