"""Cache features on the command line: what is built, how much it weighs, what it draws, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffc.runtime import load
from tests.command_line import digests, refused, succeeded
from tests.conftest import DIT, PROMPT, UNET
from tests.format.manifest_schema import schema_errors
from tests.tolerances import CACHED_PSNR, SAME_PSNR, VERIFIED_PSNR

CACHE = "deepcache:interval=2"


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the UNet for two step counts, as the session's bundle is, with a cache."""
    path = tmp_path_factory.mktemp("cached") / "x.diffc"
    succeeded("build", UNET, "--steps", "4,2", "--cache", CACHE, "-o", path)
    return path


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Compare pictures on [0, 1], in dB."""
    return float(10 * np.log10(1 / np.mean((a - b) ** 2)))


def times_called(text: str) -> dict[str, int]:
    """Count the calls of each piece in a program."""
    called = re.findall(r" = (unet\w*_piece_\d)\(", text)
    return {name: called.count(name) for name in sorted(set(called))}


def test_its_manifest_fits_the_schema(cached: Path) -> None:
    assert schema_errors(cached) == []


def test_each_weight_is_there_once(cached: Path, bundle: Path) -> None:
    sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in (cached, bundle)]
    assert sizes[0] <= 1.02 * sizes[1]


def test_the_deep_levels_run_in_every_second_step(cached: Path) -> None:
    found = succeeded("inspect", cached)
    assert found["provenance"]["recipe"]["cache"] == ["deepcache", {"interval": 2}]
    for name, text in found["programs"].items():
        steps = int(re.findall(r"_(\d+)", name)[0])
        outer, deep, last = times_called(text).values()
        assert (outer, deep, last) == (steps, steps // 2, steps), name
        assert not re.search(r" = unet(_\d)?\(", text), "the whole graph is gone"


@pytest.mark.parametrize(("steps", "guidance"), [(4, 5.0), (4, 1.0), (2, 5.0)])
def test_a_cached_bundle_samples_nearly_the_same_images(
    cached: Path, bundle: Path, steps: int, guidance: float
) -> None:
    unguided = "_unguided" if guidance == 1.0 else ""
    options = {"seed": 1, "guidance_scale": guidance, "program": f"text_to_image_{steps}{unguided}", "output": "np"}
    found, wanted = (load(path)(PROMPT, **options) for path in (cached, bundle))
    assert CACHED_PSNR < psnr(found, wanted) < VERIFIED_PSNR


def test_verify_compares_the_pieces_together(cached: Path) -> None:
    found = succeeded("verify", cached, "--against", UNET)
    assert CACHED_PSNR < found["psnr"] < VERIFIED_PSNR, "what the cache changes is seen"
    pieces = {name: each["sqnr"] for name, each in found["components"].items() if "piece" in name}
    assert len(pieces) == 1
    assert min(pieces.values()) > VERIFIED_PSNR


def test_interval_1_changes_no_byte_of_graphs_and_weights(bundle: Path, tmp_path: Path) -> None:
    succeeded("build", UNET, "--steps", "4,2", "--cache", "deepcache:interval=1", "-o", tmp_path / "x.diffc")
    found, wanted = digests(tmp_path / "x.diffc"), digests(bundle)
    differing = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    assert differing == {"manifest.json"}, "which says what was asked for"
    assert load(tmp_path / "x.diffc").programs == load(bundle).programs


@pytest.mark.slow
def test_batches_pictures_and_solvers_of_second_order(tmp_path: Path) -> None:
    """All at once: heun from a picture, two at a time, with guidance."""
    task = ("--task", "image-to-image", "--strength", "0.75", "--batch", "2", "--sampler", "heun", "--steps", "4")
    succeeded("build", UNET, *task, "--cache", "deepcache:interval=2,branch=1", "-o", tmp_path / "x.diffc")
    programs = load(tmp_path / "x.diffc").programs
    outer, deep, _ = times_called(programs["image_to_image_4"]).values()
    assert deep == -(-outer // 2) and outer > 4, "evaluations are counted, of which heun has more than steps"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "in.png")
    options = ("--image", tmp_path / "in.png", "--images", "2", "--seed", "1", "-o", tmp_path / "out.png")
    succeeded("run", tmp_path / "x.diffc", PROMPT, *options)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (128, 64)


def test_a_guidance_interval_begins_with_a_whole_call(tmp_path: Path) -> None:
    options = ("--steps", "6", "--guidance-interval", "0.34,0.84", "--cache", "deepcache:interval=2")
    succeeded("build", UNET, *options, "-o", tmp_path / "x.diffc")
    text = load(tmp_path / "x.diffc").programs["text_to_image_6"]
    counts = times_called(text)
    guided = {name: n for name, n in counts.items() if not name.startswith("unet_2")}
    alone = {name: n for name, n in counts.items() if name.startswith("unet_2")}
    assert list(guided.values()) == [3, 2, 3], "steps 2, 3 and 4, of which 2 and 4 refresh"
    assert list(alone.values()) == [3, 2, 3], "steps 0, 1 and 5, of which 5 has no call of its graph at 4"
    succeeded("run", tmp_path / "x.diffc", PROMPT, "-o", tmp_path / "x.png")


@pytest.mark.slow
def test_eight_bits_on_top(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    quick = "keep_first_last+calibrate_ranges?:by=minmax+round_to_nearest:by=minmax"
    options = ("--calibration", tmp_path / "prompts.txt", "--quant", quick, "--steps", "2", "--cache", CACHE)
    succeeded("build", UNET, "--target", "ort-w8a8", *options, "-o", tmp_path / "x.diffc")
    report = json.loads((tmp_path / "x.diffc" / "quantization.json").read_text())
    assert report["psnr"] > CACHED_PSNR, "against the cached program in float, not against the whole one"
    found, wanted = (
        load(p)(PROMPT, seed=0, output="np", program="text_to_image_2") for p in (tmp_path / "x.diffc", cached)
    )
    assert psnr(found, wanted) == pytest.approx(report["psnr"], abs=SAME_PSNR)
    weights = [sum(f.stat().st_size for f in (p / "weights").iterdir()) for p in (tmp_path / "x.diffc", cached)]
    assert weights[0] < 0.35 * weights[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cache", "deepcash"), "did you mean deepcache?"),
        (("--cache", "deepcache:branches=1"), "did you mean branch?"),
        (("--cache", "deepcache:branch=x"), "branch is 'x'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    error = refused("build", UNET, *options, "-o", tmp_path / "x.diffc")
    assert said in error and "load\n" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "cache", "said"),
    [
        (UNET, "deepcache:interval=3", "the interval is 3, and there are 2 evaluations"),
        pytest.param(UNET, "deepcache:interval=2,branch=9", "branch 9 of 6 skip connections", marks=pytest.mark.slow),
        pytest.param(DIT, "deepcache:interval=2", "choose delta-dit", marks=pytest.mark.slow),
    ],
)
def test_what_a_model_does_not_admit_leaves_nothing(source: Path, cache: str, said: str, tmp_path: Path) -> None:
    error = refused("build", source, "--steps", "2", "--cache", cache, "-o", tmp_path / "x.diffc")
    assert said in error and "in:  phase cache: --cache deepcache" in error
    assert list(tmp_path.iterdir()) == []
