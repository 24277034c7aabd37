"""Recipes are read, and what is wrong in one is named, with what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffc.compiler.errors import RecipeError
from diffc.compiler.quantization.formats import FORMATS, Spec
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.recipe_file import Override, matching, parse_passes, read_recipe
from diffc.compiler.recipe import Optional, name_of, options_of

RECIPE = """
[quantize]
methods = "smoothquant:alpha=0.5+gptq"
linear = ["int4:group=64", "int8:token"]
conv = ["int8:channel", "float"]

[[layer]]
name = "unet.down_blocks.0.*"
weight = "int8:channel"
activation = "float"

[[layer]]
name = "unet.conv_out"
output = "uint8:tensor"
"""


def written(folder: Path, text: str) -> Path:
    """Write a recipe."""
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, RECIPE))
    assert found.settings == {
        "methods": "smoothquant:alpha=0.5+gptq",
        "linear": ["int4:group=64", "int8:token"],
        "conv": ["int8:channel", "float"],
    }
    int8 = Spec(FORMATS["int8"], "channel")
    assert found.overrides == (
        Override("unet.down_blocks.0.*", {"weight": int8, "activation": None}),
        Override("unet.conv_out", {"output": Spec(FORMATS["uint8"])}),
    )


def test_an_empty_recipe_changes_nothing(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, ""))
    assert (found.settings, found.overrides) == ({}, ())


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("[quantise]", "'quantise' says nothing", "did you mean quantize? "),
        ("[quantize]\nmethod = 'gptq'", "'method' says nothing", "did you mean methods? "),
        ("[[layer]]\nname = 'a'\nwieght = 'int8'", "'wieght' says nothing", "did you mean weight? "),
        ("[[layer]]\nname = 'a'\nweight = 'int9'", "'int9' is no word of a spec", "did you mean"),
        ("[quantize]\nlinear = ['int8:chanel', 'float']", "'chanel' is no word of a spec", "did you mean channel? "),
        ("[quantize]\nlinear = 'int8'", "linear is 'int8'", 'linear = ["WEIGHT", "ACTIVATION"]'),
        ("[quantize]\nlinear = ['int8']", "linear is ['int8']", 'linear = ["WEIGHT", "ACTIVATION"]'),
        ("[quantize]\nlinear = [8, 8]", "linear is [8, 8]", 'linear = ["WEIGHT", "ACTIVATION"]'),
        ("[quantize]\nmethods = ['gptq']", "methods is ['gptq']", 'methods = "smoothquant+gptq"'),
        ("[[layer]]\nweight = 'int8'", "{'weight': 'int8'} is no layer", "write [[layer]] with a name"),
        ("[[layer]]\nname = 'a'\nweight = 8", "is no layer", "write [[layer]] with a name"),
        ("quantize = 3", "is no recipe", "write [quantize] and [[layer]]"),
        ("[layer]\nname = 'a'", "is no recipe", "write [quantize] and [[layer]]"),
        ("[quantize", "cannot be read", "use a TOML file"),
    ],
)
def test_what_is_wrong_is_named(text: str, what: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        read_recipe(written(tmp_path, text))
    assert what in refused.value.what and fix in str(refused.value.fix)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xff")
    for path in (tmp_path / "recipe.toml", tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read"):
            read_recipe(path)


def test_a_pattern_matches_layers() -> None:
    names = ["unet.conv_in", "unet.down.0.a", "unet.down.0.b", "unet.down.1.a"]
    assert matching(Override("unet.down.0.*", {}), names) == {"unet.down.0.a", "unet.down.0.b"}
    assert matching(Override("*", {}), names) == set(names)
    assert matching(Override("unet.conv_in", {}), names) == {"unet.conv_in"}


def test_a_layer_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no layer is named 'unet\.conv_inn'") as refused:
        matching(Override("unet.conv_inn", {}), ["vae.conv_out", "unet.conv_in"])
    assert "did you mean unet.conv_in? " in str(refused.value.fix)


def gptq(plan: Plan, *, samples: int = 32, damping: float = 0.01, lazy: bool = True) -> Plan:
    """Stand for a technique."""
    return plan


def smoothquant(plan: Plan, *, alpha: float | None = None) -> Plan:
    """Stand for another."""
    return plan


def round_to_nearest(plan: Plan, *, by: str = "mse") -> Plan:
    """Stand for a third."""
    return plan


TECHNIQUES = {"gptq": gptq, "smoothquant": smoothquant, "round_to_nearest": round_to_nearest}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gptq", [("gptq", {})]),
        ("smoothquant:alpha=0.5+gptq", [("smoothquant", {"alpha": 0.5}), ("gptq", {})]),
        ("gptq:samples=8:damping=1e-2:lazy=false", [("gptq", {"samples": 8, "damping": 0.01, "lazy": False})]),
        ("gptq:damping=3dB,lazy=true", [("gptq", {"damping": 3, "lazy": True})]),
        ("round-to-nearest:by=minmax + gptq", [("round_to_nearest", {"by": "minmax"}), ("gptq", {})]),
    ],
)
def test_techniques_and_their_options_are_read(text: str, found: list[tuple[str, dict[str, object]]]) -> None:
    passes = parse_passes(text, TECHNIQUES, "--quant")
    assert [(name_of(each), options_of(each)) for each in passes] == found
    assert [type(value) for each in passes for value in options_of(each).values()] == [
        type(value) for _, options in found for value in options.values()
    ]


def test_passes_are_read_with_their_options() -> None:
    passes = parse_passes("gptq:samples=8 + round-to-nearest?+ gptq?:samples=9 ", TECHNIQUES, "--quant")
    assert [(name_of(each), options_of(each), isinstance(each, Optional)) for each in passes] == [
        ("gptq", {"samples": 8}, False),
        ("round_to_nearest", {}, True),
        ("gptq", {"samples": 9}, True),
    ]
    assert parse_passes("gptq", TECHNIQUES, "--quant") == (gptq,)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("gptqq", "'gptqq' is no technique", "gptqq"),
        ("gptq+", "'' is no technique", "gptq+"),
        ("gptq:samples", "'samples' is no option", "gptq:samples"),
        ("gptq:=8", "'=8' is no option", "gptq:=8"),
        ("gptq+gp?tq", "'gp?tq' is no technique", "gptq+gp?tq"),
        ("gptq??", "'gptq?' is no technique", "gptq??"),
        ("gptq?:sample=8", "gptq has no option 'sample'", "--quant"),
        ("round_to_nearest:by=3", "round_to_nearest: by is 3", "--quant"),
    ],
)
def test_passes_that_do_not_exist_are_refused(text: str, what: str, where: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_passes(text, TECHNIQUES, "--quant")
    assert (refused.value.what, refused.value.where) == (what, where)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("gptqq", "did you mean gptq? known: gptq, smoothquant, round_to_nearest"),
        ("smooth-quant", "did you mean smoothquant? "),
        ("gptq:samples", "write TECHNIQUE:option=value"),
        ("gptq:sample=8", "did you mean samples? it has samples, damping, lazy"),
    ],
)
def test_what_was_probably_meant_is_suggested(text: str, fix: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_passes(text, TECHNIQUES, "--quant")
    assert fix in str(refused.value.fix)
