"""A bench lets everyone draw in processes of their own, in turns, and computes medians and ratios."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from diffc.compiler import capture, write_bundle
from diffc.compiler.commands.bench import Turn, bench, compared, table, take_turn
from diffc.compiler.commands.cli import main
from diffc.compiler.errors import BuildError
from tests.conftest import PROMPT, UNET

FIELDS = {"first_seconds", "seconds", "step_milliseconds", "peak_bytes"}


def diffc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_everyone_draws_the_same_and_is_measured(bundle: Path) -> None:
    common = ("--against", "torch", "--source", UNET, "--program", "text_to_image_2", "--threads", "1", "--seed", "3")
    result = diffc(bundle, *common, "--repeat", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"program": "text_to_image_2", "steps": 2, "threads": 1, "seed": 3, "repeat": 1}.items() <= found.items()
    assert found["prompt"] == PROMPT and found["guidance_scale"] == 7.5
    assert list(found["contenders"]) == ["diffc", "torch"]
    for row in found["contenders"].values():
        assert row.keys() == FIELDS
        assert row["first_seconds"] > row["seconds"] > row["step_milliseconds"] / 1000 > 0
    assert found["ratios"].keys() == {"torch"} and found["ratios"]["torch"].keys() == FIELDS
    assert found["contenders"]["torch"]["peak_bytes"] > found["contenders"]["diffc"]["peak_bytes"]
    assert "turn 1/1: torch" in result.stderr and "torch / diffc" in result.stderr


def test_the_process_of_the_bundle_holds_no_framework(bundle: Path) -> None:
    code = "import sys; sys.argv[1:] = [REQUEST];"
    code += "from diffc.runtime.bench_process import bundle, compete; compete(bundle);"
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'onnx', 'diffusers', 'click'}))"
    code += "; print([name for name in sys.modules if name.startswith(('diffc.compiler', 'diffc.passes'))])"
    request = {"bundle": str(bundle), "texts": [[PROMPT]], "seed": 0, "threads": 1, "scalars": {}}
    command = code.replace("REQUEST", repr(json.dumps(request | {"program": "text_to_image_2"})))
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    picture, peak, *imported = done.stdout.splitlines()
    assert json.loads(picture)["seconds"] > sum(json.loads(picture)["steps"]) > 0
    assert json.loads(peak)["peak_bytes"] > 1 << 20
    assert imported == ["[]", "[]"]


def test_peaks_are_those_of_the_contender_and_not_of_who_started_it(bundle: Path) -> None:
    held = b"x" * (300 << 20)
    turn = take_turn("diffc", request(bundle))
    assert turn.peak_bytes < len(held)


def request(bundle: Path, **changes: Any) -> Mapping[str, Any]:
    asked = {"bundle": str(bundle), "program": "text_to_image_2", "texts": [[PROMPT]] * 2, "seed": 0}
    return asked | {"threads": 1, "scalars": {}} | changes


def test_medians_and_ratios() -> None:
    turns = {
        "diffc": [
            Turn(2.0, (1.0, 1.5), (0.1, 0.2), 100),
            Turn(3.0, (2.0, 9.0), (0.3, 0.9), 300),
            Turn(9.0, (), (), 200),
        ],
        "torch": [Turn(6.0, (0.875, 0.875), (0.5, 0.5), 400)],
    }
    found = compared(turns)
    medians = {"first_seconds": 3.0, "seconds": 1.75, "step_milliseconds": 250.0, "peak_bytes": 200}
    assert found["contenders"]["diffc"] == medians
    ratios = {"first_seconds": 2.0, "seconds": 0.5, "step_milliseconds": 2.0, "peak_bytes": 2.0}
    assert found["ratios"] == {"torch": ratios}
    assert "0.50 ×" in table(found), "a slower bundle is reported as such"
    assert compared(turns, batch=2)["contenders"]["diffc"]["seconds"] == 0.875


def test_one_step_has_no_time_from_step_to_step() -> None:
    turns = {name: [Turn(1.0, (1.0,), (), 1)] for name in ("diffc", "torch")}
    found = compared(turns)
    assert found["contenders"]["diffc"]["step_milliseconds"] is None
    assert found["ratios"]["torch"]["step_milliseconds"] is None
    assert "None" not in table(found)


def test_turns_alternate(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, Mapping[str, Any]]]()

    def taken(name: str, request: Mapping[str, Any]) -> Turn:
        asked.append((name, request))
        return Turn(1.0, (1.0,), (1.0,), 1)

    monkeypatch.setattr("diffc.compiler.commands.bench.take_turn", taken)
    bench(bundle, against=("torch",), source=UNET, guidance=5, threads=3, repeat=2)
    assert [name for name, _ in asked] == ["diffc", "torch", "diffc", "torch"]
    for key, value in (("seed", 0), ("threads", 3), ("texts", [[PROMPT], [f"0 {PROMPT}"], [f"1 {PROMPT}"]])):
        assert all(request[key] == value for _, request in asked)
    wanted = {"guidance_scale": 5.0, "num_inference_steps": 4, "negative_prompt": [""]}
    assert asked[1][1]["arguments"] == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--against", "tinygrad"), "unknown rival 'tinygrad'"),
        (("--against", "torch"), "name it with --source"),
        (("--against", "torch", "--source", "none.safetensors"), "there is no none.safetensors"),
        (("--program", "none"), "no program none"),
    ],
)
def test_what_cannot_be_compared(bundle: Path, options: tuple[str, ...], said: str) -> None:
    result = diffc(bundle, *options)
    assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.output


def test_there_is_no_bundle(tmp_path: Path) -> None:
    result = diffc(tmp_path / "none.diffc")
    assert result.exit_code == 1 and "is not a bundle" in result.stderr


def test_a_rival_whose_packages_are_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(BuildError, match=r"torch needs diffusers, not installed here\n.*\n  fix: pip install 'diffc"):
        bench(bundle, against=("torch",), source=UNET)


def test_a_bundle_of_ones_own_has_no_pipeline(tmp_path: Path) -> None:
    import torch

    write_bundle([capture(lambda: torch.randn(1, 3, 4, 4), {})], tmp_path / "own.diffc")
    with pytest.raises(BuildError, match="main was not built from a pipeline"):
        bench(tmp_path / "own.diffc", against=("torch",), source=UNET)
    found = bench(tmp_path / "own.diffc", repeat=1)
    assert found["steps"] == 0 and found["contenders"]["diffc"]["step_milliseconds"] is None


def test_what_a_contender_cannot_do_is_said_in_its_words(bundle: Path, tmp_path: Path) -> None:
    result = diffc(bundle, "--against", "torch", "--source", tmp_path, "--repeat", "1")
    assert result.exit_code == 1 and "model_index.json" in result.stderr
    with pytest.raises(BuildError, match="diffc failed: KeyError: 'seed'"):
        take_turn("diffc", {key: value for key, value in request(bundle).items() if key != "seed"})
