"""Check the entries of the zoo: each samples eagerly, and does in a bundle what its mark says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tolerances import PICTURE, PROMPTS_APART
from tests.zoo import ABSENT, REFUSED, WRONG, ZOO, Entry
from tests.zoo.page import PAGE, page, rows_of, status_of
from tests.zoo.sweep import quiet, sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab].=t:UserWarning:torchsde"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning"),
]

SAMPLE = list(ZOO)[::8]
"""The entries that every run samples; ``make test-zoo`` sweeps all."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_pipeline_of_the_zoo_samples(name: str) -> None:
    sampled = ZOO[name]().draw()
    assert sampled.isfinite().all()
    assert sampled.std() > 1e-3, "random weights sample a constant image"


def test_images_that_hardly_depend_on_the_prompt_prove_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Pipeline:
        def __call__(self, prompt: str, **_: Any) -> tuple[np.ndarray]:
            return (np.full((1, 2, 2, 3), len(prompt) * PROMPTS_APART / 100),)

    monkeypatch.setitem(ZOO, "the same for all", lambda: Entry(Pipeline(), {"prompt": ""}))
    outcome = sweep("the same for all", tmp_path)
    assert outcome.status == "failed"
    assert outcome.message.startswith("images of two prompts differ by 2e-03 only")


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_a_pipeline_of_the_zoo_does_what_its_mark_says(name: str, tmp_path: Path) -> None:
    quiet()
    outcome = sweep(name, tmp_path)
    assert outcome.status == status_of(name), f"{outcome}: change its mark, then make zoo-page"
    if outcome.status == "right":
        assert outcome.difference is not None and outcome.difference <= PICTURE
    if outcome.status == "refused":
        assert REFUSED[name] in outcome.message


def test_the_page_has_a_row_for_each_pipeline_as_it_is_marked() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = rows_of(text)
    assert [name for name, row in rows.items() if name not in ZOO | ABSENT or f"| {status_of(name)} |" not in row] == []
    why = REFUSED | WRONG
    assert [name for name, row in rows.items() if why.get(name, "") not in row] == []
    assert text == page(rows), "write it again: make zoo-page"
