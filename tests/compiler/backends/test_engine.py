"""A builder in a process of its own: what it refuses, and what becomes of a build when it crashes, dies or hangs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from diffc.compiler.backends import engine
from diffc.compiler.backends.engine import build_engines
from diffc.compiler.errors import BackendError
from diffc.runtime.tensorrt import INSTALL, RTX, installed

needs_rtx = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")

BUILDERS = {
    "os.abort()": "crashed (SIGABRT); its last words: about to end",
    "os.kill(os.getpid(), 9)": "killed, as it is when memory runs out; its last words: about to end",
    "sys.exit(3)": "ended with 3; its last words: about to end",
    "time.sleep(60)": "said nothing for 2 s and was stopped",
}
"""What a builder may do, and what is then said."""


def write(folder: Path, *operators: str) -> dict[str, str]:
    """Write a graph of operators one after the other."""
    nodes = [helper.make_node(kind, [f"v{at}"], [f"v{at + 1}"]) for at, kind in enumerate(operators)]
    ends = [helper.make_tensor_value_info(f"v{at}", TensorProto.FLOAT, [2, 3]) for at in (0, len(operators))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), folder / "g.onnx")
    return {"g": "g.onnx"}


@pytest.mark.parametrize("does", BUILDERS)
def test_a_builder_that_ends_without_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    (tmp_path / "broken_builder.py").write_text(
        f"import os, sys, time\nprint('about to end', file=sys.stderr, flush=True)\n{does}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "BUILDER", "broken_builder")
    with pytest.raises(BackendError) as caught:
        build_engines(tmp_path, write(tmp_path, "Relu"), ["sm89"], lambda _: None, patience=2)
    assert BUILDERS[does] in str(caught.value)
    assert not list((tmp_path / "engines").iterdir())


def test_the_node_is_looked_for_where_a_builder_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_builder.py").write_text("import os\nos.abort()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "BUILDER", "broken_builder")
    said = list[str]()
    with pytest.raises(BackendError) as caught:
        build_engines(
            tmp_path,
            write(tmp_path, "Relu"),
            ["sm89"],
            said.append,
            culprit=lambda file, fails: f"Relu v1 of {file.name}, {fails(file)}",
        )
    assert caught.value.where == "Relu v1 of g.onnx, True, in g"
    assert said == ["engine g: look for the node at fault"]


@needs_rtx
def test_what_the_parser_refuses_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no engine for g") as caught:
        build_engines(tmp_path, write(tmp_path, "Relu", "Det"), ["sm89"], lambda _: None)
    assert "Det" in str(caught.value)


@needs_rtx
def test_an_engine_is_built_and_described(tmp_path: Path) -> None:
    found = build_engines(tmp_path, write(tmp_path, "Relu", "Sigmoid"), ["sm86", "sm120"], lambda _: None, kind=RTX)
    (made,) = found.values()
    assert made.entry == {"file": "engines/g.engine", "builder": made.builder, "archs": ["sm86", "sm120"]}
    assert made.builder.startswith("tensorrt-rtx 1.")
    assert made.bytes == (tmp_path / made.file).stat().st_size > 0
    assert made.layers == 2 and made.types == {"FLOAT": 2} and made.peak_bytes > 1e7
