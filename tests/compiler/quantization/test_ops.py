"""The operators of quantized graphs against numpy, ONNX's reference evaluator and the formulas of OCP MX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from diffc.compiler.quantization.formats import E2M1, FORMATS, parse_spec
from diffc.compiler.quantization.ops import dequantize, fake_quantize, fake_quantize_groups, group_scales

Array = NDArray[Any]

TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "e4m3": TensorProto.FLOAT8E4M3FN,
    "e5m2": TensorProto.FLOAT8E5M2,
}


def evaluated(nodes: list[Any], feeds: dict[str, Array], constants: list[Any], shape: tuple[int, ...]) -> Array:
    """Run operators in ONNX's reference, which gives ``y`` of a shape."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    onnx.checker.check_model(model)
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])


def there_and_back(x: Array, scale: float, zero: int, form: str) -> Array:
    """Quantize and dequantize in ONNX."""
    constants = [
        numpy_helper.from_array(np.float32(scale), "scale"),
        helper.make_tensor("zero", TYPES[form], [], [zero]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    return evaluated(nodes, {"x": x}, constants, x.shape)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Sample numbers, some of which are beyond three."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("form", ["int8", "int4", "e4m3", "e5m2"])
def test_an_activation_is_rounded_as_onnx_rounds(form: str) -> None:
    x, scale = numbers(40, 50), 0.011 if form == "int8" else 0.3
    found = fake_quantize(x, torch.tensor([scale]), None, form)
    assert np.array_equal(found.numpy(), there_and_back(x.numpy(), scale, 0, form))


@pytest.mark.parametrize(("form", "zero"), [("uint8", 0), ("uint8", 77), ("uint8", 255), ("uint4", 5)])
def test_an_activation_with_a_zero_point_is_rounded_as_onnx_rounds(form: str, zero: int) -> None:
    scale = 0.013 if form == "uint8" else 0.25
    x = torch.cat([numbers(30, 50), torch.arange(-40, 10)[None] * scale / 2])  # ties too
    found = fake_quantize(x, torch.tensor([scale]), torch.tensor([zero], dtype=torch.uint8), form)
    assert np.array_equal(found.numpy(), there_and_back(x.numpy(), scale, zero, form))


@pytest.mark.parametrize("form", ["int3", "uint6", "int5"])
def test_widths_that_onnx_lacks_are_those_of_the_formula(form: str) -> None:
    x, scale, bits = numbers(30, 40).numpy(), np.float32(0.2), int(form[-1])
    zero = 2 ** (bits - 2) if form.startswith("u") else 0
    low, high = (0, 2**bits - 1) if form.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    wanted = (np.clip(np.rint(x / scale) + zero, low, high) - zero).astype(np.float32) * scale
    offset = torch.tensor([zero], dtype=torch.uint8) if zero else None
    assert np.array_equal(fake_quantize(torch.from_numpy(x), torch.tensor([scale]), offset, form).numpy(), wanted)


@pytest.mark.parametrize("form", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("blocked", [False, True])
def test_codes_become_numbers_as_in_onnx(form: str, blocked: bool) -> None:
    random = np.random.default_rng(0)
    grid = FORMATS[form]
    quantized = random.integers(int(grid.lowest), int(grid.highest) + 1, (6, 32))
    shape = (6, 4) if blocked else (6,)
    scale = random.random(shape).astype(np.float32)
    zero = random.integers(0, 15, shape) if form.startswith("u") else np.zeros(shape, np.int64)
    constants = [
        helper.make_tensor("codes", TYPES[form], quantized.shape, quantized.flatten()),
        numpy_helper.from_array(scale, "scale"),
        helper.make_tensor("zero", TYPES[form], shape, zero.flatten()),
    ]
    how: dict[str, Any] = {"axis": 1, "block_size": 8} if blocked else {"axis": 0}
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **how)]
    wanted = evaluated(nodes, {}, constants, quantized.shape)
    stored = grid.encode(torch.from_numpy(quantized).float())
    offset = grid.encode(torch.from_numpy(zero).float()) if form.startswith("u") else None
    found = dequantize(stored, torch.from_numpy(scale), offset, 8 if blocked else 0, form, torch.float32)
    assert np.array_equal(found.numpy(), wanted)


def test_four_bit_floats_and_their_scales_become_numbers() -> None:
    quantized = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    stored = FORMATS["e8m0"].encode(torch.tensor([[0.5, 2.0], [1.0, 8.0]]))
    scale = dequantize(stored, torch.ones(1), None, 0, "e8m0", torch.float32)
    values = np.concatenate([E2M1.numpy(), -E2M1.numpy()]).reshape(2, 2, 4)
    wanted = values * np.array([[0.5, 2.0], [1.0, 8.0]])[..., None]
    assert np.array_equal(dequantize(quantized, scale, None, 4, "e2m1", torch.float32).numpy(), wanted.reshape(2, 8))


def blocks(size: int) -> Array:
    """Sample rows of blocks, of very different sizes, one of them all zero and one that ends with a power of two."""
    x = numbers(12, 4 * size).numpy() * np.float32(10) ** np.arange(-4, 2, 0.5, np.float32)[:, None]
    x[3, :size], x[4, :size], x[4, 0] = 0.0, 0.1, 4.0
    return np.asarray(x, np.float32)


def nearest_e2m1(x: Array) -> Array:
    """Round to the four-bit floats by looking at all of them; a tie goes to the even code."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    distance = np.abs(np.abs(x)[..., None].astype(np.float64) - magnitudes)
    even_first = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    return np.copysign(magnitudes[even_first[distance[..., even_first].argmin(-1)]], x)


def test_a_block_of_mxfp4_is_that_of_ocp_mx_section_6_3() -> None:
    x = blocks(32)
    found = fake_quantize_groups(torch.from_numpy(x), "mxfp4:dynamic").numpy()
    each = x.reshape(12, 4, 32)
    largest = np.abs(each).max(-1, keepdims=True).astype(np.float64)
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - 2  # the largest exponent of e2m1 is 2
    scale = np.where(largest > 0, 2.0**exponent, 1.0)
    assert np.array_equal(found.reshape(each.shape), nearest_e2m1(each / scale) * scale)
    spec = parse_spec("mxfp4")
    assert spec is not None
    alive = largest[..., 0] > 0
    assert np.array_equal(group_scales(spec, torch.from_numpy(x)).numpy()[alive], scale[..., 0][alive])


def test_a_block_of_nvfp4_has_its_largest_number_at_six() -> None:
    x = blocks(16)
    found = fake_quantize_groups(torch.from_numpy(x), "nvfp4:dynamic").numpy()
    each = x.reshape(12, 4, 16)
    scale = torch.from_numpy(np.abs(each).max(-1) / np.float32(6)).to(torch.float8_e4m3fn).float().numpy()
    scale = np.where(scale > 0, scale, 1)[..., None].astype(np.float32)
    assert np.array_equal(found.reshape(each.shape), nearest_e2m1(each / scale).astype(np.float32) * scale)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 5, 64)])
def test_groups_of_integers_lie_along_the_last_axis(shape: tuple[int, ...]) -> None:
    x = numbers(*shape).numpy()
    each = x.reshape(*shape[:-1], 2, 32)
    scale = np.abs(each).max(-1, keepdims=True) / np.float32(7)
    wanted = np.clip(np.rint(each / scale), -8, 7) * scale
    found = fake_quantize_groups(torch.from_numpy(x), "int4:group=32:dynamic").numpy()
    assert np.array_equal(found, wanted.reshape(shape))


@pytest.mark.parametrize("spec", ["nvfp4:dynamic", "mxfp4:dynamic", "int4:group=16:dynamic", "e4m3:group=16:dynamic"])
def test_a_group_of_zeros_stays(spec: str) -> None:
    assert not fake_quantize_groups(torch.zeros(3, 64), spec).any()


@pytest.mark.parametrize("operator", [dequantize, fake_quantize, fake_quantize_groups], ids=lambda each: each._name)
def test_operators_keep_torchs_rules(operator: Any) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "diffc::dequantize": (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 2), None, 2, "int8", torch.float32),
        "diffc::fake_quantize": (torch.randn(3), torch.ones(1), torch.zeros(1, dtype=torch.uint8), "uint8"),
        "diffc::fake_quantize_groups": (torch.randn(3, 32), "int4:group=16:dynamic"),
    }
    torch.library.opcheck(operator, arguments[operator._qualname])
