"""Weights that another tool quantized have their values in a pipeline, or are refused by the name of their scheme."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.quantized_weights import dequantized, refuse_leftovers
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import LazyWeight, read

Tensors = dict[str, torch.Tensor]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def scaled(name: str, weight: torch.Tensor, companion: str, dtype: torch.dtype = E4M3) -> tuple[Tensors, torch.Tensor]:
    """Quantize a weight with one scale; return the stored tensors and the values that they stand for."""
    scale = weight.float().abs().max() / 100
    stored = (weight / scale).to(dtype)
    return {name: stored, companion: scale}, stored.float() * scale


def per_channel(name: str, weight: torch.Tensor, companion: str, *, column: bool) -> tuple[Tensors, torch.Tensor]:
    """Quantize a weight to int8 with a scale for each output channel, stored as a vector or as a column."""
    scale = weight.float().abs().flatten(1).amax(1) / 127
    column_of_scales = scale.view(-1, *[1] * (weight.dim() - 1))
    stored = (weight / column_of_scales).round().to(torch.int8)
    return {name: stored, companion: column_of_scales if column else scale}, stored.float() * column_of_scales


def in_blocks(name: str, weight: torch.Tensor, companion: str) -> tuple[Tensors, torch.Tensor]:
    """Quantize a matrix with a scale for each block of 8 x 8."""
    rows, columns = weight.shape
    blocks = weight.float().view(rows // 8, 8, columns // 8, 8)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(E4M3)
    values = stored.float() * scale[:, None, :, None]
    return {name: stored.view(rows, columns), companion: scale}, values.view(rows, columns)


def asymmetric(name: str, weight: torch.Tensor, companion: str) -> tuple[Tensors, torch.Tensor]:
    """Quantize a weight to uint8 with a zero point for each output channel."""
    low, high = weight.flatten(1).aminmax(dim=1, keepdim=True)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    shape = [-1, *[1] * (weight.dim() - 1)]
    scale, zero = scale.view(shape), zero.view(shape)
    stored = (weight / scale + zero).round().clamp(0, 255).to(torch.uint8)
    point = companion.removesuffix("_scale") + "_zero_point"
    return {name: stored, companion: scale, point: zero.to(torch.uint8)}, (stored.float() - zero) * scale


Quantize = Callable[[str, torch.Tensor, str], tuple[Tensors, torch.Tensor]]
SCHEMES: dict[str, tuple[str, Quantize]] = {
    "ComfyUI": ("{module}.scale_weight", scaled),
    "one scale, e5m2": ("{module}.weight_scale", lambda *layer: scaled(*layer, dtype=E5M2)),
    "blocks": ("{module}.weight_scale_inv", in_blocks),
    "int8 by channel": ("{module}.weight_scale", lambda *layer: per_channel(*layer, column=True)),
    "int8 by channel, vector": ("{module}.weight_scale", lambda *layer: per_channel(*layer, column=False)),
    "uint8 with zero points": ("{module}.weight_scale", asymmetric),
}


def quantize(tensors: Tensors, scheme: str) -> tuple[Tensors, Tensors]:
    """Quantize all layers that a scheme fits; return the stored tensors, and all tensors with their values."""
    companion, method = SCHEMES[scheme]
    stored, values = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        fits = weight.dim() == 2 and not any(length % 8 for length in weight.shape) if scheme == "blocks" else True
        if fits and name.endswith(".weight") and weight.dim() > 1:
            del stored[name]
            more, values[name] = method(name, weight, companion.format(module=name.removesuffix(".weight")))
            stored |= more
    assert stored.keys() != tensors.keys()
    return {name: tensor.contiguous() for name, tensor in stored.items()}, values


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_have_the_values_of_their_scheme(original_weights: Tensors, scheme: str) -> None:
    stored, values = quantize(original_weights, scheme)
    tensors = dequantized(stored, "x")
    assert tensors.keys() == values.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(read(tensor), values[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("component", "scheme"), [*zip(FILES, SCHEMES, strict=False)])
def test_a_folder_has_the_values_of_its_quantized_weights(folder: Path, component: str, scheme: str) -> None:
    path = folder / component / FILES[component]
    stored, values = quantize(load_file(path), scheme)
    save_file(stored, path, {"format": "pt"})
    module = getattr(load(folder), component)
    for name, tensor in module.state_dict().items():
        key = name if name in values else f"text_model.{name}"
        torch.testing.assert_close(tensor, values[key], rtol=1e-6, atol=1e-7)


def test_a_file_has_the_values_of_its_quantized_weights(
    single_file: Path, original_weights: Tensors, config_metadata: dict[str, str]
) -> None:
    stored, values = quantize(original_weights, "ComfyUI")
    save_file(stored | {"model.diffusion_model.scaled_fp8": torch.zeros(2, dtype=E4M3)}, single_file, config_metadata)
    pipeline = load(single_file)
    save_file(values, single_file, config_metadata)
    expected = load(single_file)
    for component in FILES:
        state = getattr(expected, component).state_dict()
        for name, tensor in getattr(pipeline, component).state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-7)


def test_quantized_weights_stay_in_the_file_until_they_are_read(folder: Path) -> None:
    path = folder / "unet" / FILES["unet"]
    stored, values = quantize(load_file(path), "ComfyUI")
    save_file(stored, path, {"format": "pt"})
    weights = dict(load(folder, lazy_weights=True).unet.named_parameters())
    lazy = {
        name: weight for name, weight in weights.items() if isinstance(weight, LazyWeight) and weight.stored.encoded
    }
    assert lazy, "no weight is large enough to be lazy"
    for name, weight in lazy.items():
        assert torch.equal(torch.cat([*weight.stored.slices()]).view(weight.shape), values[name])


def test_a_slice_and_a_transpose_of_a_quantized_weight_have_its_values() -> None:
    stored, values = scaled("x.weight", torch.randn(6, 8), "x.weight_scale")
    weight = dequantized(stored, "x")["x.weight"]
    assert isinstance(weight, LazyWeight)
    assert torch.equal(weight.stored.permuted([1, 0]).read(), values.T)
    part = type(weight.stored)(weight.stored.source[2:4, 3:], torch.float32, encoded=weight.stored.encoded)
    assert torch.equal(part.read(), values[2:4, 3:])
    assert part.key != weight.stored.key


def test_float8_without_scales_is_cast(folder: Path) -> None:
    path = folder / "unet" / FILES["unet"]
    tensors = {name: tensor.to(E4M3) for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    state = load(folder).unet.state_dict()
    assert all(torch.equal(tensor, tensors[name].float()) for name, tensor in state.items())


def test_a_scale_of_one_beside_a_float_weight_is_no_quantization() -> None:
    weight = torch.randn(4, 4)
    tensors = dequantized({"x.weight": weight, "x.scale_weight": torch.ones(())}, "x")
    assert tensors == {"x.weight": weight}


def test_scales_of_activations_change_no_weight() -> None:
    stored, values = scaled("x.weight", torch.randn(4, 4), "x.weight_scale")
    tensors = dequantized(stored | {"x.input_scale": torch.tensor(3.0)}, "x")
    assert [*tensors] == ["x.weight"] and torch.equal(read(tensors["x.weight"]), values)


def test_a_configuration_that_quantizes_while_it_loads_is_left_out(folder: Path) -> None:
    for component in ("unet", "text_encoder"):
        path = folder / component / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        path.write_text(json.dumps(config))
    pipeline = load(folder)
    assert torch.equal(pipeline.unet.conv_in.weight, load_file(folder / "unet" / FILES["unet"])["conv_in.weight"])


BYTE = torch.zeros(4, 4, dtype=torch.int8)
EIGHT = torch.zeros(4, 4).to(E4M3)
ONE = torch.ones(())
FORMAT = torch.tensor([*b'{"format": "nvfp4"}'], dtype=torch.uint8)
REFUSED: dict[str, tuple[Tensors, dict[str, object], str]] = {
    "nunchaku": ({"x.qweight": BYTE, "x.wscales": ONE}, {}, "SVDQuant"),
    "gptq": ({"x.qweight": BYTE, "x.qzeros": ONE, "x.scales": ONE}, {}, "GPTQ or AWQ"),
    "packed": ({"x.weight_packed": BYTE, "x.weight_scale": ONE}, {}, "packed compressed-tensors"),
    "nvfp4": ({"x.weight": BYTE, "x.weight_scale": ONE, "x.weight_scale_2": ONE}, {}, "NVFP4"),
    "torchao": ({"x._weight_qdata": BYTE, "x._weight_scale": ONE}, {}, "torchao"),
    "quanto": ({"x.weight._data": BYTE, "x.weight._scale": ONE, "x.weight._shift": ONE}, {}, "quanto with fewer"),
    "ComfyUI": ({"x.weight": EIGHT, "x.weight_scale": ONE, "x.comfy_quant": FORMAT}, {}, "x is quantized as nvfp4"),
    "hqq": ({"x.weight": BYTE}, {"quant_method": "hqq"}, "quantized by hqq"),
    "no zero point": ({"x.weight": BYTE.byte(), "x.weight_scale": ONE}, {}, "without a zero point"),
    "exponents": ({"x.weight": EIGHT, "x.weight_scale": BYTE.byte()}, {}, "with a scale of uint8"),
    "rows": ({"x.weight": EIGHT, "x.weight_scale": torch.ones(3)}, {}, "do not say which of its elements"),
    "two scales": ({"x.weight": EIGHT, "x.weight_scale": ONE, "x.scale_weight": ONE}, {}, "two companions"),
    "no scale": ({"x.weight": EIGHT, "x.input_scale": ONE}, {}, "has no scale beside"),
    "one without": (
        {"x.weight": EIGHT, "x.weight_scale": ONE, "y.weight": EIGHT},
        {},
        "float8 weights have scales, but not 1 tensor: y.weight",
    ),
    "marker alone": ({"x.weight": EIGHT, "scaled_fp8": torch.zeros(0)}, {}, "but not 1 tensor: x.weight"),
    "scaled floats": ({"x.weight": torch.ones(4, 4), "x.weight_scale": 2 * ONE}, {}, "has a scale"),
    "int8 rows": ({"x.weight": EIGHT, "x.SCB": torch.ones(4)}, {}, "no LLM.int8"),
    "layout": ({"x.weight": BYTE, "x.SCB": torch.ones(4), "x.weight_format": ONE}, {}, "no LLM.int8"),
    "complex": ({"x.weight": torch.zeros(2, dtype=torch.complex64)}, {}, "x.weight is stored as complex64"),
}


@pytest.mark.parametrize(("stored", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_rejects_what_it_does_not_compute_by_name(stored: Tensors, config: dict[str, object], message: str) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        dequantized(stored, "folder", config)
    assert caught.value.where == "folder" and caught.value.fix


@pytest.mark.parametrize(
    ("shape", "scales", "block", "fits"),
    [
        ([256, 384], [2, 3], None, True),
        ([200, 384], [2, 3], None, False),  # blocks of 128 or of 100
        ([200, 384], [2, 3], [128, 128], True),
        ([130, 384], [2, 3], [128, 128], True),
        ([129, 384], [2, 3], None, True),
        ([64, 384], [2, 3], [128, 128], False),
        ([64, 384], [1, 384], None, True),
    ],
)
def test_blocks_are_those_that_shape_and_configuration_say(
    shape: list[int], scales: list[int], block: list[int] | None, fits: bool
) -> None:
    stored = {"x.weight": torch.ones(shape).to(E4M3), "x.weight_scale_inv": torch.rand(scales)}
    config = {"weight_block_size": block}
    if not fits:
        with pytest.raises(LoadError, match="do not say"):
            dequantized(stored, "x", config)
        return
    rows, columns = (block or [128, 128])[0], 128 if scales[1] == 3 else 1
    values = read(dequantized(stored, "x", config)["x.weight"])
    assert values[-1, -1] == stored["x.weight_scale_inv"][-1, -1]
    assert values[min(rows, shape[0]) - 1, columns - 1] == stored["x.weight_scale_inv"][0, 0]


@pytest.mark.parametrize("component", FILES)
def test_rejects_integers_in_the_place_of_floats(folder: Path, component: str) -> None:
    path = folder / component / FILES[component]
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path, {"format": "pt"})
    with pytest.raises(LoadError, match=rf"{name} is stored as int8 without a scale"):
        load(folder)


@pytest.mark.parametrize(
    ("prefix", "dtype"),
    [
        ("model.diffusion_model.", torch.uint8),
        ("first_stage_model.", torch.int8),
        ("cond_stage_model.", torch.int32),
    ],
)
def test_rejects_integers_in_a_file(
    single_file: Path, original_weights: Tensors, config_metadata: dict[str, str], prefix: str, dtype: torch.dtype
) -> None:
    name = next(name for name, t in original_weights.items() if name.startswith(prefix) and t.dim() in (2, 4))
    save_file(original_weights | {name: original_weights[name].to(dtype)}, single_file, config_metadata)
    with pytest.raises(LoadError, match=rf"{name} is stored as .* without a scale"):
        load(single_file)


def test_rejects_an_unknown_tensor_beside_a_weight_of_float8(folder: Path) -> None:
    path = folder / "unet" / FILES["unet"]
    tensors = {name: t.to(E4M3) if t.dim() == 2 else t for name, t in load_file(path).items()}
    save_file(tensors | {"time_embedding.linear_1.gain": torch.ones(())}, path, {"format": "pt"})
    with pytest.raises(LoadError, match=r"time_embedding\.linear_1\.gain may give time_embedding\.linear_1\.weight"):
        load(folder)


def test_an_unknown_tensor_beside_an_unused_weight_is_harmless() -> None:
    stored = {"x.weight": EIGHT, "x.gain": ONE, "y.weight": torch.ones(4, 4), "y.gain": ONE}
    refuse_leftovers(["x.weight", "x.gain", "y.gain"], stored, "x")
    with pytest.raises(LoadError, match=r"x\.gain may give x\.weight its scale"):
        refuse_leftovers(["x.gain", "y.gain"], stored, "x")


@pytest.mark.parametrize("name", ["x.quantizer._amax", "x_gain", "scales.x", "a.x.weight.gain"])
def test_a_leftover_that_names_a_weight_may_be_its_scale(name: str) -> None:
    with pytest.raises(LoadError, match=f"{name} may give a?.?x.weight its scale"):
        refuse_leftovers([name], {"x.weight": EIGHT, "a.x.weight": EIGHT, name: ONE}, "x")
    refuse_leftovers(["ema.x.weight"], {"x.weight": EIGHT, "ema.x.weight": EIGHT.float()}, "x")
    refuse_leftovers(["xy.gain"], {"x.weight": EIGHT, "xy.gain": ONE}, "x")


@pytest.fixture
def adapter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensors]]:
    """Return the path of an adapter to write, with an encoder beside it, and what diffusers receives of it."""
    sizes = {"hidden_size": 32, "intermediate_size": 37, "projection_dim": 32, "image_size": 16, "patch_size": 8}
    vision = transformers.CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "image_encoder")
    received = dict[str, Tensors]()
    monkeypatch.setattr(
        "diffusers.StableDiffusionPipeline.load_ip_adapter", lambda _, parts, **__: received.update(parts)
    )
    return tmp_path / "adapter.safetensors", received


def test_an_adapter_is_multiplied_out(folder: Path, adapter: tuple[Path, dict[str, Tensors]]) -> None:
    path, received = adapter
    stored, values = scaled("ip_adapter.1.to_k_ip.weight", torch.randn(4, 4), "ip_adapter.1.to_k_ip.scale_weight")
    save_file({"image_proj.proj.weight": torch.ones(4, 4), **stored, "stray.weight": torch.ones(2)}, path)
    with pytest.warns(UserWarning, match=r"no component uses 1 tensor: stray\.weight"):
        load(folder, ip_adapter=path)
    assert [*received["ip_adapter"]] == ["1.to_k_ip.weight"]
    assert torch.equal(received["ip_adapter"]["1.to_k_ip.weight"], values)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ip_adapter.1.to_k_ip.weight": torch.ones(4, 4).char()}, "1 tensor: ip_adapter.1.to_k_ip.weight holds int"),
        (
            {"ip_adapter.1.to_k_ip.weight": torch.ones(4, 4).to(E4M3), "ip_adapter.1.to_k_ip.gain": torch.ones(())},
            "ip_adapter.1.to_k_ip.gain may give ip_adapter.1.to_k_ip.weight its scale",
        ),
    ],
)
def test_rejects_an_adapter_without_its_scales(
    folder: Path, adapter: tuple[Path, dict[str, Tensors]], tensors: Tensors, message: str
) -> None:
    save_file({"image_proj.proj.weight": torch.ones(4, 4), **tensors}, adapter[0])
    with pytest.raises(LoadError, match=message):
        load(folder, ip_adapter=adapter[0])
