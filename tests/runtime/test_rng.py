"""Compare the generator with PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffc.runtime.errors import RequestError
from diffc.runtime.rng import Generator
from tests.format.reference import Randn

# 3.6e-7 measured: torch's own vector logarithm, sine and cosine differ from NumPy's in the last place.
CLOSE = 1e-6


def torch_draws(seed: int, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 37, 64, 100, 16384])
def test_draws_what_torch_draws(count: int) -> None:
    [expected] = torch_draws(5, [(count,)])
    drawn = Generator(5).randn((count,))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("seed", [0, -1, 2**32 + 5])
def test_every_bit_is_defined(seed: int) -> None:
    generator, reference = Generator(seed), Randn(seed)
    for shape in [(4, 16, 16), (3,), (37,), (), (16,), (100,), (15,)]:
        assert generator.randn(shape).tobytes() == reference(*shape).tobytes()


def test_most_numbers_agree_to_the_last_bit() -> None:
    [expected] = torch_draws(0, [(4, 4, 32, 32)])
    assert np.mean(Generator(0).randn((4, 4, 32, 32)) == expected) > 0.5


def test_continues_the_stream_over_small_and_large_draws() -> None:
    shapes = [(3,), (4, 16), (1,), (), (37,), (5,), (2, 2), (1, 4, 8, 8), (7,), (100,), (1,)]
    generator = Generator(1234)
    for shape, expected in zip(shapes, torch_draws(1234, shapes), strict=True):
        np.testing.assert_allclose(generator.randn(shape), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**32 + 5, 2**63, 2**64 - 1, -1, -(2**63)])
def test_takes_the_seeds_that_torch_takes(seed: int) -> None:
    shapes = [(2,), (32,)]
    generator = Generator(seed)
    for shape, expected in zip(shapes, torch_draws(seed, shapes), strict=True):
        np.testing.assert_allclose(generator.randn(shape), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "1", True, None])
def test_refuses_other_seeds(seed: object) -> None:
    with pytest.raises(RequestError, match="seed is .*"):
        Generator(seed)  # type: ignore[arg-type]


SIZES = [(), (1,), (3,), (16,), (5, 7), (1, 3, 8, 8), (100_003,)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_values_are_those_of_torch(dtype: str) -> None:
    generator, reference = Generator(7), torch.Generator("cpu").manual_seed(7)
    for shape in SIZES:
        expected = torch.rand(shape, generator=reference, dtype=getattr(torch, dtype)).numpy()
        assert generator.uniform(shape, dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0, 10), (-5, 9), (0, 2**28 - 1), (0, 2**28), (-(2**31), 2**31), (0, 2**63 - 1), (-(2**63), 2**63 - 1)],
)
def test_integers_are_those_of_torch(low: int, high: int) -> None:
    generator, reference = Generator(7), torch.Generator("cpu").manual_seed(7)
    for shape in SIZES:
        expected = torch.randint(low, high, shape, generator=reference).numpy()
        assert generator.integers(shape, low, high).tobytes() == expected.tobytes()


def test_exponential_values_are_those_of_torch() -> None:
    generator, reference = Generator(7), torch.Generator("cpu").manual_seed(7)
    for shape in SIZES:
        expected = torch.empty(shape).exponential_(generator=reference).numpy()
        np.testing.assert_allclose(generator.exponential(shape), expected, rtol=2e-7, atol=0)


def test_kinds_of_noise_share_one_stream() -> None:
    generator, reference = Generator(7), torch.Generator("cpu").manual_seed(7)
    for _ in range(3):  # the sine that normal noise leaves stays over noise of other kinds
        np.testing.assert_allclose(generator.randn((3,)), torch.randn(3, generator=reference), rtol=0, atol=CLOSE)
        assert generator.uniform((5,)).tolist() == torch.rand(5, generator=reference).tolist()
        assert generator.integers((4,), 0, 9).tolist() == torch.randint(9, (4,), generator=reference).tolist()
