"""Hold the inputs of a program's graphs on one trajectory, and store them on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors


@dataclass(frozen=True)
class Sample:
    """Hold the inputs of one call of a graph, in the order of its ports; ``step`` of ``of`` is the call's number."""

    graph: str
    step: int
    of: int
    prompt: int
    feeds: tuple[torch.Tensor, ...]

    def nearest(self, count: int) -> int:
        """Return the index nearest in time among ``count`` steps, which may be more or fewer than the sample's."""
        return round(self.step * (count - 1) / max(1, self.of - 1))


@dataclass(frozen=True)
class Trajectory:
    """Hold the trajectory of a prompt: the calls of graphs, the latents after each step, and the first output."""

    prompt: str
    seed: int
    samples: tuple[Sample, ...]
    steps: tuple[torch.Tensor, ...]
    output: torch.Tensor

    @property
    def latents(self) -> torch.Tensor:
        """Return the latents of the last step, or the output of a program that marks no steps."""
        return self.steps[-1] if self.steps else self.output


def _written(trajectory: Trajectory) -> bytes:
    """Write a trajectory; an input of several calls is written once."""
    tensors, names, index = dict[str, torch.Tensor](), dict[int, str](), []
    for sample in trajectory.samples:
        for tensor in sample.feeds:
            if id(tensor) not in names:
                names[id(tensor)] = str(len(names))
                tensors[names[id(tensor)]] = tensor.contiguous().clone()
        index.append([sample.graph, sample.step, sample.of, [names[id(tensor)] for tensor in sample.feeds]])
    tensors |= {f"step {at}": latents.contiguous() for at, latents in enumerate(trajectory.steps)}
    tensors["output"] = trajectory.output.contiguous()
    return bytes(write_tensors(tensors, {"index": json.dumps(index)}))


def _read(data: bytes | None, prompt: str, seed: int, number: int) -> Trajectory | None:
    """Read a trajectory; None where the entry is damaged."""
    if data is None:
        return None
    try:
        tensors = read_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        index = json.loads(header["__metadata__"]["index"])
        samples = [Sample(g, step, of, number, tuple(tensors[n] for n in names)) for g, step, of, names in index]
        steps = [tensors[f"step {at}"] for at in range(sum(name.startswith("step ") for name in tensors))]
        return Trajectory(prompt, seed, tuple(samples), tuple(steps), tensors["output"])
    except (SafetensorError, LookupError, TypeError, ValueError):
        return None
