"""Find whether the int8 products of a graph can be summed in 16 bits: where weights have seven bits, not eight.

x86 without VNNI multiplies bytes without a sign by bytes with one, and sums two such products in 16 bits
(``vpmaddubsw``), which saturate: 255 * 127 * 2 does not fit, 255 * 64 * 2 does. Weights of at most 64 are a
reduced range to ONNX Runtime's quantizer, and an overflow fix to NNCF's.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

import diffc.compiler.quantization.ops  # noqa: F401  (defines the operators)
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.formats import FORMATS

ops = torch.ops.diffc

LARGEST = 64
"""The largest signed value of which two products with unsigned bytes fit into 16 bits."""


def has_reduced_range(graph: Graph) -> bool:
    """Return whether the sum of any two int8 products of a graph fits into 16 bits; the graph must have a body."""
    return all(_fits(node) for node in graph.body.graph.nodes if has(node.target, Trait.PRODUCT))


def _fits(product: fx.Node) -> bool:
    first, second = (_largest(factor) for factor in product.args[:2])
    return not first or second <= LARGEST


def _largest(node: Any) -> float:
    """Return the largest quantized value of a node; 0 where it is not quantized to integers."""
    if has(node.target, Trait.MOVES):
        return max(map(_largest, node.all_input_nodes))
    if node.target == ops.fake_quantize.default:
        return _end(node.args[3])
    if node.target == ops.dequantize.default:
        scale = node.args[1]
        multiple = _end(scale.args[4]) if scale.target == ops.dequantize.default else 0.0
        return _end(node.args[4]) * (multiple or 1.0)
    return 0.0


def _end(form: str) -> float:
    number_format = FORMATS[form]
    return max(-number_format.lowest, number_format.highest) if number_format.is_integer else 0.0
