"""Files appear whole or not at all; whether one can be written is known before the work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from diffc.runtime import RequestError
from diffc.runtime.output_file import check_writable, write_complete


def write(stream: BinaryIO) -> None:
    stream.write(b"new")


def test_a_file_is_written_and_one_of_its_name_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for content in (b"", b"longer than before"):
        path.write_bytes(content)
        check_writable(path)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
        assert write_complete(str(path), write) == path
        assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def read_only(folder: Path) -> Path:
    (folder / "x.png").write_bytes(b"old")
    (folder / "x.png").chmod(0o444)
    return folder / "x.png"


def in_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"old")
    return folder / "file" / "x.png"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.png")
    return folder / "x.png"


@pytest.mark.parametrize(
    ("path_of", "what"),
    [
        (lambda folder: folder, "it is a folder"),
        (lambda _: Path(), "it is a folder"),
        (lambda folder: folder / "missing" / "x.png", "there is no folder .*missing"),
        (in_a_file, "file is no folder"),
        (read_only, "it is read-only"),
        (pipe, "it is neither a file nor a folder"),
        (lambda _: Path("/dev/null"), "it is neither a file nor a folder"),
        (lambda folder: folder / f"{'x' * 300}.png", "File name too long"),
        (lambda _: Path("/proc/x.png"), "cannot be written"),
    ],
)
def test_refuses_before_and_after_the_work_what_cannot_be_written(
    tmp_path: Path, path_of: Callable[[Path], Path], what: str
) -> None:
    path = path_of(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for refused in (lambda: check_writable(path), lambda: write_complete(path, write)):
        with pytest.raises(RequestError, match=what) as raised:
            refused()
        assert raised.value.where == str(path) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_refuses_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RequestError, match="Permission denied"):
        check_writable(tmp_path / "x.png")


def test_a_full_disk_is_known_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> Any:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RequestError, match=r"x\.png cannot be written: No space left on device"):
        check_writable(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupted(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "x.png").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_complete(tmp_path / "x.png", interrupted)
    assert (tmp_path / "x.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
