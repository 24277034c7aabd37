"""The node at which a builder fails is found by halving."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from diffc.compiler.backends.tensorrt.bisect_crash import first_failing_node, first_nodes

COUNT = 13


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Write a graph of operators one after the other, each of which reads the first value too."""
    nodes = [helper.make_node("Add", [f"v{at}", "v0"], [f"v{at + 1}"]) for at in range(COUNT)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("v0", f"v{COUNT}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph), tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


@pytest.mark.parametrize("at", range(1, COUNT + 1))
def test_the_node_is_found_wherever_it_is(chain: Path, at: int) -> None:
    asked = []

    def fails(path: Path) -> bool:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        asked.append(path)
        return any(f"v{at}" in node.output for node in model.graph.node)

    assert first_failing_node(chain, fails) == f"Add v{at}"
    assert len(asked) <= 5, "13 nodes are halved four times, and once all are asked"
    assert list(chain.parent.iterdir()) == [chain]


def test_none_is_blamed_where_no_part_fails(chain: Path) -> None:
    assert first_failing_node(chain, lambda _: False) == ""


def test_none_is_blamed_in_a_file_that_is_none(tmp_path: Path) -> None:
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [])), tmp_path / "empty.onnx")
    assert first_failing_node(tmp_path / "empty.onnx", lambda _: False) == ""


def test_a_part_gives_what_the_rest_reads(chain: Path) -> None:
    part = first_nodes(onnx.shape_inference.infer_shapes(onnx.load(chain)), 4)
    assert [value.name for value in part.graph.output] == ["v4"]
    assert [value.name for value in part.graph.input] == ["v0"]
