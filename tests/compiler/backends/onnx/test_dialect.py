"""Portable ONNX of quantized graphs computes what NumPy computes of the same quantized values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from diffc.compiler.backends.onnx.dialect import Dialect, is_quantized_op, storage_type
from tests.quantized_graphs import Array, as_floats, close, evaluated, legalized, operators, spread, stored_types
from tests.tolerances import LEGALIZED

E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
SAME = "float[4, 64]"
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 64)).astype(np.float32)
ROWS = np.arange(1, 9, dtype=np.float32)[:, None]
GROUPS = RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)


def product(weight: str, **constants: Array) -> Any:
    """Return ``x @ w.T`` as written, where w [8, 64] is dequantized."""
    shapes = {"x": SAME, "y": "float[4, 8]", "w": "float[8, 64]", "t": "float[64, 8]", "scale": "float[8, 2]"}
    body = f"{weight} t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)"
    return legalized(body, Dialect, shapes, **constants)


def rounded(activation: str, **constants: Array) -> Any:
    """Return a graph that rounds x."""
    return legalized(activation, Dialect, {"x": SAME, "y": SAME}, **constants)


def integers(low: int, high: int, dtype: Any = np.int8) -> Array:
    """Return quantized values [8, 64]."""
    return RANDOM.integers(low, high, (8, 64), endpoint=True).astype(dtype)


@pytest.mark.parametrize(
    ("form", "low", "high", "stored"),
    [
        ("int2", -2, 1, "INT4"),
        ("int4", -8, 7, "INT4"),
        ("int8", -128, 127, "INT8"),
        ("uint4", 0, 15, "UINT4"),
        ("uint8", 0, 255, "UINT8"),
    ],
)
def test_integers_in_groups_are_stored_in_the_next_larger_type(form: str, low: int, high: int, stored: str) -> None:
    codes = integers(low, high, np.uint8 if form.startswith("u") else np.int8)
    model = product(f'w = diffc.Dequantize <group = 32, form = "{form}"> (codes, scale)', codes=codes, scale=GROUPS)
    close(evaluated(model, X), X @ (codes * spread(GROUPS, 32)).T, LEGALIZED)
    assert stored in stored_types(model)


def test_a_scale_for_each_row_and_its_zero_point() -> None:
    codes, zero = integers(0, 255, np.uint8), np.arange(8).astype(np.uint8) * 30
    body = 'w = diffc.Dequantize <group = 0, form = "uint8"> (codes, scale, zero)'
    model = product(body, codes=codes, scale=ROWS[:, 0], zero=zero)
    expected = X @ ((codes.astype(np.float32) - zero[:, None]) * ROWS).T
    close(evaluated(model, X), expected, LEGALIZED)


def test_scales_may_be_multiples_of_scales_or_powers_of_two() -> None:
    codes, multiples = integers(-8, 7), RANDOM.integers(1, 16, (8, 2)).astype(np.uint8)
    multiplied = """scale = diffc.Dequantize <group = 0, form = "uint4"> (multiples, outer)
        w = diffc.Dequantize <group = 32, form = "int4"> (codes, scale)"""
    model = product(multiplied, codes=codes, multiples=multiples, outer=ROWS[:, 0])
    expected = X @ (codes * spread(multiples * ROWS, 32)).T
    close(evaluated(model, X), expected, LEGALIZED)
    exponents = RANDOM.integers(120, 134, (8, 2)).astype(np.uint8)
    powers = multiplied.replace("uint4", "e8m0")
    model = product(powers, codes=codes, multiples=exponents, outer=np.ones(1, np.float32))
    expected = X @ (codes * spread(np.float32(2) ** (exponents.astype(np.float32) - 127), 32)).T
    close(evaluated(model, X), expected, LEGALIZED)


@pytest.mark.parametrize(("form", "low", "high", "zero"), [("int8", -128, 127, None), ("uint8", 0, 255, 100)])
def test_a_static_activation_is_rounded_half_to_even(form: str, low: int, high: int, zero: int | None) -> None:
    scale, x = np.float32([0.25]), np.linspace(-40, 40, 256, dtype=np.float32).reshape(4, 64)
    constants = {} if zero is None else {"zero": np.array([zero], np.uint8)}
    operands = ", ".join(["x", "scale", *constants])
    model = rounded(f'y = diffc.FakeQuantize <form = "{form}"> ({operands})', scale=scale, **constants)
    expected = (np.clip(np.round(x / scale) + (zero or 0), low, high) - (zero or 0)) * scale
    np.testing.assert_array_equal(evaluated(model, x), expected)
    assert operators(model) == {"QuantizeLinear": 1, "DequantizeLinear": 1}


def test_formats_between_those_of_onnx_are_cut_off_at_their_ends() -> None:
    scale, x = np.float32([0.5]), np.linspace(-30, 30, 256, dtype=np.float32).reshape(4, 64)
    model = rounded('y = diffc.FakeQuantize <form = "int6"> (x, scale)', scale=scale)
    np.testing.assert_array_equal(evaluated(model, x), np.clip(np.round(x / scale), -32, 31) * scale)
    assert operators(model)["Clip"] == 1 and "INT8" in stored_types(model)


def test_each_reader_of_an_activation_dequantizes_for_itself() -> None:
    body = 'q = diffc.FakeQuantize <form = "int8"> (x, scale) n = Neg (q) y = Add (q, n)'
    model = legalized(body, Dialect, {"x": SAME, "q": SAME, "n": SAME, "y": SAME}, scale=np.float32([0.1]))
    assert operators(model) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Neg": 1, "Add": 1}
    assert (evaluated(model, X) == 0).all()


def block_scales(spec: str, largest: Array) -> Array:
    """Return what the values of a block are divided by, from its largest magnitude."""
    if spec == "mxfp4":  # the power of two that leaves the largest below 8, as OCP MX 1.0, 6.3 states
        return np.ldexp(np.float32(1), np.frexp(largest)[1] - 1 - 2)
    if spec == "nvfp4":
        return as_floats(largest / 6, E4M3)
    return largest / np.float32(7 if spec.startswith("int4") else 448)


@pytest.mark.parametrize(
    ("spec", "group"), [("int4:group=32", 32), ("e4m3:group=32", 32), ("nvfp4", 16), ("mxfp4", 32)]
)
def test_dynamic_scales_of_groups(spec: str, group: int) -> None:
    model = rounded(f'y = diffc.FakeQuantizeGroups <spec = "{spec}:dynamic"> (x)')
    x = X * np.exp2(np.arange(4, dtype=np.float32))[:, None]
    x[0, :32] = 0
    blocks = x.reshape(4, -1, group)
    scale = block_scales(spec, np.abs(blocks).max(-1, keepdims=True))
    scaled = blocks / np.where(scale > 0, scale, 1)
    codes = {"int4": np.round, "e4m3": lambda v: as_floats(v, E4M3)}.get(spec[:4], lambda v: as_floats(v, E2M1))(scaled)
    close(evaluated(model, x), (codes * scale).reshape(4, 64), LEGALIZED)


def test_four_bit_floats_are_rounded_as_their_type_rounds() -> None:
    class Rounds(Dialect):
        def activation(self, x: Any, scale: Any, zero: Any, form: str) -> onnx_ir.Value:
            return self.to_e2m1(x)

    x = np.linspace(-8, 8, 256 + 1, dtype=np.float32)[:256].reshape(4, 64)
    body = 'y = diffc.FakeQuantize <form = "e2m1"> (x, scale)'
    model = legalized(body, Rounds, {"x": SAME, "y": SAME}, scale=np.float32([1]))
    np.testing.assert_array_equal(evaluated(model, x), as_floats(x, E2M1))


def test_an_output_keeps_its_name_and_what_nothing_reads_is_dropped() -> None:
    body = """unread = diffc.FakeQuantize <form = "int8"> (x, scale)
        y = diffc.FakeQuantize <form = "int8"> (x, scale)"""
    model = legalized(body, Dialect, {"x": SAME, "y": SAME, "unread": SAME}, scale=np.float32([0.1]))
    assert [output.name for output in model.graph.output] == ["y"]
    assert operators(model) == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert "diffc" not in {opset.domain for opset in model.opset_import}


def test_equal_constants_are_stored_once() -> None:
    body = 'q = diffc.FakeQuantize <form = "int8"> (x, scale) y = diffc.FakeQuantize <form = "int8"> (q, scale)'
    model = legalized(body, Dialect, {"x": SAME, "q": SAME, "y": SAME}, scale=np.float32([0.1]))
    reads = {name for node in model.graph.node for name in node.input}
    assert len(reads & {tensor.name for tensor in model.graph.initializer}) == 2, "one scale and one zero point"


def test_the_types_in_which_formats_are_stored() -> None:
    names = {form: storage_type(form).name for form in ("int3", "uint3", "int5", "uint5", "e2m1", "e4m3", "e5m2")}
    assert list(names.values()) == ["INT4", "UINT4", "INT8", "UINT8", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E5M2"]


def test_a_quantized_operator_is_told_from_others() -> None:
    dequantize, own = (onnx_ir.node("Dequantize", [], domain=domain) for domain in ("diffc", ""))
    assert is_quantized_op(dequantize, "Dequantize")
    assert not any((is_quantized_op(own, "Dequantize"), is_quantized_op(dequantize, "FakeQuantize")))
    assert not is_quantized_op(None, "Dequantize")
