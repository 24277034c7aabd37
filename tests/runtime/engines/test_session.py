"""Report the line of an engine's error that tells something."""

from __future__ import annotations

from diffc.runtime.engines.session import reason


def test_the_reason_of_an_error_is_the_line_that_says_something() -> None:
    lines = "Exception from src/core.cpp:84:\nCheck 'false' failed at x.cpp:47:\nLoading input model\nno such file\n\n"
    assert reason(RuntimeError(lines)) == "no such file"
    assert reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model failed\nmore")) == "Load model failed"
    place = "Non-zero status code while running Conv node. Name:'c' Status Message: /src/core/conv.cc:61 too large"
    assert reason(RuntimeError(place)).endswith("Name:'c' Status Message: too large")
    assert reason(RuntimeError("src/core.cpp:110:")) == "RuntimeError"
    assert reason(ValueError()) == "ValueError"
