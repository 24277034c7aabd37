"""Loading: folders and files give the same pipeline, offline; a bad checkpoint gives one three-line error."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.safetensors_header import CONFIG_KEY
from diffc.compiler.errors import DiffcWarning, LoadError

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "examples" / "models"
NEURAL = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

CONTROLS = ("controlnet", "controlnet_1")

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test where anything looks up a host, even if the library that did so hides its failure."""
    asked: list[object] = []

    def refuse(*request: object, **_: object) -> None:
        asked.append(request[:2])
        raise OSError("the network is closed in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the Hugging Face cache by an empty one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refusal(source: Path, **options: Any) -> str:
    """Load a checkpoint that must be refused in three lines, without a traceback in them, and give the message."""
    with pytest.raises(LoadError) as caught:
        load(source, **options)
    _, where, fix = str(caught.value).splitlines()
    assert where.startswith("  at:  ") and fix.startswith("  fix: ")
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def same_weights(one: Any, other: Any) -> bool:
    """Compare all weights of two pipelines bit for bit."""
    pairs = [(getattr(one, name).state_dict(), getattr(other, name).state_dict()) for name in NEURAL]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def weights_of(folder: Path, name: str) -> Path:
    """Find a component's weight file."""
    return folder / name / f"{NEURAL[name]}.safetensors"


def rewrite(path: Path, change: Change, metadata: dict[str, str] | None = None) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata or {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


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


# Tensors too many


def test_unknown_tensors_of_a_folder_are_named(folder: Path) -> None:
    rewrite(weights_of(folder, "unet"), lambda tensors: tensors.update(stray=torch.zeros(3)))
    rewrite(weights_of(folder, "text_encoder"), lambda tensors: tensors.update(other=torch.zeros(3)))
    with pytest.warns(DiffcWarning, match="tiny: no component uses 2 tensors: text_encoder.other, unet.stray$"):
        load(folder)


def test_unknown_tensors_of_a_file_are_named(single_file: Path, config_metadata: dict[str, str]) -> None:
    strays = {
        "alphas_cumprod": torch.zeros(1000),
        "cond_stage_model.stray": torch.zeros(3),
        "first_stage_model.encoder.stray": torch.zeros(3),
        "model.diffusion_model.stray": torch.zeros(3),
    }
    rewrite(single_file, lambda tensors: tensors.update(strays), config_metadata)
    with pytest.warns(DiffcWarning) as caught:
        load(single_file)
    assert [str(warning.message) for warning in caught] == [
        "tiny.safetensors: no component uses 4 tensors: " + ", ".join(sorted(strays))
    ]
    assert caught[0].filename == __file__


def test_only_a_few_of_many_unknown_tensors_are_named(folder: Path) -> None:
    strays = {f"stray{number:02}": torch.zeros(3) for number in range(40)}
    rewrite(weights_of(folder, "vae"), lambda tensors: tensors.update(strays))
    with pytest.warns(DiffcWarning, match=r"40 tensors: vae.stray00, .* vae.stray04, … \(35 more\)$"):
        load(folder)


def test_nothing_is_said_of_a_complete_checkpoint(saved_pipeline: Path, single_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved_pipeline)
        load(single_file)


# Tensors too few, of the wrong shape, or no numbers


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_rejects_a_folder_that_lacks_a_tensor(folder: Path, name: str, key: str) -> None:
    rewrite(weights_of(folder, name), lambda tensors: [tensors.pop(full) for full in [*tensors] if key in full])
    assert f"{name} lacks 1 tensor: {key}\n" in refusal(folder)


ORIGINAL_NAMES = [
    ("model.diffusion_model.time_embed.0.weight", "unet lacks 1 tensor: time_embedding.linear_1.weight"),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ("model.diffusion_model.output_blocks.1.2.conv.bias", "unet lacks 1 tensor: output_blocks.1.2.conv.bias"),
    ("first_stage_model.encoder.conv_in.weight", "vae lacks 1 tensor: encoder.conv_in.weight"),
    ("first_stage_model.decoder.up.0.block.0.conv1.weight", "decoder.up_blocks.1.resnets.0.conv1.weight"),
    (
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "text_encoder lacks 1 tensor: encoder.layers.0.self_attn.q_proj.weight",
    ),
]


@pytest.mark.parametrize(("original", "named"), ORIGINAL_NAMES, ids=lambda name: name[:40])
def test_rejects_a_file_that_lacks_a_tensor(
    single_file: Path, config_metadata: dict[str, str], original: str, named: str
) -> None:
    rewrite(single_file, lambda tensors: tensors.pop(original), config_metadata)
    message = refusal(single_file)
    assert named in message and "lacks 1 tensor" in message
    assert "diffc never makes up weights" in message


def test_counts_the_tensors_that_a_file_lacks(single_file: Path, config_metadata: dict[str, str]) -> None:
    def drop_biases(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("cond_stage_model") and n.endswith("bias")]:
            del tensors[name]

    rewrite(single_file, drop_biases, config_metadata)
    assert re.search(r"text_encoder lacks 17 tensors: \S+, \S+, \S+, \S+, \S+, … \(12 more\)\n", refusal(single_file))


@pytest.mark.parametrize(
    ("name", "key", "shapes"),
    [
        ("unet", "conv_in.weight", "[2, 3], its configuration says [16, 4, 3, 3]"),
        ("vae", "decoder.conv_in.weight", "[2, 3], its configuration says [32, 4, 3, 3]"),
        ("text_encoder", "embeddings.position_embedding.weight", "[2, 3], its configuration says [8, 32]"),
    ],
)
def test_rejects_shapes_that_disagree_with_the_configuration(folder: Path, name: str, key: str, shapes: str) -> None:
    def reshape(tensors: Tensors) -> None:
        (full,) = [full for full in tensors if full.endswith(key)]
        tensors[full] = torch.zeros(2, 3)

    rewrite(weights_of(folder, name), reshape)
    assert f"{name}.{key} has shape {shapes}\n" in refusal(folder)


@pytest.mark.parametrize(
    ("original", "named"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "unet.conv_in.weight has shape [2, 3], "),
        ("first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight has shape [2, 3], "),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            "text_encoder.final_layer_norm.weight has shape [2, 3], its configuration says [32]",
        ),
    ],
    ids=lambda name: name[:30],
)
def test_rejects_shapes_of_a_file_that_disagree(
    single_file: Path, config_metadata: dict[str, str], original: str, named: str
) -> None:
    rewrite(single_file, lambda tensors: tensors.update({original: torch.zeros(2, 3)}), config_metadata)
    assert named in refusal(single_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NEURAL)
def test_rejects_weights_that_are_not_finite(folder: Path, name: str, value: float) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[max(tensors)].view(-1)[0] = value

    rewrite(weights_of(folder, name), spoil)
    assert re.match(rf"{name}\.\S+ has 1 of \d+ numbers that are NaN or infinite\n", refusal(folder))


def test_rejects_not_finite_weights_of_a_file(single_file: Path, config_metadata: dict[str, str]) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    rewrite(single_file, lambda tensors: tensors[name].fill_(float("nan")), config_metadata)
    assert "unet.conv_in.weight has 576 of 576 numbers that are NaN or infinite" in refusal(single_file)


def test_rejects_weights_that_were_never_written(folder: Path) -> None:
    rewrite(weights_of(folder, "vae"), lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    assert "every weight of vae is zero" in refusal(folder)


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
    assert "x.safetensors is a LoRA (2 adapter tensors), not a model" in refusal(tmp_path / "x.safetensors")


def test_rejects_an_autoencoder_alone(original_weights: Tensors, tmp_path: Path) -> None:
    tensors = {name: t for name, t in original_weights.items() if name.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "x.safetensors")
    assert "x.safetensors holds an autoencoder (VAE) only" in refusal(tmp_path / "x.safetensors")


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
    assert "has no model_index.json" in refusal(tmp_path)


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
    assert "diffusers has no class 'NoSuchModel', which unet asks for" in refusal(folder)


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


# Options


def test_rejects_an_unknown_task(saved_pipeline: Path) -> None:
    with pytest.raises(LoadError, match="unknown task 'text-to-smell'\n  fix: choose one of text-to-image, "):
        load(saved_pipeline, task="text-to-smell")


def test_rejects_an_unknown_sampler(saved_pipeline: Path) -> None:
    with pytest.raises(LoadError, match="unknown sampler 'eular'\n  fix: did you mean euler"):
        load(saved_pipeline, sampler="eular")


def test_rejects_a_sampler_for_other_models(saved_pipeline: Path) -> None:
    assert "choose one of ddim, ddpm, dpmpp-2m" in refusal(saved_pipeline, sampler="flow-euler")
