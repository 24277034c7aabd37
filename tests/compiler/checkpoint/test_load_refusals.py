"""Loading: files and folders that are no model, and code that they bring, give one three-line error."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.safetensors_header import CONFIG_KEY
from tests.checkpoints import NEURAL, Tensors, edit_json, refusal, rewrite, weights_of

# Files that are no model


def test_rejects_what_does_not_exist(tmp_path: Path) -> None:
    assert "there is no" in refusal(tmp_path / "gone.safetensors")
    assert "diffc downloads no models" in refusal(Path("stable-diffusion-v1-5/stable-diffusion-v1-5"))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
def test_rejects_a_truncated_file(single_file: Path, share: float) -> None:
    content = single_file.read_bytes()
    single_file.write_bytes(content[: int(len(content) * share)])
    assert re.match("tiny.safetensors is (empty|damaged)", refusal(single_file))


def test_rejects_a_truncated_file_in_a_folder(folder: Path) -> None:
    path = weights_of(folder, "vae")
    path.write_bytes(path.read_bytes()[:-100])
    assert "diffusion_pytorch_model.safetensors is damaged" in refusal(folder)


def test_rejects_a_file_of_zeros(single_file: Path) -> None:
    single_file.write_bytes(bytes(single_file.stat().st_size))
    assert "tiny.safetensors starts with zeros" in refusal(single_file)


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin"])
def test_rejects_a_pickle(tmp_path: Path, suffix: str) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / f"x.{suffix}")
    assert "get the model as .safetensors" in refusal(tmp_path / f"x.{suffix}")


def test_rejects_a_folder_of_pickles(folder: Path) -> None:
    path = weights_of(folder, "unet")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert "unet comes as a pickle only: diffusion_pytorch_model.bin" in refusal(folder)


def test_rejects_a_lora(tmp_path: Path) -> None:
    names = ("unet.down_blocks.0.attn.lora_A.weight", "unet.down_blocks.0.attn.lora_B.weight")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    assert "x.safetensors is a LoRA (diffusers' or PEFT's names), not a model" in refusal(tmp_path / "x.safetensors")


def test_rejects_an_autoencoder_alone(original_weights: Tensors, tmp_path: Path) -> None:
    tensors = {name: t for name, t in original_weights.items() if name.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "x.safetensors")
    assert "x.safetensors is an autoencoder (VAE) only" in refusal(tmp_path / "x.safetensors")


def test_rejects_one_component_of_a_folder(saved_pipeline: Path) -> None:
    assert "is one component of a diffusers folder" in refusal(weights_of(saved_pipeline, "unet"))
    message = refusal(saved_pipeline / "unet")
    assert "unet has no model_index.json" in message and "give its parent" in message


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("cond_stage_model", "text_encoder (CLIPTextModel)"),
        ("first_stage_model", "vae (AutoencoderKL)"),
        ("model.diffusion_model", "unet (UNet2DConditionModel)"),
    ],
)
def test_rejects_a_file_without_a_component(
    single_file: Path, config_metadata: dict[str, str], prefix: str, named: str
) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(f"{prefix}.")]:
            del tensors[name]

    rewrite(single_file, drop, config_metadata)
    assert f"tiny.safetensors has no weights for {named}" in refusal(single_file)


@pytest.mark.usefixtures("empty_cache")
def test_rejects_a_file_without_configuration(original_weights: Tensors, tmp_path: Path) -> None:
    save_file(original_weights, tmp_path / "x.safetensors")
    message = refusal(tmp_path / "x.safetensors")
    assert f"brings no configuration: neither metadata key {CONFIG_KEY} nor x.config/" in message
    assert f"put a diffusers folder without weights at {tmp_path / 'x.config'}, or give --online" in message


def test_rejects_a_configuration_that_leaves_its_folder(single_file: Path, original_weights: Tensors) -> None:
    save_file(original_weights, single_file, metadata={CONFIG_KEY: json.dumps({"../model_index.json": "{}"})})
    assert "names a forbidden path: '../model_index.json'" in refusal(single_file)
    assert not (single_file.parent / "model_index.json").exists()


def test_rejects_a_configuration_without_an_index(single_file: Path, original_weights: Tensors) -> None:
    save_file(original_weights, single_file, metadata={CONFIG_KEY: json.dumps({"unet/config.json": "{}"})})
    assert "tiny.safetensors has no model_index.json" in refusal(single_file)


# Folders that are no model


def test_rejects_a_folder_without_an_index(tmp_path: Path) -> None:
    assert "is an empty folder" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert "is a bundle, not a checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"_class_name": null}', "\ud800"])
def test_rejects_a_broken_index(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert re.match("model_index.json (cannot be read|names no pipeline class)|the pipeline None", refusal(folder))


@pytest.mark.parametrize("name", ["NoSuchPipeline", "UNet2DConditionModel", "__version__"])
def test_rejects_an_unknown_pipeline(folder: Path, name: str) -> None:
    edit_json(folder / "model_index.json", _class_name=name)
    assert f"diffusers {diffusers.__version__} has no pipeline {name!r}" in refusal(folder)


def test_rejects_an_unknown_component_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", unet=["diffusers", "NoSuchModel"])
    assert "diffusers has no class 'NoSuchModel', which unet requires" in refusal(folder)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_rejects_a_folder_without_a_component(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    assert f"component {name} is missing\n" in refusal(folder)


@pytest.mark.parametrize("name", ["unet", "tokenizer", "scheduler"])
def test_rejects_an_index_without_a_component(folder: Path, name: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert f"component {name} is missing: StableDiffusionPipeline needs" in refusal(folder)


@pytest.mark.parametrize("name", NEURAL)
def test_rejects_a_component_without_weights(folder: Path, name: str) -> None:
    weights_of(folder, name).unlink()
    assert f"{name} has no weights\n" in refusal(folder)


@pytest.mark.parametrize("name", NEURAL)
def test_rejects_a_component_without_configuration(folder: Path, name: str) -> None:
    (folder / name / "config.json").unlink()
    assert name in refusal(folder)


def test_rejects_a_missing_shard(saved_pipeline: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(saved_pipeline).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    min((tmp_path / "shards" / "unet").glob("*.safetensors")).unlink()
    assert "unet cannot be loaded" in refusal(tmp_path / "shards")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("unet/config.json", "{"),
        ("vae/config.json", '{"block_out_channels": "many"}'),
        ("text_encoder/config.json", "[]"),
        ("scheduler/scheduler_config.json", "{"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "cubic"}'),
        ("tokenizer/tokenizer.json", "{"),
    ],
)
def test_rejects_a_broken_configuration(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    assert file.partition("/")[0] in refusal(folder)


def test_rejects_a_tokenizer_without_a_vocabulary(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    assert "tokenizer" in refusal(folder)


# Adapters


def test_refuses_an_adapter_of_another_model(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file({"image_proj.proj.weight": torch.zeros(4, 4), "ip_adapter.1.to_k_ip.weight": torch.zeros(4, 4)}, path)
    assert "image_encoder" in refusal(folder, ip_adapter=path)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "projection_dim": 32, "image_size": 16, "patch_size": 8}
    vision = transformers.CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "image_encoder")
    assert "the IP-Adapter does not fit StableDiffusionPipeline" in refusal(folder, ip_adapter=path)


def test_refuses_an_adapter_that_is_none(folder: Path, tmp_path: Path) -> None:
    assert "adapter.safetensors" in refusal(folder, ip_adapter=tmp_path / "adapter.safetensors")
    (tmp_path / "adapter.safetensors").write_bytes(b"no tensors")
    assert "adapter.safetensors" in refusal(folder, ip_adapter=tmp_path / "adapter.safetensors")


# Code that a checkpoint brings


def test_rejects_a_pipeline_of_its_own(folder: Path) -> None:
    trace = folder / "ran"
    (folder / "my_pipeline.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit_json(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])
    assert "is code of its own" in refusal(folder)
    assert not trace.exists()


@pytest.mark.parametrize("library", ["my_unet", "os", "diffc.runtime", "diffusers.pipelines", "..unet", ""])
def test_rejects_a_component_of_its_own(folder: Path, library: str) -> None:
    trace = folder / "ran"
    (folder / "unet" / "my_unet.py").write_text(f"open({str(trace)!r}, 'w')\n")
    edit_json(folder / "model_index.json", unet=[library, "MyUNet"])
    assert f"unet of {library!r} is code of its own" in refusal(folder)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../unet", "a/b", "unet\u0000"])
def test_rejects_a_component_name_that_is_a_path(folder: Path, name: str) -> None:
    edit_json(folder / "model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})
    assert "model_index.json names a component" in refusal(folder)
