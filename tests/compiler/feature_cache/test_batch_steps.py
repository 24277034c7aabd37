"""Steps that are given the same latents become one call, which gives what the single calls gave."""

from __future__ import annotations

import torch

from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.feature_cache.batch_steps import step_batches
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Program
from diffc.compiler.quantization.plan import find_layers
from diffc.passes.cache.faster_diffusion import faster_diffusion
from tests.compiler.feature_cache.test_apply_schedule import UNet, close, run, together


def decoders(program: Program) -> list[str]:
    """List the calls of the second piece, and of what was made of it."""
    return [op.operator for op in program.ops if op.operator.startswith("denoiser_piece_2")]


def test_steps_between_keys_are_one_call() -> None:
    programs = faster_diffusion(together(UNet(), 5, 3), interval=3)
    long, short = step_batches(programs)
    assert decoders(long) == ["denoiser_piece_2_3_steps", "denoiser_piece_2_2_steps"], "three steps, and the two left"
    assert decoders(short) == ["denoiser_piece_2_3_steps"]
    assert long.graph("denoiser_piece_2_3_steps") is short.graph("denoiser_piece_2_3_steps") is not None
    for found, single in zip((long, short), programs, strict=True):
        assert close(run(found), run(single))


def test_both_branches_of_guidance_have_their_own() -> None:
    (single,) = faster_diffusion(together(UNet(), 5, guided=True), interval=3)
    (found,) = step_batches([single])
    assert decoders(found) == ["denoiser_piece_2_3_steps"] * 2 + ["denoiser_piece_2_2_steps"] * 2
    assert close(run(found), run(single))


def test_layers_stay_layers() -> None:
    """Quantization must find in the batch what it finds in a single step."""
    programs = faster_diffusion(together(UNet(), 5), interval=5)
    names = [{layer.name for layer in find_layers(each)} for each in (programs, step_batches(programs))]
    assert names[0] == names[1]
    (graph,) = [g for g in denoisers(step_batches(programs)) if g.name.endswith("_steps")]
    assert torch.ops.aten.convolution.default not in {node.target for node in body_of(graph).graph.nodes}


def test_steps_with_latents_of_their_own_stay() -> None:
    programs = together(UNet(), 5)
    assert step_batches(programs) == programs
