"""Test the shipped models: they fit in their size, load with the reference libraries and agree on tokens."""

import json
import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from checker import accuracy  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402
from evaluate import frechet_distance, generate, open_model  # noqa: E402
from original_layout import CONFIG_KEY, assert_same_weights, export, original_tensors  # noqa: E402
from safetensors import safe_open  # noqa: E402
from shapes import held_out_scenes, training_pictures  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

MODELS = Path(__file__).parents[2] / "examples" / "models"
UNET, DIT = MODELS / "shapes-unet.safetensors", MODELS / "shapes-dit"
LIMIT = 25_000_000


@pytest.fixture(scope="module")
def unet() -> StableDiffusionPipeline:
    """The UNet model as diffusers reads it."""
    return open_model(UNET)


def test_models_are_small() -> None:
    """Expect either model to take at most 25 MB."""
    assert UNET.stat().st_size <= LIMIT
    assert sum(path.stat().st_size for path in DIT.rglob("*") if path.is_file()) <= LIMIT


@pytest.mark.parametrize("path", [UNET, *sorted(DIT.rglob("*.safetensors"))], ids=lambda path: path.parent.name)
def test_weights_are_finite_halves(path: Path) -> None:
    """Expect 16-bit weights far from overflow."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16, name
            assert tensor.isfinite().all(), name
            assert tensor.abs().max() < 1000, name


def test_file_has_the_original_layout(unet: StableDiffusionPipeline) -> None:
    """Expect the three well-known prefixes, and in the file exactly what the conversion makes of the pipeline."""
    with safe_open(UNET, "pt") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()[CONFIG_KEY]).keys() >= {"model_index.json", "unet/config.json"}
        converted = original_tensors(unet)
        assert names == converted.keys()
        for name, tensor in converted.items():
            assert torch.equal(file.get_tensor(name), tensor.half()), name
    assert {name.split(".")[0] for name in names} == {"model", "first_stage_model", "cond_stage_model"}
    assert "model.diffusion_model.input_blocks.0.0.weight" in names
    assert "first_stage_model.encoder.down.0.block.0.conv1.weight" in names
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in names


def test_the_unet_follows_captions(unet: StableDiffusionPipeline) -> None:
    scenes = held_out_scenes(20)
    assert accuracy(generate(unet, scenes, 20, 5.0), scenes).overall >= 0.9, "98.4 % of 200 captions"


def test_export_round_trip(unet: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Expect a second export to give the same weights and configuration through diffusers' reader."""
    unet.tokenizer.save_pretrained(tmp_path / "tokenizer")
    unet.tokenizer.backend_tokenizer.model.save(str(tmp_path / "tokenizer"))
    export(unet, tmp_path / "tokenizer", tmp_path / "again.safetensors")
    again = open_model(tmp_path / "again.safetensors")
    assert_same_weights(unet, again)
    assert dict(again.scheduler.config) == dict(unet.scheduler.config)


@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_tokenizers_agree(model: Path) -> None:
    """Expect the tokenizers library alone to give the pipeline's ids, for any script and any length."""
    pipeline = open_model(model)
    if model.is_dir():
        stand_alone = Tokenizer.from_file(str(model / "tokenizer" / "tokenizer.json"))
    else:
        with safe_open(model, "pt") as file, tempfile.NamedTemporaryFile("w", suffix=".json") as copy:
            copy.write(json.loads(file.metadata()[CONFIG_KEY])["tokenizer/tokenizer.json"])
            copy.flush()
            stand_alone = Tokenizer.from_file(copy.name)
    captions = [scene.caption for scene in held_out_scenes(20)]
    captions += ["", "A  Small RED\tcircle!", "Ünïcode 東京 🎉 don't 123", "many words " * 40]
    expected = pipeline.tokenizer(captions, padding="max_length", max_length=32, truncation=True).input_ids
    assert [stand_alone.encode(caption).ids for caption in captions] == expected
    for tokenizer in {pipeline.tokenizer, getattr(pipeline, "tokenizer_2", pipeline.tokenizer)}:
        assert tokenizer.model_max_length == 32
        assert tokenizer.pad_token == "<|endoftext|>"


def test_frechet_distance_of_equal_and_different_pictures() -> None:
    """Expect nothing between equal sets, and much more between light and dark ones than between drawn ones."""
    first, second = ([picture for _, picture in training_pictures(seed, 100)] for seed in (1, 2))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    near = frechet_distance(first, second)
    far = frechet_distance(first, [picture * 0.5 for picture in second])
    assert 0 < near < far / 4
