"""What graphs made of earlier requests is kept by their inputs, up to a size; the oldest go first."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.runtime import Sampler, load
from diffc.runtime.prompt_cache import PromptCache


class Counted:
    """Compute something, and count how often."""

    def __init__(self, size: int = 4) -> None:
        self.size, self.times = size, 0

    def __call__(self) -> list[np.ndarray]:
        self.times += 1
        return [np.full(self.size, self.times, np.uint8)]


def ids(*numbers: int) -> dict[str, np.ndarray]:
    """Give the feeds of a text encoder."""
    return {"ids": np.array(numbers)}


def test_equal_feeds_are_computed_once() -> None:
    cache, work = PromptCache(), Counted()
    first, again = cache.get("encoder", ids(1, 2), work), cache.get("encoder", ids(1, 2), work)
    assert work.times == 1 and first is again
    assert (cache.hits, cache.misses, cache.bytes) == (1, 1, 4)


@pytest.mark.parametrize(
    ("graph", "feeds"),
    [
        ("other", ids(1, 2)),
        ("encoder", ids(2, 1)),
        ("encoder", {"mask": np.array([1, 2])}),
        ("encoder", {"ids": np.array([1, 2], np.int32)}),
        ("encoder", {"ids": np.array([[1, 2]])}),
        ("encoder", {"ids": np.array([1, 2]), "mask": np.array([1])}),
    ],
)
def test_other_graphs_ports_types_shapes_and_numbers_are_others(graph: str, feeds: dict[str, np.ndarray]) -> None:
    cache, work = PromptCache(), Counted()
    cache.get("encoder", ids(1, 2), work)
    cache.get(graph, feeds, work)
    assert work.times == 2


def test_the_least_recently_used_goes_first() -> None:
    cache, work = PromptCache(limit=8), Counted()
    for prompt in (1, 2, 1, 3):  # 2 makes room for 3
        cache.get("encoder", ids(prompt), work)
    assert cache.bytes == 8 and work.times == 3
    cache.get("encoder", ids(1), work)
    assert work.times == 3
    cache.get("encoder", ids(2), work)
    assert work.times == 4


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache, work = PromptCache(limit=3), Counted()
    cache.get("encoder", ids(1), work)
    cache.get("encoder", ids(1), work)
    assert work.times == 2 and cache.bytes == 0


def test_nobody_can_change_what_is_kept() -> None:
    (kept,) = PromptCache().get("encoder", ids(1), Counted())
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 7


def test_a_failure_is_not_kept() -> None:
    cache = PromptCache()

    def fail() -> list[np.ndarray]:
        raise OSError("the engine broke")

    with pytest.raises(OSError, match="broke"):
        cache.get("encoder", ids(1), fail)
    assert cache.get("encoder", ids(1), Counted())[0][0] == 1


def test_threads_may_share_it() -> None:
    cache, found = PromptCache(limit=64), list[int]()

    def look() -> None:
        for prompt in range(200):
            (kept,) = cache.get("encoder", ids(prompt % 20), lambda p=prompt % 20: [np.full(4, p, np.uint8)])
            found.append(int(kept[0]) - prompt % 20)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0} and len(found) == 800
    assert 0 < cache.bytes <= 64


# In the runtime


def test_a_text_encoder_runs_once_for_each_prompt(shared: Path) -> None:
    sampler = load(shared, threads=1)
    first = sampler("red circle", seed=0, output="np")
    cache = sampler._interpreter.cache
    assert (cache.hits, cache.misses) == (0, 2), "the prompt and the empty negative prompt"
    np.testing.assert_array_equal(sampler("red circle", seed=0, output="np"), first)
    assert (cache.hits, cache.misses) == (2, 2)
    other = sampler("blue square", seed=0, output="np")
    assert (cache.hits, cache.misses) == (3, 3)
    np.testing.assert_array_equal(load(shared, threads=1)("blue square", seed=0, output="np"), other)


def test_a_graph_that_works_ahead_gives_its_memory_back(tiny: Any, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "ahead.diffc")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["graphs"]["text_encoder"]["stage"] = "request_step"
    (path / "manifest.json").write_text(json.dumps(manifest))
    sampler = Sampler(path, threads=1)
    wanted = load(tiny.write(tmp_path / "plain.diffc"), threads=1)("red circle", seed=0, output="np")
    np.testing.assert_array_equal(sampler("red circle", seed=0, output="np"), wanted)
    assert "text_encoder" not in sampler._interpreter._sessions
    assert "unet" in sampler._interpreter._sessions
    np.testing.assert_array_equal(sampler("red circle", seed=0, output="np"), wanted)
