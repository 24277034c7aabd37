"""What ``--cache`` takes, and how it refuses the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from diffc.compiler.calibration.calibrate import Calibrate, Calibration, Calibrator
from diffc.compiler.driver import options as module
from diffc.compiler.driver.feature_caching import apply_cache
from diffc.compiler.driver.options import CacheOptions, read_cache
from diffc.compiler.errors import PassError, RecipeError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.passes.cache import CACHES, FeatureCache, Need


@pytest.mark.parametrize("text", [None, "none", "none?"])
def test_nothing_is_asked_for(text: str | None) -> None:
    assert read_cache(text) is None


@pytest.mark.parametrize("text", ["deepcache:interval=5,branch=1", "deepcache:interval=5:branch=1"])
def test_options_are_read(text: str) -> None:
    assert read_cache(text) == CacheOptions(CACHES["deepcache"], {"interval": 5, "branch": 1})


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("deepcash", "'deepcash' is no cache", "did you mean deepcache? known: deepcache"),
        ("nope", "'nope' is no cache", "known: deepcache"),
        ("deepcache+deepcache", "is more than one cache", "choose one"),
        ("none+deepcache", "'none' is no cache", "known: deepcache"),
        ("deepcache:intervals=3", "deepcache has no option 'intervals'", "did you mean interval? it has interval"),
        ("deepcache:interval=three", "deepcache: interval is 'three'", "such as 3"),
        ("deepcache:interval=2.5", "deepcache: interval is 2.5", "such as 3"),
        ("deepcache:interval", "'interval' is no option", "write CACHE:option=value"),
    ],
)
def test_what_is_no_cache_is_refused(text: str, what: str, fix: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_cache(text)
    assert what in refused.value.what and fix in str(refused.value.fix)


def test_an_error_says_which_cache_it_comes_from() -> None:
    program = parse(
        "program p() { graph f(x: float32[1]) -> (y: float32[1]) "
        "n: float32[1] = noise() a: float32[1] = f(x=n) b: float32[1] = f(x=a) return b }"
    )
    with pytest.raises(PassError, match="no program calls a denoiser") as refused:
        apply_cache([program], CacheOptions(CACHES["deepcache"], {}), Calibrator(), lambda _: None)
    assert refused.value.inside == "--cache deepcache"


def test_a_cache_may_look_at_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    program = parse(
        "program p(prompt: text[1]) { n: float32[1] = noise() x: float32[1] = linear(n; 2) step(x; 1) return x }"
    )
    seen = list[Calibration]()

    def looking(programs: Sequence[Program], calibrated: Calibrate, *, often: int = 1) -> tuple[Program, ...]:
        seen.extend(calibrated(each) for each in programs for _ in range(often))
        return tuple(replace(each, name=f"{each.name}_{often}") for each in programs)

    technique = FeatureCache(looking, (Need.CALIBRATOR,))
    monkeypatch.setattr(module, "CACHES", {"looking": technique, "deepcache": CACHES["deepcache"]})
    options = read_cache("looking:often=2")
    assert options is not None and options.is_calibrated
    calibrator = Calibrator(prompts=("one", "two"), seed=5)
    renamed = (replace(program, name="p_2"),)
    assert apply_cache([program], options, calibrator, lambda _: None) == (renamed, {})
    assert [calibration.prompts for calibration in seen] == [("one", "two")] * 2
    assert [trajectory.seed for trajectory in seen[0].trajectories] == [5, 6]
    uniform = read_cache("deepcache")
    assert uniform is not None and not uniform.is_calibrated
    assert read_cache("looking?:often=3") == CacheOptions(technique, {"often": 3}, is_optional=True)
    with pytest.raises(RecipeError, match="looking has no option 'calibrated'"):
        read_cache("looking:calibrated=1")


def test_a_cache_that_changes_nothing_is_refused_unless_it_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle_cache(programs: tuple[Program, ...], *, interval: int = 1) -> tuple[Program, ...]:
        return programs

    monkeypatch.setattr(module, "CACHES", {"idle-cache": FeatureCache(idle_cache)})
    program = parse("program main() { n: float32[2] = noise() return n }")
    required, allowed = read_cache("idle-cache:interval=2"), read_cache("idle_cache?")
    assert required is not None and allowed is not None
    with pytest.raises(PassError, match="idle_cache changes nothing") as refused:
        apply_cache([program], required, Calibrator(), lambda _: None)
    assert refused.value.inside == "--cache idle-cache" and "idle_cache?" in str(refused.value.fix)
    assert apply_cache([program], allowed, Calibrator(), lambda _: None) == ((program,), {})
