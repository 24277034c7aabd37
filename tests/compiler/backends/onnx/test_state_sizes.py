"""Sizes that a graph leaves open are stated, where they are known."""

from __future__ import annotations

import numpy as np
import onnx_ir

from diffc.compiler.backends.onnx.state_sizes import state_sizes

RESHAPES = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[2, 12] x) => (float[2, 3, 4] y, float[6, 4] z)
    <int64[3] open = {2, -1, 4}, int64[2] stated = {6, 4}> {
        y = Reshape (x, open)
        z = Reshape (x, stated)
    }"""


def test_an_open_size_of_a_reshape_is_stated_and_others_stay() -> None:
    graph = onnx_ir.from_onnx_text(RESHAPES).graph
    state_sizes(graph)
    sizes = [node.inputs[1].const_value.numpy().tolist() for node in graph]  # type: ignore[union-attr]
    assert sizes == [[2, 3, 4], [6, 4]]
    assert graph.node(1).inputs[1].name == "stated"  # type: ignore[union-attr]


def test_a_size_is_solved_for_where_only_the_input_is_known() -> None:
    graph = onnx_ir.from_onnx_text(RESHAPES).graph
    graph.node(0).outputs[0].shape = None
    state_sizes(graph)
    np.testing.assert_array_equal(graph.node(0).inputs[1].const_value.numpy(), [2, 3, 4])  # type: ignore[union-attr]


def test_a_size_that_is_not_known_stays_open() -> None:
    graph = onnx_ir.from_onnx_text(RESHAPES).graph
    graph.node(0).outputs[0].shape = onnx_ir.Shape(["n", 3, 4])
    graph.inputs[0].shape = onnx_ir.Shape(["n", 12])
    state_sizes(graph)
    np.testing.assert_array_equal(graph.node(0).inputs[1].const_value.numpy(), [2, -1, 4])  # type: ignore[union-attr]
