"""Sample with tiny bundles and compare with the same arithmetic in NumPy, at torch's noise."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from diffc.runtime import Cancelled, Progress, Sampler, load
from diffc.runtime.errors import DiffcError


def test_samples_the_image_that_the_program_defines(sampler: Sampler, tiny: Any) -> None:
    got = sampler("red circle", seed=0, output="np")
    assert got.dtype == np.float32 and got.shape == (1, 4, 4, 3)
    tiny.close(got, tiny.expected([tiny.red], tiny.noises(0, 1)))


def test_uses_the_negative_prompt_and_the_guidance_scale(sampler: Sampler, tiny: Any) -> None:
    got = sampler("red circle", negative_prompt="blue square", guidance_scale=3.0, seed=1, output="np")
    tiny.close(got, tiny.images(np.array([tiny.red]), np.array([tiny.blue]), 3.0, tiny.noises(1, 1)))


@pytest.mark.parametrize("name", ["sampler", "pairs"])
def test_one_seed_generates_the_noise_of_all_images_at_once(
    name: str, tiny: Any, request: pytest.FixtureRequest
) -> None:
    # Three images: three runs of one, or a run of two and a padded run of one. The noise is the same.
    got = request.getfixturevalue(name)(["red circle", "blue square", "red circle"], seed=7, output="np")
    tiny.close(got, tiny.expected([tiny.red, tiny.blue, tiny.red], tiny.noises(7, 3)))


def test_images_come_prompt_by_prompt(pairs: Sampler, tiny: Any) -> None:
    got = pairs(["red circle", "blue square"], num_images=2, seed=3, output="np")
    tiny.close(got, tiny.expected([tiny.red, tiny.red, tiny.blue, tiny.blue], tiny.noises(3, 4)))


def test_without_a_seed_a_random_one_is_used_and_reported(sampler: Sampler) -> None:
    [first], [second] = sampler("red circle"), sampler("red circle")
    assert first.info["seed"] != second.info["seed"]
    [again] = sampler("red circle", seed=first.info["seed"])
    assert again.tobytes() == first.tobytes() != second.tobytes()


def test_images_are_rounded_as_diffusers_rounds(sampler: Sampler) -> None:
    from diffusers.image_processor import VaeImageProcessor

    expected = VaeImageProcessor.numpy_to_pil(sampler("red circle", seed=[4, 5], num_images=2, output="np"))
    got = sampler("red circle", seed=[4, 5], num_images=2)
    assert [p.tobytes() for p in got] == [p.tobytes() for p in expected]
    assert [p.info["seed"] for p in got] == [4, 5]


@pytest.mark.parametrize("output", ["np", "pil"])
def test_a_result_that_is_not_finite_is_refused(output: Literal["np", "pil"], sampler: Sampler) -> None:
    with pytest.raises(DiffcError, match="NaN or infinity") as refused:
        sampler("red circle", guidance_scale=1e300, seed=0, output=output)
    assert "lower guidance scale" in str(refused.value)


def test_describes_its_bundle(sampler: Sampler, shared: Path) -> None:
    assert sampler.path == shared and sampler.target == "ort-fp32"
    assert list(sampler.programs) == ["draw", "plain"] and sampler.programs["draw"].startswith("program draw(")
    assert sampler.bytes == sum(
        f.stat().st_size for f in shared.rglob("*") if f.is_file() and f.name != "manifest.json"
    )
    assert sampler.manifest["schema"] == 1


def test_reports_every_step_with_its_latents(pairs: Sampler, tiny: Any) -> None:
    seen = list[Progress]()
    got = pairs("red circle", num_images=3, seed=2, callback=seen.append, output="np")
    assert [(p.step, p.steps) for p in seen] == [(at, 6) for at in range(1, 7)]
    assert [list(p.images) for p in seen] == [[0, 1]] * 3 + [[2]] * 3
    assert [p.latents.shape[0] for p in seen] == [2] * 3 + [1] * 3 and {p.seed for p in seen} == {2}
    tiny.close(tiny.decoded(seen[2].latents / 2).transpose(0, 2, 3, 1), got[:2])


def test_a_callback_cancels_and_the_sampler_stays_usable(sampler: Sampler, tiny: Any) -> None:
    with pytest.raises(Cancelled, match="cancelled after step 2 of 3"):
        sampler("red circle", seed=0, callback=lambda progress: progress.step == 2)
    tiny.close(sampler("red circle", seed=0, output="np"), tiny.expected([tiny.red], tiny.noises(0, 1)))


def test_two_threads_do_not_disturb_each_other(shared: Path, tiny: Any) -> None:
    sampler, got = load(shared, threads=1), dict[int, np.ndarray]()

    def sample(seed: int) -> None:
        got[seed] = sampler("red circle", num_images=5, seed=seed, output="np")

    threads = [threading.Thread(target=sample, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        tiny.close(got[seed], tiny.expected([tiny.red] * 5, tiny.noises(seed, 5)))


@pytest.mark.parametrize(
    ("shape", "kind", "old"),
    [
        ((1, 3, 2, 2), "images", "pictures"),
        ((1, 5, 3, 2, 2), "videos", "films"),
        ((1, 2, 9), "arrays", "numbers"),
        ((1, 4, 2, 2), "arrays", "numbers"),
    ],
)
def test_names_the_kind_of_output(shape: tuple[int, ...], kind: str, old: str, tiny: Any, tmp_path: Path) -> None:
    text = f"program p() {{ n: float32{list(shape)} = noise() return n }}"
    sampler = load(tiny.write(tmp_path / "x.diffc", programs={"p": text}))
    assert (sampler.output_kind, sampler.makes) == (kind, old), "makes spells it as earlier versions did"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_a_copy_is_its_path_and_options(
    shared: Path, tiny: Any, copied: Callable[[Sampler], Sampler], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(shared.parent)
    sampler = load(shared.name, threads=1)
    monkeypatch.chdir(tmp_path)
    another = copied(sampler)
    assert another is not sampler and another.path == shared
    tiny.close(another("red circle", seed=3, output="np"), tiny.expected([tiny.red], tiny.noises(3, 1)))
    graph = next(iter(another._bundle.programs.values())).graphs[0]
    assert another._interpreter.session(graph) is not load(shared)._interpreter.session(graph), "of other threads"


def test_a_sampler_goes_to_workers_that_are_spawned(shared: Path) -> None:
    sampler = load(shared, threads=1)
    sampler("red circle", seed=0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        [array] = pool.map(functools.partial(sampler, seed=3, output="np"), ["red circle"])
    assert np.array_equal(array, sampler("red circle", seed=3, output="np"))
