"""What leaves the loop of full-size denoisers, against docs/measured/stages.md and what others counted."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from benchmarks import checkpoints, whole_models
from benchmarks.stages import MODELS, program, row
from diffc.compiler.analysis.hoisting import Cut
from diffc.compiler.analysis.work import work_of_graph
from diffc.compiler.checkpoint.load import load

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "stages.md"
WHOLE = PAGE.with_name("whole_models.md")
TWO_LEVELS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


@pytest.mark.parametrize("name", ["SD 1.5", "DiT-XL/2"])
def test_the_page_says_what_the_pass_does(name: str) -> None:
    assert row(name, MODELS[name]) in PAGE.read_text(encoding="utf-8").splitlines(), "write it again: make stages"


def test_every_model_is_on_the_page() -> None:
    names = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text(encoding="utf-8").splitlines()[12:]]
    assert names == list(MODELS)


def test_a_unet_is_counted_as_its_paper_and_its_layers_say() -> None:
    graph, loop = program(MODELS["SD 1.5"])
    cut = Cut.of(graph, [loop])
    work = work_of_graph(graph, cut.ports)
    assert sum(p.numel() for p in cut.body.parameters()) == 859_520_964, "as diffusers counts the released UNet"
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
    assert work.parameters["request"] == sum(2 * 768 * width for width in widths), "keys and values of 16 attentions"
    resnets = [320] * 2 + [640] * 2 + [1280] * 4 + [1280] * 2 + [1280] * 6 + [640] * 3 + [320] * 3
    embedding = 320 * 1280 + 1280 + 1280 * 1280 + 1280
    assert work.parameters["step"] == embedding + sum(1280 * width + width for width in resnets)
    assert work.multiply_adds["request"] == 2 * 77 * work.parameters["request"], "two texts of 77 tokens"
    assert work.parameters["latent"] + work.parameters["step"] + work.parameters["request"] == 859_520_964


def test_every_whole_model_is_on_its_page() -> None:
    rows = [line for line in WHOLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == ["model", *whole_models.MODELS]
    assert {row.count(" | ") for row in rows} == {len(whole_models.COLUMNS) - 1}


def test_a_checkpoint_with_holes_loads_and_takes_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def described() -> checkpoints.Described:
        unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(32, 64), **TWO_LEVELS)
        return diffusers.DDPMPipeline, {"unet": unet, "scheduler": diffusers.DDPMScheduler()}, torch.bfloat16

    monkeypatch.setattr(checkpoints, "SHARD", 1 << 20)
    checkpoints.write(tmp_path / "model", described, checkpoints.no_values)
    unet = load(tmp_path / "model", lazy_weights=True).components["unet"]
    files = [*(tmp_path / "model" / "unet").glob("*.safetensors")]
    assert len(files) > 1, "several files, as published ones are"
    assert sum(file.stat().st_size for file in files) > 2 * sum(p.numel() for p in unet.parameters())
