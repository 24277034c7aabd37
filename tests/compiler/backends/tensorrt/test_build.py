"""A builder in a process of its own: what it refuses, and what becomes of a build when it crashes, dies or hangs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffc.compiler.backends.tensorrt import build, build_process
from diffc.compiler.backends.tensorrt.build import EngineRequest, build_engines, weight_bytes
from diffc.compiler.backends.tensorrt.build_process import not_refitted, ranges, strip
from diffc.compiler.errors import BackendError, BuildError
from diffc.runtime.engines.tensorrt_library import INSTALL, RTX, Library, find_library, installed
from tests.runtime.fake_gpu import FakeCuda, FakeTensorRT, plan

needs_rtx = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")

BUILDERS = {
    "os.abort()": "crashed (SIGABRT); its last words: about to end",
    "os.kill(os.getpid(), 9)": "killed, as it is when memory runs out; its last words: about to end",
    "sys.exit(3)": "ended with 3; its last words: about to end",
    "time.sleep(60)": "sent no message for 2 s and was stopped",
}
"""What a builder may do, and what is then said."""


def write(folder: Path, *operators: str) -> list[EngineRequest]:
    """Write a graph of operators one after the other."""
    nodes = [helper.make_node(kind, [f"v{at}"], [f"v{at + 1}"]) for at, kind in enumerate(operators)]
    ends = [helper.make_tensor_value_info(f"v{at}", TensorProto.FLOAT, [2, 3]) for at in (0, len(operators))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), folder / "g.onnx")
    return [EngineRequest("g.onnx", ("g",), {"v0": ((2, 3),)})]


@pytest.mark.parametrize("does", BUILDERS)
def test_a_builder_that_ends_without_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    (tmp_path / "broken_builder.py").write_text(
        f"import os, sys, time\nprint('about to end', file=sys.stderr, flush=True)\n{does}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "BUILDER", "broken_builder")
    with pytest.raises(BackendError) as caught:
        build_engines(tmp_path, write(tmp_path, "Relu"), ["sm89"], lambda _: None, patience=2)
    assert BUILDERS[does] in str(caught.value)
    assert not list((tmp_path / "engines").iterdir())


def test_the_node_is_looked_for_where_a_builder_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_builder.py").write_text("import os\nos.abort()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "BUILDER", "broken_builder")
    said = list[str]()
    with pytest.raises(BackendError) as caught:
        build_engines(
            tmp_path,
            write(tmp_path, "Relu"),
            ["sm89"],
            said.append,
            find_node=lambda file, fails: f"Relu v1 of {file.name}, {fails(file)}",
        )
    assert caught.value.where == "Relu v1 of g.onnx, True, in g"
    assert said == ["engine g: look for the node at fault"]


def test_a_builder_that_would_not_have_enough_memory_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_memory", lambda: 100 << 20)
    monkeypatch.setattr(build, "BUILDER", "never_started")
    with pytest.raises(BuildError, match="needs up to 0.6 GB of memory, and there are 0.1 GB"):
        build_engines(tmp_path, write(tmp_path, "Relu"), ["sm89"], lambda _: None)
    assert not (tmp_path / "engines").exists()


def test_weights_outside_a_file_are_counted(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    for name, outside in (("in", False), ("out", True)):
        file = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph), file, save_as_external_data=outside, location="w.bin", size_threshold=0)
        assert 4 * 64 * 64 < weight_bytes(file) < 4 * 64 * 64 + 500
        assert (file.stat().st_size < 1000) == outside


@needs_rtx
def test_what_the_parser_refuses_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no engine for g") as caught:
        build_engines(tmp_path, write(tmp_path, "Relu", "Det"), ["sm89"], lambda _: None)
    assert "Det" in str(caught.value)


def test_a_builder_is_told_to_leave_the_weights_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in_builder.py").write_text(
        "import json, pathlib, sys\n"
        "asked = json.load(sys.stdin)\n"
        "pathlib.Path(asked['engine']).write_text('strip' if asked['strip'] else 'whole')\n"
        "about = {'builder': 'tensorrt 1.0', 'seconds': 1, 'peak_bytes': 1, 'layers': 1, 'types': {}}\n"
        "print(json.dumps({'built': about}))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "BUILDER", "stand_in_builder")
    [asked] = write(tmp_path, "Relu")
    for wanted, text, more in ((asked, "whole", {}), (replace(asked, strip=True), "strip", {"stripped": True})):
        [made] = build_engines(tmp_path, [wanted], ["sm89"], lambda _: None).values()
        assert (tmp_path / made.file).read_text() == text
        assert made.entry == {"file": made.file, "builder": "tensorrt 1.0", "archs": ["sm89"]} | more


@needs_rtx
def test_the_real_builder_takes_the_flags() -> None:
    trt = find_library(RTX).module
    config = trt.Builder(trt.Logger()).create_builder_config()
    strip(config, trt)
    flags = {name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)}
    assert {"STRIP_PLAN", "REFIT_IDENTICAL"} <= flags and not {"REFIT", "REFIT_INDIVIDUAL"} & flags


@pytest.mark.parametrize(
    ("lacks", "said"), [("w", ""), ("v", "without weights it is built, but g.onnx lacks 1 of its")]
)
def test_an_engine_that_does_not_take_its_weights_back_is_not_built(tmp_path: Path, lacks: str, said: str) -> None:
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [weight])), tmp_path / "g.onnx")
    library = Library(FakeTensorRT(FakeCuda()), RTX, "1.0")
    found = not_refitted(library, plan([1], lacks=(lacks,)), tmp_path / "g.onnx")
    assert found.startswith(said) and bool(found) == bool(said)


@needs_rtx
@pytest.mark.parametrize(("lacks", "answer"), [("w", "built"), ("v", "failed")])
def test_an_engine_without_weights_takes_them_back_before_it_counts_as_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, answer: str
) -> None:
    """The real library parses; what it builds only where a driver is, and opens, is a stand-in's."""
    real, fake = find_library(RTX).module, FakeTensorRT(FakeCuda())

    class Builder:
        def __init__(self, log: object) -> None:
            self.real = real.Builder(log)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def build_serialized_network(self, network: object, config: Any) -> bytes:
            assert config.get_flag(real.BuilderFlag.STRIP_PLAN)
            return plan([2, 3], lacks=(lacks,))

    half = ModuleType("half")
    vars(half).update(vars(real), Builder=Builder, Runtime=fake.Runtime)
    vars(half).update(Refitter=fake.Refitter, OnnxParserRefitter=fake.OnnxParserRefitter)
    monkeypatch.setattr(build_process, "find_library", lambda kind: Library(half, kind, "1.0"))
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "zy"]
    graph = helper.make_graph([helper.make_node("Mul", ["z", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    asked = {"graph": str(tmp_path / "g.onnx"), "engine": str(tmp_path / "g.engine"), "shapes": {}}
    asked |= {"kind": RTX, "archs": ["sm89"], "strip": True}
    assert answer in build_process.build(asked, lambda _: None)
    assert (tmp_path / "g.engine").exists() == (answer == "built")
    assert fake.refitted == [str(tmp_path / "g.onnx")]


@needs_rtx
def test_an_engine_is_built_and_described(tmp_path: Path) -> None:
    found = build_engines(tmp_path, write(tmp_path, "Relu", "Sigmoid"), ["sm86", "sm120"], lambda _: None, kind=RTX)
    (made,) = found.values()
    assert made.entry == {"file": "engines/g.engine", "builder": made.builder, "archs": ["sm86", "sm120"]}
    assert made.builder.startswith("tensorrt-rtx 1.")
    assert made.bytes == (tmp_path / made.file).stat().st_size > 0
    assert made.layers == 2 and made.types == {"FLOAT": 2} and made.peak_bytes > 1e7


@pytest.mark.parametrize(
    ("shapes", "ends"),
    [
        ([(2, 8, 8), (1, 8, 8)], [((1, 8, 8), (2, 8, 8))]),
        ([(2, 8, 8), (1, 8, 8), (2, 8, 12), (1, 8, 12)], [((1, 8, 8), (2, 8, 12))]),
        (
            [(2, 8, 12), (1, 8, 12), (2, 12, 8), (1, 12, 8)],
            [((1, 8, 12), (2, 8, 12)), ((1, 12, 8), (2, 12, 8))],
        ),
        ([(8, 8), (12, 8), (8, 12), (12, 12)], [((8, 8), (12, 12)), ((8, 12), (8, 12))]),
    ],
)
def test_ranges_end_in_shapes_that_are_there(
    shapes: list[tuple[int, ...]], ends: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    given = {"x": shapes, "y": [(1, 4 * shape[0]) for shape in shapes]}
    found = ranges(given)
    assert [(least["x"], most["x"]) for least, most in found] == ends
    assert [(least["y"][1], most["y"][1]) for least, most in found] == [(4 * low[0], 4 * high[0]) for low, high in ends]


@needs_rtx
def test_one_engine_is_built_of_a_graph_that_is_open_in_two_sizes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 23]>
        g (float[batch, 4, height, width] x) => (float[batch, 4, area] y) <int64[1] four = {4}> {
            batch = Shape <start = 0, end = 1> (x)
            height = Shape <start = 2, end = 3> (x)
            width = Shape <start = 3, end = 4> (x)
            area = Mul (height, width)
            sizes = Concat <axis = 0> (batch, four, area)
            y = Reshape (x, sizes)
        }""")
    onnx.save(model, tmp_path / "g.onnx")
    shapes = ((2, 4, 8, 12), (1, 4, 8, 12), (2, 4, 12, 8), (1, 4, 12, 8))
    wanted = [EngineRequest("g.onnx", ("g", "h"), {"x": shapes})]
    made = build_engines(tmp_path, wanted, ["sm89"], lambda _: None, kind=RTX)
    assert made["g"] is made["h"] and made["g"].bytes > 0
