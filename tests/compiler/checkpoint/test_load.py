"""Loading: folders and files give the same pipeline, offline."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import DiffcWarning, LoadError
from tests.checkpoints import NEURAL, Tensors, edit_json, refusal, same_weights, weights_of

MODELS = Path(__file__).parents[3] / "examples" / "models"
CONTROLS = ("controlnet", "controlnet_1")


# What is accepted


def test_a_folder_loads_in_float32_for_inference(saved_pipeline: Path) -> None:
    pipeline = load(saved_pipeline)
    assert same_weights(pipeline, DiffusionPipeline.from_pretrained(saved_pipeline))
    for name in NEURAL:
        module = getattr(pipeline, name)
        assert module.dtype == torch.float32
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert pipeline.safety_checker is None


def test_a_single_file_gives_the_same_pipeline(single_file: Path, saved_pipeline: Path) -> None:
    pipeline = load(single_file)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert same_weights(pipeline, load(saved_pipeline))
    assert pipeline.tokenizer("ab").input_ids == load(saved_pipeline).tokenizer("ab").input_ids


def test_a_path_may_be_a_string(saved_pipeline: Path) -> None:
    assert load(str(saved_pipeline)).unet.config.sample_size == 8


def test_a_folder_beside_the_file_configures_it(
    original_weights: Tensors, saved_pipeline: Path, tmp_path: Path
) -> None:
    save_file(original_weights, tmp_path / "x.safetensors")
    skip_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(saved_pipeline, tmp_path / "x.config", ignore=skip_weights)
    assert same_weights(load(tmp_path / "x.safetensors"), load(saved_pipeline))


def test_weights_beside_the_file_are_not_its_own(
    single_file: Path, saved_pipeline: Path, original_weights: Tensors
) -> None:
    shutil.copytree(saved_pipeline, single_file.with_suffix(".config"))
    without = {name: t for name, t in original_weights.items() if not name.startswith("cond_stage_model")}
    save_file(without, single_file)
    assert "tiny.safetensors has no weights for text_encoder (CLIPTextModel)" in refusal(single_file)


def test_the_local_cache_configures_a_file(
    original_weights: Tensors, saved_pipeline: Path, tmp_path: Path, empty_cache: Path
) -> None:
    save_file(original_weights, tmp_path / "x.safetensors")
    repository = empty_cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    shutil.copytree(saved_pipeline, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert same_weights(load(tmp_path / "x.safetensors"), load(saved_pipeline))


@pytest.mark.parametrize("online", [True, False])
def test_only_online_may_fetch_a_configuration(
    original_weights: Tensors,
    saved_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    online: bool,
) -> None:
    asked: list[tuple[str, bool]] = []

    def fake_download(repository: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(saved_pipeline)

    monkeypatch.setattr(
        importlib.import_module("diffc.compiler.checkpoint.single_file"), "snapshot_download", fake_download
    )
    save_file(original_weights, tmp_path / "x.safetensors")
    load(tmp_path / "x.safetensors", online=online)
    assert asked == [("stable-diffusion-v1-5/stable-diffusion-v1-5", not online)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_weights_become_float32(saved_pipeline: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    DiffusionPipeline.from_pretrained(saved_pipeline, dtype=dtype).save_pretrained(tmp_path / "half")
    pipeline = load(tmp_path / "half")
    stored = load_file(weights_of(tmp_path / "half", "unet"))["conv_in.weight"]
    assert stored.dtype == dtype
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    assert torch.equal(pipeline.unet.conv_in.weight, stored.float())


def test_a_variant_is_used_where_there_is_nothing_else(saved_pipeline: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(saved_pipeline, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert not weights_of(tmp_path / "half", "unet").exists()
    assert load(tmp_path / "half").unet.dtype == torch.float32


def test_plain_weights_come_before_a_variant(saved_pipeline: Path, folder: Path) -> None:
    other = weights_of(folder, "unet").with_name("diffusion_pytorch_model.fp16.safetensors")
    save_file({"conv_in.weight": torch.zeros(1)}, other, metadata={"format": "pt"})
    assert same_weights(load(folder), load(saved_pipeline))


def test_shards_are_read(saved_pipeline: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(saved_pipeline).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 1
    assert same_weights(load(tmp_path / "shards"), load(saved_pipeline))


def test_a_component_that_is_null_is_left_out(folder: Path) -> None:
    edit_json(folder / "model_index.json", image_encoder=[None, None], feature_extractor=[None, None])
    assert load(folder).image_encoder is None


def test_a_safety_checker_is_left_out(folder: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(folder / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    with pytest.warns(DiffcWarning, match="left out, since it works on images after sampling: safety_checker"):
        assert load(folder).safety_checker is None


@pytest.mark.parametrize(
    ("task", "expected"),
    [("image-to-image", "StableDiffusionImg2ImgPipeline"), ("inpaint", "StableDiffusionInpaintPipeline")],
)
def test_a_task_chooses_the_pipeline(saved_pipeline: Path, task: str, expected: str) -> None:
    pipeline = load(saved_pipeline, task=task)
    assert type(pipeline).__name__ == expected
    assert same_weights(pipeline, load(saved_pipeline))


def test_a_sampler_replaces_the_scheduler(saved_pipeline: Path) -> None:
    pipeline = load(saved_pipeline, sampler="unipc", task="image-to-image")
    assert isinstance(pipeline.scheduler, diffusers.UniPCMultistepScheduler)
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


@pytest.mark.skipif(not (MODELS / "shapes-unet.safetensors").exists(), reason="the trained model is not built")
def test_the_trained_single_file_loads() -> None:
    pipeline = load(MODELS / "shapes-unet.safetensors")
    assert pipeline.unet.config.in_channels == 4
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.skipif(not (MODELS / "shapes-dit" / "model_index.json").exists(), reason="the trained model is not built")
def test_the_trained_folder_loads_with_a_solver_for_flows() -> None:
    pipeline = load(MODELS / "shapes-dit", sampler="dpmpp-2m")
    assert pipeline.scheduler.config.prediction_type == "flow_prediction"


def test_libraries_are_silent_and_then_as_before(
    saved_pipeline: Path, single_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    levels = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    load(saved_pipeline, sampler="euler")
    load(single_file)
    refusal(single_file.parent)
    assert capfd.readouterr() == ("", "")
    assert (diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()) == levels


# Several models of one kind, in folders of their own


@pytest.fixture
def controlled(folder: Path) -> Path:
    """Give the tiny pipeline two ControlNets."""
    torch.manual_seed(0)
    controls = [diffusers.ControlNetModel.from_unet(load(folder).unet) for _ in range(2)]
    for control in controls:
        torch.nn.init.normal_(control.conv_in.weight)
    parts = load(folder).components | {"controlnet": controls}
    diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def test_loads_all_models_that_one_component_holds(controlled: Path) -> None:
    wanted = [load_file(controlled / name / "diffusion_pytorch_model.safetensors") for name in CONTROLS]
    loaded = load(controlled).controlnet.nets
    assert not torch.equal(wanted[0]["conv_in.weight"], wanted[1]["conv_in.weight"])
    for net, tensors in zip(loaded, wanted, strict=True):
        assert torch.equal(net.conv_in.weight, tensors["conv_in.weight"])
    assert not any(net.training for net in loaded)


@pytest.mark.parametrize("name", CONTROLS)
def test_names_what_is_wrong_with_one_of_several_models(controlled: Path, name: str) -> None:
    damaged = controlled / name / "diffusion_pytorch_model.safetensors"
    tensors = load_file(damaged)
    del tensors["conv_in.bias"]
    save_file(tensors, damaged)
    assert f"{name} lacks" in refusal(controlled)
    edit_json(controlled / name / "config.json", _class_name="SomeNet")
    assert "has no model 'SomeNet'" in refusal(controlled)
    edit_json(controlled / name / "config.json", _class_name="MultiControlNetModel")
    assert "has no model 'MultiControlNetModel'" in refusal(controlled)
    (controlled / name / "config.json").write_text("[]")
    assert f"{name} has no configuration that names a class" in refusal(controlled)


# Options


def test_rejects_an_unknown_task(saved_pipeline: Path) -> None:
    with pytest.raises(LoadError, match="unknown task 'text-to-smell'\n  fix: choose one of text-to-image, "):
        load(saved_pipeline, task="text-to-smell")


def test_rejects_an_unknown_sampler(saved_pipeline: Path) -> None:
    with pytest.raises(LoadError, match="unknown sampler 'eular'\n  fix: did you mean euler"):
        load(saved_pipeline, sampler="eular")


def test_rejects_a_sampler_for_other_models(saved_pipeline: Path) -> None:
    assert "choose one of ddim, ddpm, dpmpp-2m" in refusal(saved_pipeline, sampler="flow-euler")
