"""A benchmark measures a bundle and its baselines alternately, and computes medians and ratios."""

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
from diffc.compiler.commands.bench import Measurement, bench, compared, measure, table
from diffc.compiler.commands.cli import main
from diffc.compiler.errors import BuildError
from tests.conftest import PROMPT, UNET

FIELDS = {"first_seconds", "seconds", "step_milliseconds", "peak_bytes"}


def diffc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_the_bundle_and_torch_are_measured_on_the_same_request(bundle: Path) -> None:
    common = ("--against", "torch", "--source", UNET, "--program", "text_to_image_2", "--threads", "1", "--seed", "3")
    result = diffc(bundle, *common, "--repeat", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"program": "text_to_image_2", "steps": 2, "threads": 1, "seed": 3, "repeat": 1}.items() <= found.items()
    assert found["prompt"] == PROMPT and found["guidance_scale"] == 7.5
    assert list(found["medians"]) == ["diffc", "torch"]
    assert found["contenders"] == found["medians"], "the old name of the key"
    for row in found["medians"].values():
        assert row.keys() == FIELDS
        assert row["first_seconds"] > row["seconds"] > row["step_milliseconds"] / 1000 > 0
    assert found["ratios"].keys() == {"torch"} and found["ratios"]["torch"].keys() == FIELDS
    assert found["medians"]["torch"]["peak_bytes"] > found["medians"]["diffc"]["peak_bytes"]
    assert "repeat 1/1: torch" in result.stderr and "torch / diffc" in result.stderr


def test_the_process_of_the_bundle_holds_no_framework(bundle: Path) -> None:
    code = "import sys; sys.argv[1:] = [REQUEST];"
    code += "from diffc.runtime.bench_process import load_bundle, run_benchmark; run_benchmark(load_bundle);"
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'onnx', 'diffusers', 'click'}))"
    code += "; print([name for name in sys.modules if name.startswith(('diffc.compiler', 'diffc.passes'))])"
    request = {"bundle": str(bundle), "texts": [[PROMPT]], "seed": 0, "threads": 1, "scalars": {}}
    command = code.replace("REQUEST", repr(json.dumps(request | {"program": "text_to_image_2"})))
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    image, peak, *imported = done.stdout.splitlines()
    assert json.loads(image)["seconds"] > sum(json.loads(image)["steps"]) > 0
    assert json.loads(peak)["peak_bytes"] > 1 << 20
    assert imported == ["[]", "[]"]


def test_the_peak_memory_excludes_the_parent_process(bundle: Path) -> None:
    held = b"x" * (300 << 20)
    assert measure("diffc", request(bundle)).peak_bytes < len(held)


def request(bundle: Path, **changes: Any) -> Mapping[str, Any]:
    options = {"bundle": str(bundle), "program": "text_to_image_2", "texts": [[PROMPT]] * 2, "seed": 0}
    return options | {"threads": 1, "scalars": {}} | changes


def test_medians_and_ratios() -> None:
    measurements = {
        "diffc": [
            Measurement(2.0, (1.0, 1.5), (0.1, 0.2), 100),
            Measurement(3.0, (2.0, 9.0), (0.3, 0.9), 300),
            Measurement(9.0, (), (), 200),
        ],
        "torch": [Measurement(6.0, (0.875, 0.875), (0.5, 0.5), 400)],
    }
    found = compared(measurements)
    medians = {"first_seconds": 3.0, "seconds": 1.75, "step_milliseconds": 250.0, "peak_bytes": 200}
    assert found["medians"]["diffc"] == medians
    ratios = {"first_seconds": 2.0, "seconds": 0.5, "step_milliseconds": 2.0, "peak_bytes": 2.0}
    assert found["ratios"] == {"torch": ratios}
    assert "0.50 ×" in table(found), "a slower bundle is reported as such"
    assert compared(measurements, batch=2)["medians"]["diffc"]["seconds"] == 0.875


def test_one_step_has_no_time_from_step_to_step() -> None:
    measurements = {name: [Measurement(1.0, (1.0,), (), 1)] for name in ("diffc", "torch")}
    found = compared(measurements)
    assert found["medians"]["diffc"]["step_milliseconds"] is None
    assert found["ratios"]["torch"]["step_milliseconds"] is None
    assert "None" not in table(found)


def test_the_bundle_and_its_baseline_alternate(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = list[tuple[str, Mapping[str, Any]]]()

    def measured(name: str, request: Mapping[str, Any]) -> Measurement:
        requests.append((name, request))
        return Measurement(1.0, (1.0,), (1.0,), 1)

    monkeypatch.setattr("diffc.compiler.commands.bench.measure", measured)
    files = {"unet": Path("unet.gguf")}
    bench(bundle, against=("torch",), source=UNET, component_files=files, guidance=5, threads=3, repeat=2)
    assert requests[1][1]["component_files"] == {"unet": "unet.gguf"}
    assert [name for name, _ in requests] == ["diffc", "torch", "diffc", "torch"]
    for key, value in (("seed", 0), ("threads", 3), ("texts", [[PROMPT], [f"0 {PROMPT}"], [f"1 {PROMPT}"]])):
        assert all(request[key] == value for _, request in requests)
    expected = {"guidance_scale": 5.0, "num_inference_steps": 4, "negative_prompt": [""]}
    assert requests[1][1]["arguments"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "tinygrad"), "unknown baseline 'tinygrad'"),
        (("--against", "torch"), "name it with --source"),
        (("--against", "torch", "--source", "none.safetensors"), "there is no none.safetensors"),
        (("--program", "none"), "no program none"),
        (("--against", "torch", "--source", UNET, "--component", "unet=none.gguf", "--repeat", "1"), "folder only"),
    ],
)
def test_refuses_a_benchmark_that_cannot_run(bundle: Path, options: tuple[str, ...], message: str) -> None:
    result = diffc(bundle, *options)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output


def test_refuses_a_bundle_that_does_not_exist(tmp_path: Path) -> None:
    result = diffc(tmp_path / "none.diffc")
    assert result.exit_code == 1 and "is not a bundle" in result.stderr


def test_refuses_a_baseline_whose_packages_are_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(BuildError, match=r"torch needs diffusers, not installed here\n.*\n  fix: pip install 'diffc"):
        bench(bundle, against=("torch",), source=UNET)


def test_a_bundle_built_from_a_function_has_no_baseline(tmp_path: Path) -> None:
    import torch

    write_bundle([capture(lambda: torch.randn(1, 3, 4, 4), {})], tmp_path / "own.diffc")
    with pytest.raises(BuildError, match="main was not built from a pipeline"):
        bench(tmp_path / "own.diffc", against=("torch",), source=UNET)
    found = bench(tmp_path / "own.diffc", repeat=1)
    assert found["steps"] == 0 and found["medians"]["diffc"]["step_milliseconds"] is None


def test_reports_the_error_of_the_measured_process(bundle: Path, tmp_path: Path) -> None:
    result = diffc(bundle, "--against", "torch", "--source", tmp_path, "--repeat", "1")
    assert result.exit_code == 1 and "model_index.json" in result.stderr
    with pytest.raises(BuildError, match="diffc failed: KeyError: 'seed'"):
        measure("diffc", {key: value for key, value in request(bundle).items() if key != "seed"})
