"""Run every pipeline of the zoo eagerly: each must draw something before it can be compiled."""

from __future__ import annotations

import pytest

from tests.zoo import ZOO

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab].=t:UserWarning:torchsde"),
]


@pytest.mark.parametrize("name", ZOO)
def test_a_pipeline_of_the_zoo_draws(name: str) -> None:
    drawn = ZOO[name]().draw()
    assert drawn.isfinite().all()
    assert drawn.std() > 1e-3, "random weights draw a constant picture"
