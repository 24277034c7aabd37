"""A benchmark process prints a line per request, its peak memory, or its error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffc.runtime import DiffcError
from diffc.runtime.bench_process import load_bundle, run_benchmark


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_reports_requests_steps_and_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_process", json.dumps({"texts": ["a", ["b", "c"]]})])
    seen = list[object]()

    def load(request: dict[str, Any]) -> Callable[[Any, Callable[[], None]], object]:
        print("noise of a library")  # goes to stderr

        def sample(texts: Any, on_step: Callable[[], None]) -> None:
            seen.append(texts)
            for _ in range(3):
                time.sleep(0.01)
                on_step()

        return sample

    run_benchmark(load)
    *requests, peak = printed(capsys)
    assert seen == ["a", ["b", "c"]] and len(requests) == 2
    for request in requests:
        assert len(request["steps"]) == 2 and min(request["steps"]) >= 0.01
        assert request["seconds"] >= 0.03
    assert peak["peak_bytes"] > 1 << 20


def test_reports_an_error_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_process", "{}"])

    def load(request: dict[str, Any]) -> Any:
        raise DiffcError("it is broken", fix="mend it")

    with pytest.raises(SystemExit) as ended:
        run_benchmark(load)
    assert ended.value.code == 1
    assert printed(capsys) == [{"error": {"what": "it is broken", "where": None, "fix": "mend it"}}]


def test_a_bundle_calls_back_after_every_step(shared: Path, tiny: Any) -> None:
    sample = load_bundle({"bundle": str(shared), "threads": 1, "seed": 0, "program": "draw", "scalars": {}})
    steps = list[None]()
    [image] = sample(["red circle"], lambda: steps.append(None))  # type: ignore[misc]
    assert len(steps) == len(tiny.steps) and image.size == (4, 4)
