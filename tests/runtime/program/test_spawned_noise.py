"""Refuse pools and terms of noise that no runtime can compute, each by what is wrong with it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from diffc.runtime.program.program import Op
from diffc.runtime.program.spawned_noise import fault_of_terms

TERMS = ((0.5, 0, 1, 2**64 - 1), (-2, 1023))


def fault(**attrs: Any) -> str | None:
    return fault_of_terms(Op("noise", attrs=tuple(attrs.items())))


def test_noise_of_spawned_seeds_and_of_the_seed_itself_break_no_rule() -> None:
    assert fault() is None
    assert fault(kind="uniform") is None
    assert fault(pool=24, terms=TERMS) is None


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"pool": 24, "terms": TERMS, "kind": "uniform"}, "is normal"),
        ({"pool": 3, "terms": TERMS}, "no integer from 4"),
        ({"pool": 2048, "terms": TERMS}, "no integer from 4 to 1024"),
        ({"terms": TERMS}, "no integer from 4"),
        ({"pool": 24}, "no terms"),
        ({"pool": 24, "terms": ()}, "no terms"),
        ({"pool": 24, "terms": ((1.0,),)}, "factor"),
        ({"pool": 24, "terms": ((math.nan, 0),)}, "factor nan"),
        ({"pool": 24, "terms": ((True, 0),)}, "factor True"),
        ({"pool": 24, "terms": ((1e39, 0),)}, "factor 1e+39"),
        ({"pool": 24, "terms": ((10**400, 0),)}, "factor 1000"),
        ({"pool": 24, "terms": ((1.0, 0),) * 4097}, "more than 4096 terms"),
        ({"pool": 24, "terms": ((1.0, 0, *range(257)),)}, "more than 256 parts"),
        ({"pool": 24, "terms": ((1.0, 1024),)}, "word"),
        ({"pool": 24, "terms": ((1.0, 0, -1),)}, "spawn key"),
        ({"pool": 24, "terms": ((1.0, 0, 2**64),)}, "spawn key"),
    ],
)
def test_what_breaks_a_rule_is_named(attrs: dict[str, Any], message: str) -> None:
    assert message in str(fault(**attrs))
