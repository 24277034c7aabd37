"""A program whose sizes the request decides computes, staged and lowered, what its modules do, at every length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffc.compiler.driver.half_precision import half_precision
from diffc.compiler.errors import VerifyError
from diffc.compiler.graph.evaluate import evaluate
from diffc.passes.stage import stage
from diffc.runtime import load
from diffc.runtime.program.verify import Level, verify
from tests.one_graph import signal_to_noise
from tests.open_program import PROMPTS, open_program, sampled, tokens, write_bundle
from tests.tolerances import FLOAT16_SQNR, STAGED

pytestmark = pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning")
LAYERS, HOISTED = 7, 4
"""The linear layers of the denoiser, and those of them that see no latents: text, pool, step and modulation."""

NOISE = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(3))


def test_staging_hoists_values_of_the_request_in_their_open_sizes() -> None:
    [program] = stage((open_program(),))
    verify(program, Level.EXECUTABLE)
    early = {graph.stage: graph for graph in program.graphs if graph.stage}
    ports = "text: float32[1, L0, 16]"
    assert str(early["request_step"]) == f"denoiser_request_step({ports}) -> (request_step_out: float32[2, 48])"
    assert str(early["request"]) == f"denoiser_request({ports}) -> (request_0_out: float32[1, L0, 16])"
    called = [op for op in program.ops if op.operator == "denoiser_request"]
    assert [str(op.results[0].type) for op in called] == ["float32[1, L0, 16]", "float32[1, L1, 16]"], (
        "one for each text"
    )
    [denoiser] = [graph for graph in program.graphs if graph.name == "denoiser"]
    assert sum("linear" in str(node.target) for node in denoiser.body.graph.nodes) == LAYERS - HOISTED
    for prompts in PROMPTS:
        values = tokens(*prompts)
        [result] = evaluate(program, values | {"n": NOISE})
        torch.testing.assert_close(result, sampled(values, NOISE), rtol=0, atol=STAGED)


@pytest.mark.parametrize("target", ["ort-fp32", "ov-fp32"])
def test_bundles_are_right_at_every_length(target: str, tmp_path: Path) -> None:
    if target.startswith("ov"):
        pytest.importorskip("openvino")
    sampler = load(write_bundle(stage((open_program(),))[0], target, tmp_path / "x.diffc"))
    for prompt, negative in PROMPTS:
        result = sampler(prompt, negative_prompt=negative, seed=3, output="np")
        expected = sampled(tokens(prompt, negative), NOISE).numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=STAGED)
    prompts, negatives = (list(texts) for texts in zip(*PROMPTS[1:3], strict=True))
    result = sampler(prompts, negative_prompt=negatives, latents=NOISE.numpy(), output="np")
    expected = torch.cat([sampled(tokens(*prompts), NOISE) for prompts in PROMPTS[1:3]]).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=STAGED)


def test_engines_of_fixed_sizes_refuse_open_ones_by_name(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="engines of TensorRT serve fixed sizes only, and each request decides the"):
        write_bundle(open_program(), "trt-fp16", tmp_path / "x.diffc")


def test_graphs_compute_in_16_bits() -> None:
    [program], _ = half_precision(stage((open_program(),)), None, torch.float16, lambda _: None)
    for prompts in PROMPTS[1:4]:
        values = tokens(*prompts)
        [result] = evaluate(program, values | {"n": NOISE})
        assert signal_to_noise([result], [sampled(values, NOISE)]) > FLOAT16_SQNR
