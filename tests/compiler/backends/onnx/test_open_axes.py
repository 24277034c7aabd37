"""Open axes are named as the program names them, and masks of one row repeat for as many queries as there are."""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx.reference import ReferenceEvaluator

from diffc.compiler.backends.onnx.open_axes import name_axes, repeated_mask
from diffc.compiler.ir.program import Graph, Size, Type, Value

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
    g (bool[1, 1, 1, k] mask, float[1, 2, q, 8] queries) => (bool[1, 1, q, k] out) { out = Identity (mask) }"""


def test_ports_name_the_open_axes() -> None:
    model = onnx_ir.from_onnx_text(MODEL)
    ports = (
        Value("mask", Type("bool", (1, 1, 1, 2 * Size.of("L0") + 1))),
        Value("queries", Type("float32", (1, 2, Size.of("L0"), 8))),
    )
    name_axes(model, Graph("g", ports, (Value("out", Type("bool", (1, 1, 3, 4))),)))
    assert [str(value.shape) for value in model.graph.inputs] == ["[1,1,1,2*L0 + 1]", "[1,2,L0,8]"]
    assert str(model.graph.outputs[0].shape) == "[1,1,q,k]", "fixed ports stay"


def test_a_mask_repeats_for_each_query() -> None:
    model = onnx_ir.from_onnx_text(MODEL)
    mask, queries = model.graph.inputs
    nodes = repeated_mask(mask, queries, "attention")
    [identity] = model.graph
    model.graph.insert_before(identity, nodes)
    identity.replace_input_with(0, nodes[-1].outputs[0])
    feeds = {"mask": np.array([[[[True, False, True]]]]), "queries": np.zeros((1, 2, 5, 8), np.float32)}
    [result] = ReferenceEvaluator(onnx_ir.to_proto(model)).run(None, feeds)
    np.testing.assert_array_equal(result, np.broadcast_to(feeds["mask"], (1, 1, 5, 3)))
