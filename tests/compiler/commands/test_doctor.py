"""Check the machine: targets, engines, a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from diffc.compiler.backends.backend import find_backend
from diffc.compiler.commands.doctor import label
from diffc.compiler.errors import TargetError
from diffc.runtime import BundleError, load
from diffc.runtime.engines.cuda import find_gpu
from diffc.runtime.engines.tensorrt_library import installed
from tests.command_line import succeeded


def test_doctor_knows_targets_and_opens_a_bundle(bundle: Path) -> None:
    found = succeeded("doctor", bundle)
    assert "ort-fp32" in found["targets"]
    assert found["checks"]["bundle"]["ok"]
    assert found["checks"]["compiler"]["ok"]


def test_what_a_machine_need_not_have_is_no_failure() -> None:
    assert [label(name, False) for name in ("gpu", "backend trt", "bundle")] == ["not here", "not here", "FAILS"]
    assert label("gpu", True) == label("bundle", True) == "ok"


def test_doctor_says_which_tensorrt_is_here_and_whether_engines_run() -> None:
    checks = succeeded("doctor")["checks"]
    try:
        gpu = find_gpu()
        assert checks["gpu"] == {"ok": True, "detail": f"{gpu.name}, {gpu.arch}, with a driver for CUDA {gpu.cuda}"}
    except BundleError as error:
        assert checks["gpu"] == {"ok": False, "detail": f"{error.what}: {error.fix}"}
    assert checks["tensorrt"]["ok"] == bool(installed())
    for kind, version in installed().items():
        assert f"{kind} {version} builds trt-… for " in checks["tensorrt"]["detail"]


def test_doctor_names_a_backend_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "onnx":
            raise TargetError("backend 'onnx' cannot be imported", fix="install it")
        return find_backend(name)

    monkeypatch.setattr("diffc.compiler.commands.doctor.find_backend", broken)
    found = succeeded("doctor")
    assert found["checks"]["backend onnx"] == {"ok": False, "detail": "backend 'onnx' cannot be imported: install it"}
    assert not any(target.startswith("onnx-") for target in found["targets"]) and "ort-fp32" in found["targets"]


def test_an_onnx_runtime_older_than_the_graphs_is_named_with_both_versions(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    check = succeeded("doctor", bundle)["checks"]["bundle"]
    assert not check["ok"] and "ONNX opset 23" in check["detail"] and "here is 1.20.1" in check["detail"]
    with pytest.raises(BundleError, match="opset 23, which ONNX Runtime reads from 1.23 on: here is 1.20.1") as refused:
        load(bundle)("a red circle", seed=0)
    assert refused.value.fix == "pip install --upgrade 'onnxruntime>=1.23'"
