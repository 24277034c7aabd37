"""Say whether the products of bytes in a graph can be summed in 16 bits: where weights have seven bits, not eight.

x86 without VNNI multiplies bytes without a sign by bytes with one, and sums two such products in 16 bits
(``vpmaddubsw``), which cut off what does not fit: 255 * 127 * 2 does not, 255 * 64 * 2 does. Codes of at most 64 are
what ONNX Runtime's quantizer calls a reduced range, and NNCF's a fix of overflow.

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
"""What a code with a sign may be, so that two products with bytes fit into 16 bits."""


def has_reduced_range(graph: Graph) -> bool:
    """Say whether no two products of bytes in a graph can be too large for 16 bits; the graph must have a body."""
    return all(_fits(node) for node in graph.body.graph.nodes if has(node.target, Trait.PRODUCT))


def _fits(product: fx.Node) -> bool:
    first, second = (_largest(factor) for factor in product.args[:2])
    return not first or second <= LARGEST


def _largest(node: Any) -> float:
    """Give the largest code that a value consists of; 0 where it is no codes of integers."""
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
    grid = FORMATS[form]
    return max(-grid.lowest, grid.highest) if grid.is_integer else 0.0
