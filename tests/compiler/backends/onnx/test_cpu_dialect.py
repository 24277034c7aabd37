"""What engines of CPUs compute in 8-bit integers is what NumPy computes of the same quantized values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from diffc.compiler.backends.onnx.cpu_dialect import CpuDialect
from tests.quantized_graphs import as_floats, close, evaluated, legalized, operators, spread, stored_types
from tests.tolerances import LEGALIZED

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 64)).astype(np.float32)
STEP = np.float32(0.05)
SHAPES = {"x": "float[4, 64]", "y": "float[4, 8]", "q": "float[4, 64]", "w": "float[8, 64]", "t": "float[64, 8]"}
SHAPES |= {"scale": "float[8, 2]"}
IN_FLOAT = "{} t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)"
IN_INTEGERS = 'q = diffc.FakeQuantize <form = "int8"> (x, step) {} t = Transpose <perm = [1, 0]> (w) y = MatMul (q, t)'

Array = NDArray[Any]


def product(weight: str, activation: str, **constants: Array) -> Any:
    """Return a product of x, in float or rounded to 8-bit integers, as written."""
    constants |= {"step": np.array([STEP])} if "step" in activation else {}
    return legalized(activation.replace("{}", weight), CpuDialect, SHAPES, **constants)


def activation(kind: str) -> Array:
    """Return what a product multiplies."""
    values: Array = X if kind == IN_FLOAT else np.clip(np.round(X / STEP), -128, 127) * STEP
    return values


def codes(form: str) -> Array:
    """Return quantized values [8, 64], those of four-bit floats by their bits."""
    low, high = {"int4": (-8, 7), "int3": (-4, 3), "uint4": (0, 15), "e2m1": (0, 15)}[form]
    return RANDOM.integers(low, high, (8, 64), endpoint=True).astype(np.int8 if form.startswith("i") else np.uint8)


@pytest.mark.parametrize(("kind", "widened"), [(IN_FLOAT, False), (IN_INTEGERS, True)])
@pytest.mark.parametrize("form", ["int4", "uint4"])
def test_four_bits_are_widened_where_they_meet_integers(form: str, kind: str, widened: bool) -> None:
    values, scale = codes(form), RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)
    model = product(
        f'w = diffc.Dequantize <group = 32, form = "{form}"> (values, scale)', kind, values=values, scale=scale
    )
    close(evaluated(model, X), activation(kind) @ (values * spread(scale, 32)).T, LEGALIZED)
    assert form.upper() in stored_types(model) and operators(model)["Cast"] == widened


@pytest.mark.parametrize("kind", [IN_FLOAT, IN_INTEGERS])
def test_a_four_bit_float_is_a_doubled_integer_by_a_table(kind: str) -> None:
    values, scale = codes("e2m1"), RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)
    model = product(
        'w = diffc.Dequantize <group = 32, form = "e2m1"> (values, scale)', kind, values=values, scale=scale
    )
    floats = values.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    close(evaluated(model, X), activation(kind) @ (floats * spread(scale, 32)).T, LEGALIZED)
    assert operators(model)["Gather"] == 1 and {"UINT4", "INT8"} <= stored_types(model)
    assert "FLOAT4E2M1" not in stored_types(model), "which engines of CPUs do not read"


@pytest.mark.parametrize("form", ["int4", "int3"])
def test_whole_multiples_leave_one_scale_for_each_row(form: str) -> None:
    values, multiples = codes(form), RANDOM.integers(1, 16, (8, 2)).astype(np.uint8)
    outer = RANDOM.uniform(0.01, 0.02, 8).astype(np.float32)
    weight = f"""scale = diffc.Dequantize <group = 0, form = "uint4"> (multiples, outer)
        w = diffc.Dequantize <group = 32, form = "{form}"> (values, scale)"""
    model = product(weight, IN_INTEGERS, values=values, multiples=multiples, outer=outer)
    expected = activation(IN_INTEGERS) @ (values * spread(multiples * outer[:, None], 32)).T
    close(evaluated(model, X), expected, LEGALIZED)
    (dequantize,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear" and "outer" in n.input)
    assert [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"] == [0]
    assert not any(attribute.name == "block_size" and attribute.i for attribute in dequantize.attribute)


def test_an_activation_of_four_bit_floats_is_rounded_in_float() -> None:
    body = 'y = diffc.FakeQuantize <form = "e2m1"> (x, step)'
    model = legalized(body, CpuDialect, {"x": SHAPES["x"], "y": SHAPES["x"]}, step=np.array([0.25], np.float32))
    expected = as_floats(X / np.float32(0.25), ml_dtypes.float4_e2m1fn) * np.float32(0.25)
    np.testing.assert_array_equal(evaluated(model, X), expected)
    assert "QuantizeLinear" not in operators(model)


@pytest.mark.parametrize("form", ["int4", "uint6"])
def test_integers_of_less_than_eight_bits_are_cut_off_and_stored_in_eight(form: str) -> None:
    low, high, zero = {"int4": (-8, 7, 0), "uint6": (0, 63, 20)}[form]
    step = np.array([0.125], np.float32)
    operands = "x, step, zero" if zero else "x, step"
    constants = {"step": step} | ({"zero": np.array([zero], np.uint8)} if zero else {})
    body = f'y = diffc.FakeQuantize <form = "{form}"> ({operands})'
    model = legalized(body, CpuDialect, {"x": SHAPES["x"], "y": SHAPES["x"]}, **constants)
    x = X * 4
    expected = (np.clip(np.round(x / step) + zero, low, high) - zero) * step
    np.testing.assert_array_equal(evaluated(model, x), expected)
    assert ("UINT8" if form.startswith("u") else "INT8") in stored_types(model)
