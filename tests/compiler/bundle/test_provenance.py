"""What a bundle records of its build is read back for the pipeline that it came from."""

from __future__ import annotations

import pytest

from diffc.compiler.bundle.provenance import arguments_of, facts_of
from diffc.compiler.errors import BuildError
from diffc.runtime.program.facts import Facts

RECIPE = {"strength": None, "options": {"num_frames": 16}}


def test_arguments_are_those_of_the_trace() -> None:
    facts = Facts("inpaint", 4, (64, 32), "unguided")
    assert arguments_of(facts, RECIPE | {"strength": 0.5}) == {
        "num_inference_steps": 4,
        "width": 64,
        "height": 32,
        "strength": 0.5,
        "num_frames": 16,
    }
    assert arguments_of(Facts("inpaint", 4), RECIPE) == {"num_inference_steps": 4, "num_frames": 16}


def test_a_program_without_facts_is_refused() -> None:
    facts = Facts("inpaint", 4)
    assert facts_of({"a": facts}, "a") is facts
    with pytest.raises(BuildError, match="main was not built from a pipeline") as refused:
        facts_of({"a": facts}, "main")
    assert "build it again" in str(refused.value.fix)
