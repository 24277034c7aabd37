"""Histograms against numpy's, whatever comes in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffc.compiler.quantization.observers import BINS, COUNTED, Histogram, Lines, Statistics


def drawn(*scales: float) -> list[torch.Tensor]:
    """Sample a batch of numbers for each scale."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(3000, generator=random, dtype=torch.float64).float() * scale for scale in scales]


def counted(batches: list[torch.Tensor]) -> Histogram:
    """Count some batches."""
    made = Histogram()
    for batch in batches:
        made.add(batch)
    return made


@pytest.mark.parametrize("scales", [(1.0,), (3.0, 1.0, 0.1), (0.01, 0.3, 20.0), (1e-8, 1e8)], ids=str)
def test_a_histogram_counts_as_numpy_does_over_the_last_range(scales: tuple[float, ...]) -> None:
    batches = drawn(*scales)
    found, whole = counted(batches), torch.cat(batches).numpy()
    wanted, edges = np.histogram(whole, BINS, (-found.limit, found.limit))
    assert (found.low, found.high) == (whole.min(), whole.max())
    assert np.abs(whole).max() <= found.limit < 2 * np.abs(whole).max() or len(scales) == 1
    # A number on an edge may fall to either side of it.
    assert np.abs(found.counts.numpy() - wanted).sum() <= 4 and found.counts.sum() == len(whole)
    assert np.allclose(found.centres().numpy(), (edges[1:] + edges[:-1]) / 2, rtol=0, atol=1e-6 * found.limit)


def test_zeros_before_all_else_are_counted_in_the_middle() -> None:
    found = counted([torch.zeros(10), torch.ones(3)])
    middle = found.counts[BINS // 2 - 1 : BINS // 2 + 1].sum()
    assert (float(middle), float(found.counts.sum()), found.low, found.high) == (10, 13, 0, 1)


@pytest.mark.parametrize("shape", [(2, 320, 30, 64), (2, 4096, 1280), (1, 5 * 7 * 11 * 13, 256)], ids=str)
@pytest.mark.parametrize("axis", [1, -1])
def test_of_a_large_tensor_all_channels_are_counted_alike(shape: tuple[int, ...], axis: int) -> None:
    channels = shape[axis]
    signs = (torch.arange(channels) % 4 - 1.5) / 1.5
    x = signs.reshape(-1, *[1] * (len(shape) - 2) if axis == 1 else []).expand(shape).clone()
    x.view(-1)[-1] = 3.0
    found = counted([x])
    assert COUNTED / 2 <= found.counts.sum() <= 2 * COUNTED and (found.low, found.high) == (-1, 3)
    parts = [found.counts[(found.centres() - sign).abs() < 0.01].sum() / found.counts.sum() for sign in signs[:4]]
    assert torch.allclose(torch.stack(parts), torch.tensor(0.25, dtype=torch.float64), atol=0.01)


def test_merged_counts_are_within_a_bin_of_those_together() -> None:
    a, b = drawn(0.3, 5.0)
    merged, together = counted([a]).merged(counted([b])), counted([b, a])
    assert (merged.low, merged.high, merged.limit) == (together.low, together.high, together.limit)
    assert merged.counts.sum() == together.counts.sum()
    below, wanted = merged.counts.cumsum(0), together.counts.cumsum(0)
    assert (below[1:] >= wanted[:-1]).all() and (below[:-1] <= wanted[1:]).all()


def test_merging_is_commutative_and_nothing_adds_nothing() -> None:
    a, b = (counted([each]) for each in drawn(0.3, 5.0))
    assert torch.equal(a.merged(b).counts, b.merged(a).counts)
    for same in (a.merged(Histogram()), Histogram().merged(a)):
        assert torch.equal(same.counts, a.counts) and (same.low, same.high, same.limit) == (a.low, a.high, a.limit)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (2, 7, 5)), (1, (2, 5, 3, 4))])
def test_the_largest_number_of_each_channel_and_step(axis: int, shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    calls = [(step, torch.randn(shape, generator=random)) for step in (0, 2, 0, 1)]
    made = Statistics(3, axis)
    for step, x in calls:
        made.add(x, step)
    others = tuple(at for at in range(len(shape)) if at != axis % len(shape))
    wanted = np.zeros((3, 5), np.float32)
    for step, x in calls:
        wanted[step] = np.maximum(wanted[step], np.abs(x.numpy()).max(others))
    assert made.largest is not None and np.array_equal(made.largest.numpy(), wanted)
    assert made.all().counts.sum() == 4 * np.prod(shape)
    assert [float(each.counts.sum()) for each in made.histograms] == [
        2 * np.prod(shape),
        np.prod(shape),
        np.prod(shape),
    ]


def test_lines_are_those_that_numpy_fits_however_the_pairs_come() -> None:
    x, noise = torch.stack(drawn(1.0, 20.0)) + 5, torch.stack(drawn(0.3, 0.1))
    y = torch.tensor([[0.5], [-2.0]]) * x + noise + 3
    lines = Lines()
    for part in range(3):
        lines.add(x[:, part::3], y[:, part::3])
    wanted = [np.polyfit(a.numpy().astype(np.float64), b.numpy(), 1) for a, b in zip(x, y, strict=True)]
    found = torch.stack([lines.factor(), lines.term(lines.factor())], 1)
    assert np.allclose(found.numpy(), wanted, rtol=1e-5)
