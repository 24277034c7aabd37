"""What a user asks for becomes schemes that the back end computes, or an error that names what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffc.compiler.backends.target import parse_target
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.driver.options import QuantizationOptions, read_quantization
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.driver.quantize import fitted, plan_of
from diffc.compiler.errors import PassError, RecipeError
from diffc.compiler.ir.program import Program
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer, Site
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.recipe import name_of
from diffc.compiler.tracing.trace import capture
from diffc.passes import NORMAL_FORM
from diffc.passes.quantize import RECIPES
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.runtime.precisions import PRECISIONS


@pytest.mark.parametrize("name", ["quant", "recipe", "calibration", "min_psnr"])
def test_a_target_in_float_takes_no_options(name: str, tmp_path: Path) -> None:
    given = {"quant": "gptq", "recipe": tmp_path / "r", "calibration": tmp_path / "c", "min_psnr": 20.0}
    with pytest.raises(RecipeError, match="the target ort-fp32 is not quantized") as refused:
        read_quantization(parse_target("ort-fp32"), **{name: given[name]})  # type: ignore[arg-type]
    assert refused.value.where == f"--{name.replace('_', '-')}" and "w8a8" in str(refused.value.fix)
    assert read_quantization(parse_target("ort-fp32")) is None


def asked(
    target: str = "ort-w8a8", recipe: str = "", folder: Path | None = None, quant: str | None = None
) -> QuantizationOptions:
    """Ask for a target, and what a recipe says."""
    file = None
    if folder is not None:
        file = folder / "recipe.toml"
        file.write_text(recipe)
    found = read_quantization(parse_target(target), quant, file)
    assert found is not None
    return found


@pytest.mark.parametrize("precision", [name for name, row in PRECISIONS.items() if row.recipe])
def test_a_precision_has_a_recipe_whose_words_are_known(precision: str) -> None:
    found = asked(f"onnx-{precision}")
    assert found.recipe == RECIPES[precision] and found.techniques
    assert all(parse_spec(text) or text == "float" for text in (*found.recipe.linear, *found.recipe.conv))


def test_a_target_may_have_techniques_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'diffc[openvino]'")
    assert asked("ov-w8a8").recipe == RECIPES["w8a8_openvino"]
    names = [[name_of(each) for each in asked(target).techniques] for target in ("ov-w8a8", "ort-w8a8")]
    assert "static_scales" in names[0] and "static_scales" not in names[1]
    assert asked("ov-w8a8", "[quantize]\nmethods = 'gptq'", tmp_path).techniques == (gptq,)


def test_a_file_says_methods_and_an_option_says_others(tmp_path: Path) -> None:
    said = '[quantize]\nmethods = "smoothquant:alpha=0.5+gptq"\nconv = ["int8:channel", "float"]'
    found = asked("ort-w8a8", said, tmp_path)
    assert found.recorded["methods"] == [["smoothquant", {"alpha": 0.5}], ["gptq", {}]]
    assert found.recipe.conv == ("int8:channel", "float") and found.recipe.linear == RECIPES["w8a8_onnx_runtime"].linear
    assert asked("ort-w8a8", said, tmp_path, "round_to_nearest").techniques == (round_to_nearest,)


def test_what_was_asked_for_is_described(tmp_path: Path) -> None:
    found = asked("ort-w8a8", "[[layer]]\nname = 'a'\nweight = 'int4:group=32'\nactivation = 'float'", tmp_path)
    assert found.recorded["layers"] == [["a", {"weight": "int4:group=32", "activation": "float"}]]
    assert found.recorded["methods"][1] == ["smoothquant", {"samples": 8}] and found.recorded["seed"] == 0


def test_files_and_names_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    target = parse_target("ort-w8a8")
    with pytest.raises(RecipeError, match="'gpqt' is no technique") as refused:
        read_quantization(target, "gpqt")
    assert "did you mean gptq? " in str(refused.value.fix)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_quantization(target, recipe=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("shape", "weight", "activation", "wanted"),
    [
        ((8, 128), "int4:group=64", "int8:token", ("int4:group=64", "int8:token")),
        ((8, 96), "int4:group=64", "int4:group=64:dynamic", ("int4:group=32", "int4:group=32:dynamic")),
        ((8, 40), "int4:group=64:scale=uint4", "int4:group=64", ("int4:channel", "int4:token")),
        ((8, 48), "nvfp4", "nvfp4:dynamic", ("nvfp4", "nvfp4:dynamic")),
        ((8, 48), "mxfp4", "mxfp4:dynamic", ("e2m1:group=16:scale=e8m0", "e2m1:group=16:dynamic:scale=e8m0")),
        ((8, 20), "nvfp4", "nvfp4:dynamic", ("e2m1:channel", "e2m1:token")),
        ((8, 16, 3, 3), "int4:group=48", "uint8:tensor", ("int4:group=48", "uint8:tensor")),
        ((8, 10, 3, 3), "int4:group=32", "int8:tensor", ("int4:channel", "int8:tensor")),
        ((8, 20), "int8:channel", "int8:tensor:step", ("int8:channel", "int8:tensor:step")),
    ],
)
def test_groups_divide_the_rows(shape: tuple[int, ...], weight: str, activation: str, wanted: tuple[str, str]) -> None:
    layer = Layer("a", "", "conv" if len(shape) > 2 else "linear", (Site("g", "n"),), torch.zeros(shape))
    made = fitted(Scheme(parse_spec(weight), parse_spec(activation)), layer)
    both = tuple(parse_spec(text) for text in wanted)
    assert (made.weight, made.activation) == both


class Denoiser(nn.Module):
    """Have a layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.linear = nn.Linear(32, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply each."""
        hidden = self.depthwise(self.conv(x)).mean((2, 3))
        return x - self.out(self.linear(hidden).relu()).reshape(1, 4, 2, 2).repeat(1, 1, 3, 3)


class Decoder(nn.Module):
    """Have a layer that is none of the denoiser's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)
        self.table = nn.Embedding(40, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decode."""
        return self.conv(x) + self.table(torch.zeros((1,), dtype=torch.long))[:, :, None, None]


@pytest.fixture(scope="module")
def program() -> Program:
    """Compile two steps of a sampler."""
    torch.manual_seed(0)
    denoiser, decoder = Denoiser().requires_grad_(False), Decoder().requires_grad_(False)

    def sample() -> torch.Tensor:
        latents = torch.randn(1, 4, 6, 6)
        return decoder(denoiser(denoiser(latents)))

    return run(capture(sample, {"denoiser": denoiser, "decoder": decoder}), NORMAL_FORM)


def quantized(programs: Sequence[Program], wanted: QuantizationOptions, target: str = "ort-w8a8") -> Plan:
    """Quantize for a target, calibrated with one trajectory."""
    calibrator = Calibrator(prompts=("a",), seed=wanted.seed)
    return plan_of(programs, parse_target(target), wanted, calibrator, lambda _: None)[0]


def schemes(plan: Plan) -> dict[str, str]:
    """Print the scheme of each layer."""
    named = {layer.name: layer.scheme for layer in plan.layers}
    return {
        name: " ".join(str(spec or "-") for spec in (scheme.weight, scheme.activation, scheme.output))
        for name, scheme in named.items()
    }


def test_layers_have_the_scheme_of_their_kind_and_component(program: Program) -> None:
    assert schemes(quantized([program], asked(quant="round_to_nearest:by=minmax"))) == {
        "denoiser.conv": "int7:channel:scale=float16 uint8:tensor uint8:tensor",
        "denoiser.depthwise": "int8:channel:scale=float16 - -",
        "denoiser.linear": "int7:channel:scale=float16 int8:token -",
        "denoiser.out": "int7:channel:scale=float16 int8:token -",
        "decoder.conv": "int8:channel:scale=float16 - -",
        "decoder.table": "int8:channel - -",
    }


def test_a_file_overrides_layers_the_last_line_first(program: Program, tmp_path: Path) -> None:
    said = """
    [[layer]]
    name = "denoiser.*"
    weight = "int4:channel"
    [[layer]]
    name = "*.out"
    weight = "float"
    activation = "float"
    """
    found = schemes(quantized([program], asked(recipe=said, folder=tmp_path)))
    assert found["denoiser.linear"] == "int4:channel int8:token -" and found["denoiser.out"] == "- - -"
    assert found["denoiser.conv"].startswith("int4:channel uint8") and found["decoder.conv"].startswith("int8")


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("denoiser.linear", 'activation = "e4m3:token"', "ONNX Runtime computes e4m3 in float32"),
        ("denoiser.conv", 'activation = "int8:tensor:step"', "ONNX Runtime computes convolutions with dynamic"),
        ("denoiser.linear", 'activation = "int8:channel"', "activations have one scale"),
        ("denoiser.linear", 'activation = "uint4:group=16"', "group of signed values"),
        ("denoiser.linear", 'activation = "int4:group=16:scale=uint4"', "scales of activations"),
        ("denoiser.linear", 'weight = "int8:token"', "a weight has no tokens"),
        ("decoder.table", 'weight = "uint8:channel"', "signed integers with a scale per row"),
        ("decoder.table", 'weight = "int4:group=16"', "signed integers with a scale per row"),
        ("decoder.table", 'weight = "int8:tensor"', "signed integers with a scale per row"),
    ],
)
def test_an_override_that_cannot_be_computed_is_refused(
    program: Program, name: str, spec: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=f"{name} cannot be computed so: .*{said}") as refused:
        quantized([program], asked(recipe=f'[[layer]]\nname = "{name}"\n{spec}', folder=tmp_path))
    assert refused.value.where == "[[layer]]"


def test_a_setting_that_cannot_be_computed_is_refused(program: Program, tmp_path: Path) -> None:
    said = '[quantize]\nlinear = ["int8:channel", "int8:channel"]'
    with pytest.raises(RecipeError, match="activations have one scale") as refused:
        quantized([program], asked(recipe=said, folder=tmp_path))
    assert refused.value.where == "[quantize]"


@pytest.fixture(scope="module")
def attending() -> Program:
    """Compile a call of a denoiser that attends."""
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.linear(x).chunk(3, dim=-1)
            return x + nn.functional.scaled_dot_product_attention(q, k, v)

    denoiser = Attending().requires_grad_(False)
    return run(capture(lambda: denoiser(denoiser(torch.randn(1, 1, 9, 16))), {"denoiser": denoiser}), NORMAL_FORM)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("", ("-", "-", "-")),
        ('attention = ["int8:tensor", "float"]', ("int8:tensor", "-", "-")),
        ('attention = ["float", "int8:tensor"]', ("-", "int8:tensor", "uint8:tensor")),
    ],
)
def test_products_of_attention_are_quantized_where_a_file_says_so(
    attending: Program, said: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    found = quantized([attending], asked(recipe=f"[quantize]\n{said}", folder=tmp_path))
    (scheme,) = (layer.scheme for layer in found.layers if layer.kind == "attention")
    made = scheme.activation, scheme.values, scheme.probabilities
    assert tuple(str(spec or "-") for spec in made) == wanted


@pytest.mark.parametrize(
    "said", ['["int8:token", "float"]', '["float", "int8:tensor:step"]', '["int8:tensor:dynamic", "float"]']
)
def test_attention_has_static_scales(attending: Program, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="operands of attention have one static scale") as refused:
        quantized([attending], asked(recipe=f"[quantize]\nattention = {said}", folder=tmp_path))
    assert refused.value.where == "[quantize]"


def test_what_is_done_otherwise_than_the_precision_says_is_noted(program: Program) -> None:
    options, calibrator = asked("ort-fp8", quant="round_to_nearest"), Calibrator(prompts=("a",))
    _, notes = plan_of([program], parse_target("ort-fp8"), options, calibrator, lambda _: None)
    assert notes == ("3 layers: ONNX Runtime computes e4m3 in float32, on rounded values",)


def test_a_layer_that_does_not_exist_is_refused(program: Program, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no layer is named 'denoiser\.linaer'") as refused:
        quantized([program], asked(recipe='[[layer]]\nname = "denoiser.linaer"', folder=tmp_path))
    assert "did you mean denoiser.linear? " in str(refused.value.fix)


def test_options_that_a_technique_has_not_are_refused() -> None:
    with pytest.raises(RecipeError, match="round_to_nearest has no option 'bye'") as refused:
        read_quantization(parse_target("ort-w8a8"), "round_to_nearest:bye=mse")
    assert refused.value.fix == "did you mean by? it has by"
    with pytest.raises(RecipeError, match="ptq4dm: samples is 'many'"):
        read_quantization(parse_target("ort-w8a8"), "ptq4dm:samples=many")
    assert read_quantization(parse_target("ort-w8a8"), "smoothquant:alpha=0.5+keep_first_last:in_float=true")


def test_ranges_are_chosen_for_scales_that_the_back_end_makes_static(program: Program) -> None:
    plan = quantized([program], asked("onnx-w8a8", quant="vidit_q"), "onnx-w8a8")
    static = [layer for layer in plan.layers if layer.scheme.activation is not None]
    assert len(static) == 3 and all(str(layer.scheme.activation) == "int8:tensor" for layer in static)
    assert all(layer.low is not None and layer.low.shape == (1, 1) for layer in static)


def test_a_weight_that_is_rounded_to_a_format_that_the_engine_does_not_read_is_refused(program: Program) -> None:
    def rounded(plan: Plan) -> Plan:
        wide = parse_spec("int4:group=16:scale=uint4")
        return round_to_nearest(plan.mapped(lambda layer: replace(layer, scheme=Scheme(wide)), _is_last))

    options = replace(asked("onnx-w8a8"), techniques=(rounded,))
    with pytest.raises(RecipeError) as refused:
        quantized([program], options, "onnx-w8a8")
    what = "denoiser.out is rounded as int4:group=16:scale=uint4, which the engine computes as int4:group=16"
    assert (refused.value.what, refused.value.where) == (what, "--quant")


def _is_last(layer: Layer) -> bool:
    return layer.name == "denoiser.out"


def test_the_same_seed_gives_the_same_calibration(program: Program) -> None:
    def calibration(seed: int) -> Calibration:
        return quantized([program], replace(asked(quant="calibrate_ranges:by=minmax"), seed=seed)).calibration

    assert calibration(1).digest == calibration(1).digest != calibration(2).digest


def test_techniques_run_in_the_pass_manager(program: Program) -> None:
    steps = list[str]()
    wanted, calibrator = asked(quant="round_to_nearest+smoothquant"), Calibrator(prompts=("a",))
    with pytest.raises(PassError, match="smoothquant changes nothing") as refused:
        plan_of([program], parse_target("ort-w8a8"), wanted, calibrator, steps.append)
    assert "5 layers: its weight is rounded already" in str(refused.value.where)
    assert refused.value.inside == "smoothquant, after round_to_nearest" and "smoothquant?" in str(refused.value.fix)
    assert steps[-2:] == ["quantize: round_to_nearest", "quantize: smoothquant"]
    assert quantized([program], asked(quant="round_to_nearest+smoothquant?")).layers


@pytest.mark.parametrize("name", ["keep_sensitive", "keep-sensitive"])
def test_the_former_name_of_a_technique_is_taken_and_not_shown(name: str, tmp_path: Path) -> None:
    written = f"[quantize]\nmethods = '{name}:in_float=true'"
    for found in (asked(quant=f"{name}:in_float=true"), asked(recipe=written, folder=tmp_path)):
        assert found.recorded["methods"] == [["keep_first_last", {"in_float": True}]]
    with pytest.raises(RecipeError) as refused:
        asked(quant="keep_insensitive")
    assert "keep_first_last" in str(refused.value.fix) and "keep_sensitive" not in str(refused.value.fix)
