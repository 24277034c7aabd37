"""Weights stay in the checkpoint until they are read: what is read is what is stored, and memory stays as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from diffc.compiler import build
from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import (
    EAGER_ELEMENTS,
    SLICE,
    LazyWeight,
    Weight,
    make_lazy,
    materialize,
    materialized,
    postponed,
    read,
    weight_of,
)
from tests.zoo import ZOO
from tests.zoo.components import unet

WIDE = 128
"""Columns of a matrix that is larger than `EAGER_ELEMENTS`."""


def matrix(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make numbers that 16 bits hold, more of them than are read at once."""
    return torch.arange(SLICE + 3 * WIDE).view(-1, WIDE).remainder(251).sub(100).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_slices_in_order_are_the_whole(dtype: torch.dtype) -> None:
    weight = Weight(matrix(dtype), torch.float32)
    pieces = list(weight.slices())
    assert len(pieces) > 1 and max(map(len, pieces)) <= SLICE
    assert torch.equal(torch.cat(pieces).view(-1, WIDE), matrix())
    assert torch.equal(weight.read(), matrix())


def test_a_permuted_weight_is_read_in_its_new_order() -> None:
    weight = Weight(matrix(torch.bfloat16), torch.float32).permuted([1, 0])
    pieces = list(weight.slices())
    assert len(pieces) > 1
    assert torch.equal(torch.cat(pieces).view(WIDE, -1), matrix().T)
    assert torch.equal(weight.read(), matrix().T)


@pytest.mark.parametrize("source", [torch.zeros(()), torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 1, 0)])
def test_small_and_empty_weights_can_be_read(source: torch.Tensor) -> None:
    assert torch.equal(Weight(source, torch.float32).read(), source)
    assert torch.equal(torch.cat(list(Weight(source, torch.float32).slices())), source.view(-1))


def test_what_was_written_into_memory_outlives_the_release_of_its_pages(tmp_path: Path) -> None:
    save_file({"a": torch.ones(SLICE * 2)}, tmp_path / "a.safetensors")
    mapped = load_file(tmp_path / "a.safetensors")["a"]
    mapped[7] = 5.0
    assert sum(float(piece.sum()) for piece in Weight(mapped, torch.float32).slices()) == SLICE * 2 + 4
    assert mapped[7] == 5.0 and mapped[8] == 1.0


def test_conversions_wait_and_views_of_them_too() -> None:
    stored = matrix(torch.bfloat16)
    with postponed():
        wide = stored.to(torch.float32)
        part = wide.chunk(2)[1].t().contiguous()
        joined = torch.cat([wide, wide])
    assert isinstance(wide, LazyWeight) and isinstance(part, LazyWeight)
    assert wide.dtype == torch.float32 and part.stored.source.data_ptr() > stored.data_ptr()
    assert torch.equal(read(part), matrix().chunk(2)[1].t())
    assert not isinstance(joined, LazyWeight)
    assert torch.equal(joined, torch.cat([matrix(), matrix()]))


def test_loading_reads_no_large_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()

    def read_noted(weight: Weight) -> torch.Tensor:
        sizes.append(weight.source.numel())
        return weight.source.to(weight.dtype)

    monkeypatch.setattr("diffc.compiler.graph.lazy_weights.EAGER_ELEMENTS", 64)
    monkeypatch.setattr(Weight, "read", read_noted)
    for name in ("StableDiffusionPipeline", "FluxPipeline"):
        ZOO[name]().pipeline.to(torch.bfloat16).save_pretrained(tmp_path / name)
        load(tmp_path / name, lazy_weights=True)
    assert sizes
    assert max(sizes) <= 64


def test_writing_into_what_waits_is_refused() -> None:
    with postponed(), pytest.raises(RuntimeError, match="writes into a weight"):
        matrix(torch.bfloat16).to(torch.float32).mul_(2)


def test_only_large_weights_are_lent_and_tied_ones_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)).requires_grad_(False)
    module[1].weight = module[0].weight
    kept = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    make_lazy("model", module, "here")
    assert WIDE <= EAGER_ELEMENTS < WIDE * WIDE
    assert isinstance(module[0].weight, LazyWeight) and isinstance(module[0].weight, nn.Parameter)
    assert module[1].weight is module[0].weight
    assert not isinstance(module[0].bias, LazyWeight)
    assert torch.equal(read(module[0].weight), kept["0.weight"])
    materialize(module)
    assert module[1].weight is module[0].weight
    assert all(torch.equal(kept[key], tensor) for key, tensor in module.state_dict().items())


def test_a_module_is_in_memory_for_as_long_as_it_runs() -> None:
    module = nn.Linear(WIDE, WIDE).requires_grad_(False)
    wanted, x = module.weight.clone(), torch.ones(1, WIDE)
    make_lazy("model", module, "here")
    with pytest.raises(ValueError, match="in the block"), materialized(module):
        assert type(module.weight) is nn.Parameter and torch.equal(module.weight, wanted)
        torch.testing.assert_close(module(x), x @ wanted.T + module.bias)
        raise ValueError("in the block")
    assert isinstance(module.weight, LazyWeight) and torch.equal(read(module.weight), wanted)


def test_numbers_are_checked_when_they_are_read() -> None:
    module = nn.Linear(WIDE, WIDE).requires_grad_(False)
    module.weight[3, 4] = float("nan")
    make_lazy("model", module, "here")
    with pytest.raises(LoadError, match=r"model.weight has 1 of 16384 values that are NaN or infinite\n  at:  here"):
        read(module.weight)
    with pytest.raises(LoadError, match="model.weight"):
        list(weight_of(module.weight).slices(torch.float16))
    assert weight_of(torch.tensor([float("inf")])).read().isinf()


def test_a_pipeline_may_be_loaded_with_lazy_weights(saved_pipeline: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(saved_pipeline, dtype=torch.float16).save_pretrained(tmp_path / "half")
    lent, whole = (
        load(tmp_path / "half", lazy_weights=True).unet.state_dict(),
        load(tmp_path / "half").unet.state_dict(),
    )
    large = {key for key, tensor in whole.items() if tensor.numel() > EAGER_ELEMENTS}
    assert large and {key for key, tensor in lent.items() if isinstance(tensor, LazyWeight)} == set()
    kept = load(tmp_path / "half", lazy_weights=True).unet.state_dict(keep_vars=True)
    assert {key for key, tensor in kept.items() if isinstance(tensor, LazyWeight)} == large
    assert all(weight_of(kept[key]).source.dtype == torch.float16 for key in large)
    assert all(torch.equal(read(kept[key]), whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("StableDiffusionPipeline", torch.float16), pytest.param("FluxPipeline", torch.bfloat16, marks=pytest.mark.slow)],
)
def test_sixteen_bits_in_the_checkpoint_make_the_bundle_of_the_same_numbers(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = ZOO[name]().pipeline.to(dtype)
    half.save_pretrained(tmp_path / "half")
    half.to(torch.float32).save_pretrained(tmp_path / "wide")
    monkeypatch.setattr("diffc.compiler.graph.lazy_weights.EAGER_ELEMENTS", 64)
    bundles = [
        build(tmp_path / name, output=tmp_path / f"{name}.diffc", steps=[1], size=(16, 16)) for name in ("half", "wide")
    ]
    files = [
        {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        for bundle in bundles
    ]
    assert files[0].keys() == files[1].keys()
    different = [str(path) for path in files[0] if files[0][path] != files[1][path]]
    assert set(different) <= {"manifest.json", "report.html"}  # they name the source, and how long the build took


BUILD = """
import resource, sys
from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.driver import build
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build.build(sys.argv[1], sys.argv[3], sys.argv[2], steps=[1], size=(16, 16))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let go of pages when they must")
def test_a_build_needs_less_memory_than_the_model(tmp_path: Path) -> None:
    pipeline = ZOO["StableDiffusionPipeline"]().pipeline
    pipeline.unet = unet(block_out_channels=(640, 1280), attention_head_dim=64)
    pipeline.to(torch.bfloat16).save_pretrained(tmp_path / "large")
    stored = (tmp_path / "large" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    command = [sys.executable, "-c", BUILD, str(tmp_path / "large"), str(tmp_path / "x.diffc"), "ort-fp32"]
    peak = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    assert stored > 150 << 20
    assert peak < 2 * stored  # float32 weights alone take this much
