"""Loading: tensors too many are named, and tensors that are missing, misshapen or not finite are refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import DiffcWarning
from tests.checkpoints import NEURAL, Tensors, refusal, rewrite, weights_of

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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(saved_pipeline)
        load(single_file)
    assert [warning for warning in caught if issubclass(warning.category, DiffcWarning)] == []


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
        ("unet", "conv_in.weight", "[2, 3], its configuration has [16, 4, 3, 3]"),
        ("vae", "decoder.conv_in.weight", "[2, 3], its configuration has [32, 4, 3, 3]"),
        ("text_encoder", "embeddings.position_embedding.weight", "[2, 3], its configuration has [8, 32]"),
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
            "text_encoder.final_layer_norm.weight has shape [2, 3], its configuration has [32]",
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
    assert re.match(rf"{name}\.\S+ has 1 of \d+ values that are NaN or infinite\n", refusal(folder))


def test_rejects_not_finite_weights_of_a_file(single_file: Path, config_metadata: dict[str, str]) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    rewrite(single_file, lambda tensors: tensors[name].fill_(float("nan")), config_metadata)
    assert "unet.conv_in.weight has 576 of 576 values that are NaN or infinite" in refusal(single_file)


def test_rejects_weights_that_were_never_written(folder: Path) -> None:
    rewrite(weights_of(folder, "vae"), lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    assert "every weight of vae is zero" in refusal(folder)
