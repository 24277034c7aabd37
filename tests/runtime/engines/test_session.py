"""Report the line of an engine's error that tells something."""

from __future__ import annotations

from diffc.runtime.engines.session import reason


def test_the_reason_of_an_error_is_the_line_that_says_something() -> None:
    lines = "Exception from src/core.cpp:84:\nCheck 'false' failed at x.cpp:47:\nLoading input model\nno such file\n\n"
    assert reason(RuntimeError(lines)) == "no such file"
    assert reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL\nmore")) == "[ONNXRuntimeError] : 1 : FAIL"
    assert reason(ValueError()) == "ValueError"
