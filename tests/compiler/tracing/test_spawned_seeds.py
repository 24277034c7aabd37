"""Follow the seeds of a Brownian tree: a program draws what torchsde draws for the request's seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchsde

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Op, Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.marked_generators import with_separate_noise
from diffc.compiler.tracing.noise_rows import SEEDS, generators
from diffc.compiler.tracing.trace import trace
from diffc.passes import NORMAL_FORM
from diffc.runtime.interpreter import linear
from diffc.runtime.noise import sampled
from diffc.runtime.rng import Generator
from tests.tolerances import NOISE

SEED = 2**40 + 7


def increments(seed: Any) -> torch.Tensor:
    """Return two increments of a tree, the second of which shares nodes with the first, and crosses the middle."""
    tree = torchsde.BrownianInterval(
        0.3, 500.0, size=(1, 4, 5), entropy=seed, tol=1e-6, pool_size=24, halfway_tree=True, dtype=torch.float32
    )
    return torch.cat([tree(0.31, 1.7), tree(1.7, 400.0)], 0)


def traced(function: Callable[[Any], Any]) -> Program:
    """Trace a function of the request's generator, and bring the program into normal form."""
    calls = ComponentCalls()
    program = trace(lambda: function(generators()[0]), {}, {}, calls=calls, seeds=SEEDS)
    return run(calls.graphs([with_separate_noise(program)])[0], NORMAL_FORM)


def computed(program: Program) -> np.ndarray:
    """Compute a program of noise, ``linear`` and ``concat``."""
    values = dict[str, Any]()
    for op in program.ops:
        values[op.results[0].name] = one(op, values)
    result: np.ndarray = values[program.outputs[0]]
    return result


def one(op: Op, values: dict[str, Any]) -> Any:
    """Compute an operation."""
    if op.operator == "noise":
        return sampled(op, Generator(SEED), op.results[0].type.fixed)
    if op.operator == "linear":
        return linear(op, values, {})
    return np.concatenate([values[name] for name in op.operands()], 0)


def test_increments_of_a_brownian_tree_are_those_of_torchsde() -> None:
    program = traced(lambda generator: increments(generator.initial_seed()))
    assert [op.operator for op in program.ops].count("noise") == 2
    np.testing.assert_allclose(computed(program), increments(SEED).numpy(), rtol=0, atol=NOISE * 100)


def of_word(generator: Any, draw: Callable[..., Any] = torch.randn, times: int = 1) -> torch.Tensor:
    """Draw from the generator of a spawned seed."""
    [word] = np.random.SeedSequence(generator.initial_seed(), spawn_key=(3,)).generate_state(1)
    spawned = torch.Generator().manual_seed(int(word))
    return sum(draw(1, 4, generator=spawned) for _ in range(times))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda g: of_word(g, times=2), "generates several tensors"),
        (lambda g: of_word(g, torch.rand), "is not normal"),
        (lambda g: torch.randn(1, generator=torch.Generator().manual_seed(g.initial_seed())), "the seed .* is read"),
        (lambda g: torch.randn(1, generator=g) * (g.initial_seed() + 1), "the seed .* is read"),
        (lambda g: torch.zeros(1) if g.initial_seed() == 3 else torch.ones(1), "the seed .* is read"),
        (lambda g: np.random.SeedSequence(g.initial_seed()).generate_state(1, np.uint64), "words of"),
    ],
)
def test_other_uses_of_a_seed_are_refused(function: Callable[[Any], Any], what: str) -> None:
    with pytest.raises(CaptureError, match=what):
        traced(function)


def test_sequences_of_other_seeds_stay() -> None:
    def function(generator: Any) -> torch.Tensor:
        return torch.randn(1, 4, generator=generator) + int(np.random.SeedSequence(5).generate_state(1)[0]) % 7

    assert f"{np.random.SeedSequence(5).generate_state(1)[0] % 7}.0" in str(traced(function))
