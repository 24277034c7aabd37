"""The measured cache keeps its budget in what the runtime draws, and says what it tried or why it gives up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.compiler.errors import PassError
from diffc.passes.cache.auto import auto
from diffc.runtime import load
from tests.command_line import refused, succeeded
from tests.conftest import UNET
from tests.deep import deep
from tests.tolerances import JUDGED

PROMPTS = ("a red circle left of a blue square",)
STEPS = "5"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what is drawn while schedules are judged."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def built(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Compile the UNet with a measured cache, and without one."""
    folder = tmp_path_factory.mktemp("auto")
    options = ("--steps", STEPS, "--guidance", "5")
    auto = ("--cache", "auto:max-drop=3dB", "--calibration", prompts)
    succeeded("build", UNET, *options, *auto, "-o", folder / "auto.diffc")
    succeeded("build", UNET, *options, "-o", folder / "whole.diffc")
    return folder / "auto.diffc", folder / "whole.diffc"


def found(bundle: Path) -> Mapping[str, Any]:
    """Read what was measured."""
    return dict(json.loads((bundle / "cache.json").read_text()))


def near(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Compare pictures on [0, 1], in dB."""
    return float(10 * np.log10(1 / np.mean((a - b) ** 2)))


@pytest.mark.slow
def test_pictures_are_as_near_as_it_says(built: tuple[Path, Path]) -> None:
    auto, whole = (load(path) for path in built)
    drawn = [[path(prompt, seed=at, output="np") for at, prompt in enumerate(PROMPTS)] for path in (auto, whole)]
    found_near = float(np.mean([near(a, b) for a, b in zip(*drawn, strict=True)]))
    assert found_near == pytest.approx(found(built[0])["chosen"]["psnr"], abs=JUDGED)


@pytest.mark.slow
def test_what_is_built_is_the_fastest_that_keeps_the_budget(built: tuple[Path, Path]) -> None:
    measured = found(built[0])
    chosen, tried = measured["chosen"], measured["tried"]
    assert chosen in tried and chosen["drop"] <= 3 and any(chosen["way"])
    assert all(each["time"] >= chosen["time"] for each in tried if each["drop"] <= 3 and any(each["way"]))
    assert any(each["fixed"] for each in tried) and any(not each["fixed"] for each in tried)
    text = next(iter(succeeded("inspect", built[0])["programs"].values()))
    full = chosen["way"].count(None)
    assert any(text.count(f"_piece_{at}(") == 1 + full for at in range(1, 9)), (
        "what is reused runs where it is computed"
    )


@pytest.mark.slow
def test_the_report_shows_the_frontier(built: tuple[Path, Path]) -> None:
    page = (built[0] / "report.html").read_text()
    assert page.count("<circle") == len(found(built[0])["tried"])
    assert page.count('class="chosen"') == 1 and 'class="fixed"' in page


def test_blocks_of_a_transformer_are_reused() -> None:
    pipeline = deep("PixArtAlphaPipeline")
    calibration = pipeline.calibrated()
    found = auto([pipeline.program], pipeline.calibrated, None, min_psnr=10)
    assert found.best.psnr >= 10 and any(found.best.reuses)
    (drawn,), (whole, *_) = calibration.rerun(found.programs[0], 1), calibration.trajectories
    assert near(drawn.output.numpy(), whole.output.numpy()) == pytest.approx(found.best.psnr, abs=JUDGED)


def test_a_budget_that_no_schedule_keeps_is_refused_with_the_nearest() -> None:
    pipeline = deep("PixArtAlphaPipeline")
    with pytest.raises(PassError, match="no schedule keeps 190 dB; the nearest takes .* of the time, has"):
        auto([pipeline.program], pipeline.calibrated, None, min_psnr=190)


def test_what_cannot_be_compared_is_refused(prompts: Path, tmp_path: Path) -> None:
    options = ("--steps", "3", "--calibration", prompts, "--cache", "auto", "--sampler", "euler-ancestral")
    assert "twice as many steps read other noise" in refused("build", UNET, *options, "-o", tmp_path / "x.diffc")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_not_negative() -> None:
    with pytest.raises(PassError, match="max-drop=-1"):
        auto([], lambda _: None, None, max_drop=-1)  # type: ignore[arg-type,return-value]
