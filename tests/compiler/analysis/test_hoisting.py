"""Values that are computed before the loop, chosen by hand for a tiny denoiser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.analysis import hoisting
from diffc.compiler.analysis.hoisting import Cut
from diffc.compiler.errors import DiffcWarning
from diffc.compiler.graph.export import export
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program


class Denoiser(nn.Module):
    """Have a layer of the timestep, one of the text, and one of the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.text, self.mix = nn.Linear(2, 3), nn.Linear(4, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor]:
        """Mix everything; the rectified text, which costs no product, meets the latents as it is."""
        return (self.mix(x + self.time(time) + self.text(text)) + torch.relu(text)[:, :3],)


def program_of(times: int) -> Program:
    """Call the denoiser at different times."""
    calls = "".join(f"x{n + 1}: float32[7, 3] = unet(x=x{n}, time=[{n}.0, 1.0], text=text)\n" for n in range(times))
    program = parse(
        "program main(text: float32[1, 4]) {"
        "graph unet(x: float32[7, 3], time: float32[1, 2], text: float32[1, 4]) -> (y: float32[7, 3])"
        f"x0: float32[7, 3] = noise() {calls} return x{times} }}"
    )
    example = (torch.zeros(7, 3), torch.zeros(1, 2), torch.zeros(1, 4))
    body = export("unet", Denoiser().requires_grad_(False), example)
    return replace(program, graphs=(replace(program.graphs[0], body=body),))


def hoisted(program: Program) -> dict[str, list[str]]:
    """Name the nodes that are computed before the loop, by stage."""
    cut = Cut.of(program.graphs[0], [program])
    return {stage: [node.name for node in nodes] for stage, nodes in cut.hoisted.items()}


def test_layers_of_the_timestep_and_of_the_text_leave_the_loop() -> None:
    """The rectified text stays: it saves no product, and keeping it takes memory in every run."""
    assert hoisted(program_of(2)) == {"build": [], "step": ["linear"], "request": ["linear_1"], "request_step": []}


def test_a_timestep_that_never_changes_is_known_at_build() -> None:
    assert hoisted(program_of(1)) == {"build": ["linear"], "step": [], "request": ["linear_1"], "request_step": []}


def test_a_table_larger_than_the_weights_that_it_replaces_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has 3 values, the layer 9: four rows are too many once there is no allowance."""
    monkeypatch.setattr(hoisting, "FREE_BYTES", 0)
    assert hoisted(program_of(3))["step"] == ["linear"]
    with pytest.warns(DiffcWarning, match="^unet computes linear in each of 4 steps: a table of it would take 0 MB$"):
        assert hoisted(program_of(4))["step"] == []


def test_the_ports_of_a_node_are_those_that_it_is_computed_from() -> None:
    program = program_of(2)
    cut = Cut.of(program.graphs[0], [program])
    (output,) = (node for node in cut.body.graph.nodes if node.op == "output")
    assert [port.name for port in cut.ports_of([output])] == ["x", "time", "text"]
    assert [port.name for port in cut.ports_of([output], cut.hoisted["step"])] == ["x", "text"]
    assert [port.name for port in cut.ports_of(cut.hoisted["request"])] == ["text"]
