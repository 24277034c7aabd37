"""Programs whose pipelines were called alike have equal facts, and the default is the guided one."""

from __future__ import annotations

from dataclasses import replace

from diffc.runtime.program.facts import VARIANTS, Facts


def test_each_fact_tells_programs_apart() -> None:
    facts = Facts("text-to-image", 4, (64, 32))
    changed = [replace(facts, task="inpainting"), replace(facts, steps=8), replace(facts, size=(32, 64))]
    changed += [replace(facts, variant=variant) for variant in VARIANTS]
    assert len({facts, *changed}) == 6
    assert facts.variant == "", "a program is guided unless its facts state otherwise"
