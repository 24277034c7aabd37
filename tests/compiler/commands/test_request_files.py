"""Files of a request are read by their extension; outputs are saved as one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffc.compiler.commands.request_files import (
    check_names,
    check_output,
    read_array,
    read_inputs,
    save_outputs,
    set_once,
)
from diffc.runtime import DiffcError, RequestError


def test_reads_arrays_and_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    Image.new("RGB", (4, 2)).save(tmp_path / "y.png")
    inputs = read_inputs({"x": tmp_path / "x.npy", "image": str(tmp_path / "y.png")})
    assert inputs.keys() == {"x", "image"} and inputs["image"].size == (4, 2)
    assert inputs["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr': '|O'"])
def test_refuses_what_is_not_an_array(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DiffcError, match=r"x\.npy cannot be read"):
        read_array(tmp_path / "x.npy")


def test_scalars_are_those_of_the_bundle() -> None:
    check_names("--set", "scalar", ["strength"], ["guidance_scale", "strength"])
    with pytest.raises(DiffcError, match="eta is no scalar of the request\n.*\n  fix: set one of guidance_scale, str"):
        check_names("--set", "scalar", ["eta"], ["guidance_scale", "strength"])
    with pytest.raises(DiffcError, match="fix: leave --set out"):
        check_names("--set", "scalar", ["eta"], [])


def test_a_value_that_two_options_set_is_refused() -> None:
    shorthands = {"guidance_scale": ("--guidance", 7.0), "strength": ("--strength", None)}
    assert set_once("--set", {"strength": 0.5}, shorthands) == {"strength": 0.5, "guidance_scale": 7.0}
    with pytest.raises(DiffcError, match="guidance_scale is set twice\n  at:  --guidance and --set"):
        set_once("--set", {"guidance_scale": 5.0}, shorthands)


def test_several_images_are_saved_as_a_grid_and_videos_frame_by_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), "blue")
    for name, outputs, size, frames in (
        ("one.png", [red], (4, 2), 1),
        ("two.png", [red, blue], (8, 2), 1),
        ("video.png", [[red, blue]], (4, 2), 2),
        ("videos.png", [[red, blue], [blue, red]], (8, 2), 2),
    ):
        save_outputs(outputs, tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert (saved.size, getattr(saved, "n_frames", 1)) == (size, frames)
    save_outputs(np.ones((1, 2)), tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("x.foo", "images", "has no extension of an image format"),
        ("x", "images", "has no extension of an image format"),
        ("x.jpg", "videos", "has no extension of a video format"),
        ("x.wav", "arrays", r"cannot hold audio or another array\n.*\n  fix: use \.npy"),
        ("missing/x.png", "images", "there is no folder"),
        ("missing/x.npy", "arrays", "there is no folder"),
        ("folder.npy", "arrays", "it is a folder"),
    ],
)
def test_outputs_that_cannot_be_saved_are_refused(name: str, kind: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(RequestError, match=what):
        check_output(tmp_path / name, kind)


def test_outputs_that_can_be_saved_are_not_written_yet(tmp_path: Path) -> None:
    for name, kind in (("x.png", "images"), ("x.gif", "videos"), ("x.npy", "arrays"), ("X.NPY", "images")):
        check_output(tmp_path / name, kind)
    assert list(tmp_path.iterdir()) == []
