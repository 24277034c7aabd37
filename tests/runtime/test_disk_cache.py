"""The cache of builds: entries are whole or absent, bounded, shared, and never a reason for a build to fail."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from diffc.runtime.disk_cache import Cache
from diffc.runtime.errors import DiffcError, DiffcWarning


def key(name: str) -> str:
    """Make a key of a name."""
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Give an empty cache whose folder does not exist yet."""
    return Cache(tmp_path / "folder", limit=10_000)


def test_what_is_put_is_got(cache: Cache) -> None:
    assert cache.get(key("a")) is None
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) == b"content"
    assert cache.get(key("b")) is None


@pytest.mark.parametrize("damage", [b"", b"short", b"0" * 64 + b"content", b"\xff" * 200])
def test_a_damaged_entry_is_dropped(cache: Cache, damage: bytes) -> None:
    cache.put(key("a"), b"content")
    [(path, _)] = cache.entries()
    path.write_bytes(damage)
    assert cache.get(key("a")) is None
    assert not path.exists()
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) == b"content"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3 * (64 + 100))
    for at, name in enumerate("abc"):
        cache.put(key(name), bytes(100))
        os.utime(tmp_path / f"{key(name)}.entry", (at, at))
    assert cache.get(key("a")) is not None  # used just now
    cache.put(key("d"), bytes(100))
    assert [cache.get(key(name)) is not None for name in "abcd"] == [True, False, True, True]


def test_a_limit_of_zero_keeps_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=0)
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) is None and cache.entries() == []


def test_clearing_leaves_other_files_alone(cache: Cache) -> None:
    cache.put(key("a"), b"content")
    (cache.folder / "mine.txt").write_text("keep")
    assert cache.clear() == 64 + 7
    assert [path.name for path in cache.folder.iterdir()] == ["mine.txt"]


def test_a_folder_removed_meanwhile_is_made_again(cache: Cache) -> None:
    cache.put(key("a"), b"content")
    cache.clear()
    cache.folder.rmdir()
    assert cache.get(key("a")) is None and cache.entries() == []
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) == b"content"


def test_a_folder_that_is_a_file_is_said_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    cache = Cache(tmp_path / "folder")
    with pytest.warns(DiffcWarning, match="is not used"):
        cache.put(key("a"), b"content")
    with pytest.warns(DiffcWarning, match="is not used"):
        assert cache.get(key("a")) is None


def test_a_full_disk_is_said_and_leaves_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.warns(DiffcWarning, match="No space left on device"):
        cache.put(key("a"), b"content")
    assert list(cache.folder.iterdir()) == []


def test_builds_at_the_same_time_share_it(cache: Cache) -> None:
    wrong = []

    def work(number: int) -> None:
        for turn in range(40):
            name = key(str((number + turn) % 7))
            cache.put(name, name.encode() * 20)
            if cache.get(name) not in (None, name.encode() * 20):
                wrong.append(name)
            time.sleep(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(state.st_size for _, state in cache.entries()) <= cache.limit
    assert not list(cache.folder.glob("*.partial"))


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("DIFFC_CACHE_BYTES", "123")
    assert Cache.default() == Cache(tmp_path / "here", 123)
    monkeypatch.delenv("DIFFC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.default().folder == tmp_path / "diffc"
    monkeypatch.setenv("DIFFC_CACHE_BYTES", "much")
    with pytest.raises(DiffcError, match="'much'"):
        Cache.default()


def test_a_partial_entry_of_a_killed_process_is_removed_when_it_is_old(cache: Cache) -> None:
    cache.put("a", b"1")
    old, new = (cache.folder / f".{name}.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.put("b", b"2")
    assert not old.exists() and new.exists()
