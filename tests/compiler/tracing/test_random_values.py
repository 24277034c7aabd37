"""Trace samplers with every random operator, and compare with PyTorch what they compute of the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.trace import trace
from diffc.runtime.noise import sampled
from diffc.runtime.rng import Generator

SEED = 5


def probabilities() -> torch.Tensor:
    return torch.tensor([0.1, 0.5, 0.9]).expand(40, 3)


SAMPLERS: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: torch.normal(1.0, 2.0, (3, 2)),
    "normal in place": lambda: torch.zeros(3, 2).normal_(1.0, 2.0),
    "rand": lambda: torch.rand(40, 3),
    "rand of float64": lambda: torch.rand(40, 3, dtype=torch.float64),
    "rand_like": lambda: torch.rand_like(torch.rand(2, 17)),
    "uniform in place": lambda: torch.zeros(1, 40).uniform_(-1.5, 2.25),
    "exponential in place": lambda: torch.ones(40, 3).exponential_(),
    "exponential of a rate": lambda: torch.ones(40, 3).exponential_(2.0),
    "bernoulli": lambda: torch.bernoulli(probabilities()),
    "bernoulli of a probability": lambda: torch.zeros(40, 3).bernoulli_(0.3),
    "bernoulli in place": lambda: torch.zeros(40, 3).bernoulli_(probabilities()),
    "uniform of memory that is transposed": lambda: torch.zeros(8, 5).t().uniform_(),
    "uniform in channels_last": lambda: torch.rand_like(torch.rand(1, 3, 4, 4).permute(0, 2, 3, 1)),
    "uniform in columns": lambda: torch.cat([torch.zeros(3, 9)[:, 2:5].uniform_(), torch.rand(3, 3)]),
    "few normal values of a transposed tensor": lambda: torch.randn_like(torch.rand(3, 4).t()),
    "normal values like a dense tensor": lambda: torch.randn_like(torch.rand(8, 10)[:, :5]),
    "dropout of a transposed tensor": lambda: torch.nn.functional.dropout(torch.rand(7, 5).t()),
    "one sample of transposed weights": lambda: torch.multinomial(torch.rand(7, 40).t(), 1),
    "dropout": lambda: torch.nn.functional.dropout(torch.rand(40, 3)),
    "integers": lambda: torch.randint(-2, 9, (40, 3)),
    "integers of two words": lambda: torch.randint(2**40, (3, 2)).float() / 2**40,
    "integers like others": lambda: torch.randint_like(torch.rand(2, 17), 9),
    "one sample": lambda: torch.multinomial(torch.rand(40, 7), 1),
    "several samples": lambda: torch.multinomial(torch.rand(40, 7), 3),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_computes_what_it_does_in_pytorch(name: str) -> None:
    def sampler() -> Any:
        return {"values": torch.cat([SAMPLERS[name]().double().flatten(), torch.rand(3)])}

    program = trace(sampler, {}, {}, calls=ComponentCalls())
    generator = Generator(SEED)
    noises = {op.results[0].name: op for op in program.ops if op.operator == "noise"}
    values = {key: torch.from_numpy(sampled(op, generator, op.results[0].type.fixed)) for key, op in noises.items()}
    torch.manual_seed(SEED)
    torch.testing.assert_close(evaluate(program, values)[0], sampler()["values"], rtol=3e-7, atol=3e-7)


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "not contiguous": lambda: torch.randn_like(torch.rand(2, 3, 4, 5).permute(0, 2, 3, 1)),
    "writes random values into out": lambda: torch.multinomial(torch.rand(3, 7), 1, out=torch.zeros(3, 1).long()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_random_values_of_other_bits_are_refused(what: str) -> None:
    with pytest.raises(CaptureError, match=what):
        trace(lambda: {"values": REFUSED[what]()}, {}, {}, calls=ComponentCalls())
