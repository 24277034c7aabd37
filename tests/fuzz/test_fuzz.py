"""A small share of `make fuzz` and `make kill-test`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.format.opening_cases import ROOT
from tests.fuzz.kill import kill_builds
from tests.fuzz.mutators import mutated_bytes, mutated_json, mutated_safetensors, mutated_text
from tests.fuzz.run import fuzz, unreadable
from tests.fuzz.subjects import Bundles, Requests


def test_mutated_bundles_and_requests_end_well(tmp_path: Path) -> None:
    subjects = {"bundle": (3, Bundles(ROOT, tmp_path / "bundle.diffc")), "request": (1, Requests(ROOT))}
    counts, faults = fuzz(subjects, 0, range(150))
    assert faults == []
    assert counts["bundles refused"] > 50 and counts["requests accepted"] > 5


@pytest.mark.parametrize("fault", [ValueError("no"), AssertionError("another image")], ids=repr)
def test_an_end_that_is_no_refusal_is_a_fault(fault: Exception) -> None:
    class Faulty:
        def try_one(self, random: Random) -> str | None:
            raise fault

    counts, faults = fuzz({"faulty": (1, Faulty())}, 0, range(3, 5))
    assert counts == Counter(faults=2)
    assert faults[0].startswith("input 3 (faulty):\nTraceback") and str(fault) in faults[0]


def test_a_refusal_is_a_few_plain_lines() -> None:
    assert unreadable("no such file\n  at:  here") == ""
    for refusal in ("\n" * 5, "Traceback (most recent call last)", "\x1b[1m", "contextlib.py:158"):
        assert unreadable(refusal)


@pytest.mark.parametrize("seed", range(20))
def test_a_mutation_is_the_same_for_the_same_seed(seed: int) -> None:
    def mutations(random: Random) -> list[Any]:
        header = b"\x10\0\0\0\0\0\0\0" + b'{"a":{"b":[1]}} ' + b"data"
        value = {"a": [1, {"b": "c"}]}
        return [
            mutated_bytes(random, b"content"),
            repr(mutated_json(random, value)),
            mutated_text(random, "x = linear(y; 0.5)\nreturn x\n"),
            mutated_safetensors(random, header),
        ]

    assert mutations(Random(seed)) == mutations(Random(seed))


@pytest.mark.slow
def test_killed_builds_leave_nothing(tmp_path: Path) -> None:
    assert kill_builds(tmp_path, 0, 10) == 10
