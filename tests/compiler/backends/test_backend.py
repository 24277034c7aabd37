"""Back ends are found by name; an engine's entry holds what the manifest states of it."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from diffc.compiler.backends.backend import GROUP, BuiltEngine, find_backend
from diffc.compiler.errors import TargetError


def test_a_registered_back_end_is_found() -> None:
    (point,) = [point for point in entry_points(group=GROUP) if point.name == "onnx"]
    assert f"{find_backend('onnx').__module__}:{find_backend('onnx').__name__}" == point.value


def test_a_name_that_nobody_registered_is_refused() -> None:
    with pytest.raises(TargetError, match="nonesuch"):
        find_backend("nonesuch")


def test_an_engine_is_entered_with_its_file_builder_and_gpus() -> None:
    engine = BuiltEngine("engines/net.engine", "TensorRT 1", ("sm89", "sm90"))
    assert engine.entry == {"file": "engines/net.engine", "builder": "TensorRT 1", "archs": ["sm89", "sm90"]}
