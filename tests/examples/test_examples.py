"""Run every example, and compare the sampler of one's own with PyTorch."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import PROMPT, ROOT
from tests.tolerances import PICTURE_8BIT

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run the examples, each into a folder of its own."""
    made = {}
    for path in EXAMPLES:
        made[path.stem] = tmp_path_factory.mktemp(path.stem)
        runpy.run_path(str(path))["main"](made[path.stem])
    return made


def test_the_first_example_draws_four_pictures(outputs: dict[str, Path]) -> None:
    picture = np.asarray(Image.open(outputs["00_build_and_run"] / "images.png"))
    assert picture.shape[:2] == (128, 128)
    assert picture.std() > 5


def test_a_sampler_of_ones_own_draws_what_pytorch_draws(outputs: dict[str, Path]) -> None:
    sampler = runpy.run_path(str(ROOT / "examples" / "01_own_sampler.py"))["cfg_plus_plus"]
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = sampler([PROMPT], [""], on_step=lambda _: None)[0].permute(1, 2, 0).numpy()
    got = np.asarray(Image.open(outputs["01_own_sampler"] / "cfg_plus_plus.png"), dtype=int)
    assert np.abs(got - (wanted * 255).round()).max() <= PICTURE_8BIT
