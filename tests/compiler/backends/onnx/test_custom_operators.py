"""Operators of a plugin are one node each, computed by its library, by their functions, or refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from diffc.compiler.backends.onnx import custom_operators
from diffc.compiler.backends.onnx.custom_operators import plugins_of, resolve, translations
from diffc.compiler.errors import BackendError
from diffc.runtime.plugins import Plugin
from tests.toys.package import install

SCALED = """<ir_version: 10, opset_import: ["" : 23, "toy" : 1]>
    g (float[2, 3] x) => (float[2, 3] y) { y = toy.Scale <factor: float = 3.0> (x) }"""
BARE = SCALED.replace("Scale", "Bare")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    """Install the toy package for one test, and return its plugin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path))
        yield import_module("toy_diffc.plugin").PLUGIN
    for name in [name for name in sys.modules if name in ("toy_diffc", "toy_diffc.plugin", "toy_diffc.backend")]:
        del sys.modules[name]


@pytest.fixture
def with_library(plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """Let the plugin bring a library for one engine."""
    library = tmp_path / "libtoy.so"
    library.write_bytes(b"kernel")
    complete = replace(plugin, libraries={"onnxruntime": library})
    monkeypatch.setattr(custom_operators, "find_plugin", lambda *_: complete)
    return complete


def resolved(text: str, engine: str) -> tuple[onnx.ModelProto, custom_operators.Entries]:
    """Decide what computes the operators of a graph for an engine."""
    model = onnx_ir.from_onnx_text(text)
    entries = resolve(model, engine)
    return onnx_ir.to_proto(model), entries


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("engine", ["", "onnxruntime"])
def test_without_a_library_an_operator_is_its_function(engine: str) -> None:
    model, entries = resolved(SCALED, engine)
    assert entries == {} and not model.functions
    assert {node.domain for node in model.graph.node} == {""} == {opset.domain for opset in model.opset_import}
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": X})[0], X * 3)


@pytest.mark.usefixtures("plugin")
def test_without_a_library_and_a_function_an_operator_is_refused() -> None:
    with pytest.raises(BackendError, match=r"nothing computes toy\.Bare for this target") as refused:
        resolved(BARE, "onnxruntime")
    assert refused.value.fix == "choose a target whose engine has a library: toy-diffc brings one for no engine"


def test_a_library_computes_the_node_and_the_manifest_names_it(with_library: Plugin) -> None:
    model, entries = resolved(SCALED, "onnxruntime")
    assert [(node.domain, node.op_type) for node in model.graph.node] == [("toy", "Scale")]
    assert entries["toy"]["operators"] == ["Scale"] and entries["toy"]["library"] == "libtoy.so"
    assert entries["toy"]["has_functions"] and entries["toy"]["version"] == "1.5"
    assert [function.name for function in model.functions] == ["Scale"], "for engines without the library"
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": X})[0], X * 3)


def test_a_library_of_another_engine_does_not_help(with_library: Plugin) -> None:
    with pytest.raises(BackendError, match=r"nothing computes toy\.Bare") as refused:
        resolved(BARE, "openvino")
    assert str(refused.value.fix).endswith("toy-diffc brings one for onnxruntime")
    assert resolved(BARE, "onnxruntime")[1]["toy"]["has_functions"] is False


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own, as it exports
def test_a_call_in_torch_is_one_node_with_its_attributes(plugin: Plugin) -> None:
    import_module(plugin.definitions)

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = torch.ops.toy.scale(x, 3.0)
            return scaled + 1

    body = torch.export.export(Net(), (torch.ones(2, 3),))
    assert [found.domain for found in plugins_of(body)] == ["toy"]
    program: Any = torch.onnx.export(body, dynamo=True, custom_translation_table=translations(body), verbose=False)
    (node,) = (node for node in program.model.graph if node.domain == "toy")
    assert node.op_type == "Scale" and node.attributes["factor"].as_float() == 3.0
    assert plugins_of(torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),))) == []
