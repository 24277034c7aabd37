"""Execute operations of tiny programs: lifetimes, arithmetic, and graphs that break their declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from diffc.runtime import BundleError, Sampler, load


def test_frees_values_at_their_last_use(sampler: Sampler) -> None:
    program, alive = sampler._bundle.programs["draw"], list[set[str]]()
    inputs = {"prompt": ["red"], "negative_prompt": [""]}
    inputs |= {value.name: np.zeros(value.type.shape, np.float32) for value in program.noises}
    interpreter = sampler._interpreter
    interpreter.run(program, inputs, {"guidance_scale": 5.0}, on_step=lambda op, values: alive.append(set(values)))
    assert alive[1] == {"bias", "h", "x2", "z2"} and alive[2] == {"bias", "x3"}


def test_closes_sessions_where_memory_is_short_those_first_that_are_called_last(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, memory = load(tiny.write(tmp_path)), {"free": 1 << 40}
    monkeypatch.setattr("diffc.runtime.interpreter.free_memory", lambda: memory["free"])
    monkeypatch.setattr("diffc.runtime.interpreter.external_bytes", lambda _: 100)
    sessions = sampler._interpreter._sessions
    expected = sampler("red circle", seed=0, output="np")
    assert list(sessions) == ["text_encoder", "unet", "decoder"], "nothing is closed while there is memory"
    memory["free"] = 149
    sampler._interpreter._make_space("unet", ())
    assert list(sessions) == ["text_encoder", "unet", "decoder"], "an open graph needs no memory"
    sessions.clear()
    np.testing.assert_array_equal(sampler("red square", seed=0, output="np").shape, expected.shape)
    assert list(sessions) == ["decoder"], "each graph closed the one before"
    np.testing.assert_array_equal(sampler("red circle", seed=0, output="np"), expected)
    memory["free"] = 150
    sampler("blue", seed=0, output="np")
    assert "text_encoder" in sessions and "unet" in sessions
    ops = sampler._bundle.programs["draw"].ops
    del sessions["decoder"]
    levels = iter([0, 1 << 40])
    monkeypatch.setattr("diffc.runtime.interpreter.free_memory", lambda: next(levels))
    sampler._interpreter._make_space("decoder", [op for op in ops if op.operator != "unet"])
    assert "text_encoder" in sessions and "unet" not in sessions, "one was enough: that which is called no more"


def test_linear_broadcasts_casts_and_adds_a_constant(tiny: Any, tmp_path: Path) -> None:
    body = """graph count(x: float32[1]) -> (y: int64[3, 1, 1])
    n: T = noise() k: int64[3, 1, 1] = count(x=1.5)
    i: T = linear(n, k; 0.0, 0.125, 0.25 - 0.125*a) return i"""
    node = tiny.graph(
        [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.array([[[1]], [[2]], [[3]]])))],
        {"x": ("float32", [1])},
        {"y": ("int64", [3, 1, 1])},
        [],
    )
    text = f"program p(a: scalar = 2.0) {{ {body} }}".replace("T ", "float32[1, 3, 1, 1] ")
    graphs = {"count": {"file": "graphs/count.onnx", "component": "count"}}
    bundle = tiny.write_bundle(
        tmp_path, {"graphs/count.onnx": node}, programs={"p": text}, graphs=graphs, tokenizers={}
    )
    np.testing.assert_array_equal(load(bundle)("", output="np").ravel(), [0.125, 0.25, 0.375])
    np.testing.assert_array_equal(load(bundle)("", output="np", a=0).ravel(), [0.375, 0.5, 0.625])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": "ids"}, "graphs/text_encoder.onnx has other ports"),
        (
            {
                "(image: float32[1, 3, 4, 4]": "(image: float32[1, 3, 2, 8]",
                "\nimage: float32[1, 3, 4, 4]": "\nimage: float32[1, 3, 2, 8]",
            },
            r"graph decoder returned float32\[1, 3, 4, 4\] for image: float32\[1, 3, 2, 8\]",
        ),
        (
            {"timestep: int64[]": "timestep: float32[]"},
            r"graph unet failed in ONNX Runtime: .*expected: \(tensor\(int64\)\)",
        ),
    ],
)
def test_refuses_graphs_that_differ_from_their_declaration(
    tiny: Any, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    text = tiny.program(1)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(BundleError, match=message):
        load(tiny.write(tmp_path, programs={"draw": text}))("red circle")
