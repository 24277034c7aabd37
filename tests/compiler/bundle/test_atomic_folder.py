"""A folder appears whole or not at all, and one that is changed is either the old or the new."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffc.compiler.bundle.atomic_folder import PARTIAL, changed_folder, clear_abandoned, file_entry, new_folder
from diffc.compiler.errors import BuildError


def test_a_new_folder_appears_when_all_went_well(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "x") as folder:
        (folder / "a").write_bytes(b"content")
        assert not (tmp_path / "deep" / "x").exists()
    assert (tmp_path / "deep" / "x" / "a").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    with pytest.raises(BuildError, match="x exists"), new_folder(tmp_path / "deep" / "x"):
        pytest.fail("it must not start")


def test_a_link_to_nothing_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("nothing")
    with pytest.raises(BuildError, match="x exists"), new_folder(tmp_path / "x"):
        pytest.fail("it must not start")


def test_of_two_new_folders_at_once_the_first_gets_the_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="x exists") as raised, new_folder(tmp_path / "x") as late:
        (late / "a").write_bytes(b"late")
        with new_folder(tmp_path / "x") as early:
            (early / "a").write_bytes(b"early")
    assert (tmp_path / "x" / "a").read_bytes() == b"early"
    assert raised.value.fix == "remove it or choose another name with -o"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_what_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "x"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written: No space left"), new_folder(tmp_path / "x"):
        raise OSError(28, "No space left on device")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Give a folder of one file."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_bytes(b"old")
    return tmp_path / "x"


def test_a_changed_folder_takes_the_place_of_the_old(before: Path) -> None:
    with changed_folder(before) as folder:
        (folder / "a").write_bytes(b"new")
        assert (before / "a").read_bytes() == b"old"
    assert (before / "a").read_bytes() == b"new"
    assert list(before.parent.iterdir()) == [before]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(28, "full")], ids=repr)
def test_a_change_that_fails_leaves_the_old(before: Path, error: BaseException) -> None:
    with pytest.raises((type(error), BuildError)), changed_folder(before) as folder:
        (folder / "a").write_bytes(b"new")
        raise error
    assert (before / "a").read_bytes() == b"old"
    assert list(before.parent.iterdir()) == [before]


def test_of_two_changes_at_once_the_last_stays_whole(before: Path) -> None:
    with changed_folder(before) as late:
        (late / "a").write_bytes(b"late")
        with changed_folder(before) as early:
            (early / "a").write_bytes(b"early")
            (early / "b").write_bytes(b"early")
        assert (before / "b").read_bytes() == b"early"
    assert {path.name: path.read_bytes() for path in before.iterdir()} == {"a": b"late"}
    assert list(before.parent.iterdir()) == [before]


def test_a_change_in_the_moment_of_another_is_refused(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, moved = Path.rename, list[Path]()

    def meanwhile(path: Path, to: Path) -> Path:
        if path == before and not moved:
            moved.append(rename(path, to))
            with pytest.raises(BuildError, match="cannot be written: No such file"), changed_folder(before):
                pass
            return moved[0]
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", meanwhile)
    with changed_folder(before) as folder:
        (folder / "a").write_bytes(b"new")
    assert (before / "a").read_bytes() == b"new"
    assert list(before.parent.iterdir()) == [before]


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), KeyboardInterrupt()], ids=repr)
def test_a_change_that_cannot_take_the_place_leaves_the_old(
    before: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if to == before and path.name.endswith(".partial"):
            raise error
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises((BuildError, KeyboardInterrupt)), changed_folder(before) as folder:
        (folder / "a").write_bytes(b"new")
    assert (before / "a").read_bytes() == b"old"
    assert list(before.parent.iterdir()) == [before]


def test_a_file_is_known_by_its_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_entry(tmp_path / "a") == {"bytes": 3, "sha256": digest}


def abandoned(output: Path, files: dict[str, bytes]) -> Path:
    """Write a partial folder of an output, as a killed process leaves it."""
    folder = output.parent / f".{output.name}.abc{PARTIAL}"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    left, others = abandoned(tmp_path / "x", {"a": b"half"}), abandoned(tmp_path / "y", {"a": b"half"})
    with new_folder(tmp_path / "x") as first:
        assert not left.exists() and others.exists()
        with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "x"):
            assert first.exists()
            raise ZeroDivisionError
        assert first.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"x", others.name}


def test_a_bundle_that_a_killed_process_had_moved_aside_returns(tmp_path: Path) -> None:
    left = abandoned(tmp_path / "x", {"x/manifest.json": b"old"})
    clear_abandoned(tmp_path / "x")
    assert (tmp_path / "x" / "manifest.json").read_bytes() == b"old" and not left.exists()
    abandoned(tmp_path / "x", {"x/manifest.json": b"older"})
    clear_abandoned(tmp_path / "x")
    assert (tmp_path / "x" / "manifest.json").read_bytes() == b"old", "it is there: nothing returns"
