"""Trajectories are written and read; entries that are damaged are not read."""

from __future__ import annotations

import pytest
import torch

from diffc.compiler.calibration.trajectory import Sample, Trajectory, _read, _written


def trajectory() -> Trajectory:
    shared = torch.arange(4.0)
    samples = tuple(Sample("unet", step, 3, 5, (shared, torch.tensor([step]))) for step in range(3))
    return Trajectory("a circle", 7, samples, (torch.zeros(2), torch.ones(2)), torch.full((2,), 0.5))


def test_what_was_written_is_read() -> None:
    read = _read(_written(trajectory()), "a circle", 7, 5)
    assert read is not None and (read.prompt, read.seed) == ("a circle", 7)
    assert [(s.graph, s.step, s.of, s.prompt) for s in read.samples] == [("unet", step, 3, 5) for step in range(3)]
    for sample, original in zip(read.samples, trajectory().samples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(sample.feeds, original.feeds, strict=True))
    assert torch.equal(read.latents, torch.ones(2)) and torch.equal(read.output, trajectory().output)


def test_a_tensor_of_several_calls_is_written_once() -> None:
    large = torch.zeros(10_000)
    samples = tuple(Sample("unet", step, 8, 0, (large,)) for step in range(8))
    assert len(_written(Trajectory("", 0, samples, (), torch.zeros(1)))) < 2 * large.nbytes


@pytest.mark.parametrize("cut", [0, 7, 40, -3])
def test_a_damaged_entry_is_not_read(cut: int) -> None:
    assert _read(_written(trajectory())[:cut], "a circle", 7, 5) is None
    assert _read(None, "a circle", 7, 5) is None


def test_the_nearest_place_keeps_both_ends() -> None:
    places = [Sample("unet", step, 5, 0, ()).nearest(3) for step in range(5)]
    assert (places[0], places[-1]) == (0, 2) and places == sorted(places)
    assert Sample("unet", 0, 1, 0, ()).nearest(4) == 0


def test_without_steps_the_latents_are_the_output() -> None:
    assert torch.equal(Trajectory("", 0, (), (), torch.ones(1)).latents, torch.ones(1))
