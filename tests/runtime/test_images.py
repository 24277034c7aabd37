"""Convert, lay out and save images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffc.runtime.errors import DiffcError, RequestError
from diffc.runtime.images import (
    arrays_from_images,
    channels_last,
    grid,
    images_from_arrays,
    open_image,
    save,
    save_array,
)


@pytest.mark.parametrize("channels", [1, 3])
def test_rounds_arrays_to_images_as_diffusers_does(channels: int) -> None:
    # Halves too: NumPy rounds them to even.
    ladder = np.linspace(0, 1, 511, dtype=np.float32)[: 2 * 15 * 17].reshape(1, 15, 34, 1)
    arrays = np.repeat(np.concatenate([ladder, ladder[::-1] * np.float32(0.7)]), channels, axis=3)
    got, expected = images_from_arrays(arrays), VaeImageProcessor.numpy_to_pil(arrays)
    assert [image.mode for image in got] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert [image.tobytes() for image in got] == [image.tobytes() for image in expected]


def test_clips_values_outside_of_0_to_1() -> None:
    [image] = images_from_arrays(np.array([[[[-0.1], [1.1], [0.5]]]], np.float32))
    assert list(image.tobytes()) == [0, 255, 128]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_images_that_are_not_finite(bad: float) -> None:
    with pytest.raises(DiffcError, match="the image holds NaN or infinity"):
        images_from_arrays(np.full((1, 2, 2, 3), bad, np.float32))


def test_lays_images_out_row_by_row() -> None:
    images = [Image.new("RGB", (2, 3), (at, 0, 0)) for at in range(1, 6)]
    combined = grid(images)
    assert combined.size == (6, 6)
    assert [combined.getpixel((2 * column, 3 * row))[0] for row in range(2) for column in range(3)] == [
        1,
        2,
        3,
        4,
        5,
        0,
    ]
    assert grid(images, columns=5).size == (10, 3) and grid(images[:1]).tobytes() == images[0].tobytes()
    with pytest.raises(RequestError, match="a grid of no images"):
        grid([])


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.webp", "a.bmp"])
def test_saves_by_extension(tmp_path: Path, name: str) -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    path = save(image, tmp_path / name)
    assert path == tmp_path / name and list(tmp_path.iterdir()) == [path]
    with Image.open(path) as read:
        assert read.size == (4, 4)


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.png.tmp", "a.psd"])
def test_refuses_extensions_that_no_format_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="has no extension of an image format") as raised:
        save(Image.new("RGB", (4, 4)), tmp_path / name)
    assert raised.value.fix == "use .png, .jpg or .webp, or .npy for the array" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_saves_a_video(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (4, 4), (80 * at, 20, 30)) for at in range(3)]
    with Image.open(save(frames, tmp_path / name)) as video:
        assert (video.n_frames, video.size) == (3, (4, 4))
        video.seek(2)
        assert video.convert("RGB").getpixel((0, 0)) == pytest.approx((160, 20, 30), abs=12)


def test_refuses_formats_without_video(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no extension of a video format"):
        save([Image.new("RGB", (4, 4))] * 2, tmp_path / "a.jpg")


def test_arrays_are_saved_as_they_are(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert np.array_equal(np.load(save_array(values, tmp_path / "a.npy")), values)
    with pytest.raises(RequestError, match="cannot be written"):
        save_array(values, tmp_path / "missing" / "a.npy")


@pytest.mark.parametrize(
    ("shape", "laid_out"),
    [((2, 3, 4, 5), (2, 4, 5, 3)), ((2, 7, 1, 4, 5), (2, 7, 4, 5, 1)), ((2, 3, 9), (2, 3, 9)), ((2, 4, 5, 6),) * 2],
)
def test_images_and_videos_end_with_their_channels(shape: tuple[int, ...], laid_out: tuple[int, ...]) -> None:
    assert channels_last(np.zeros(shape)).shape == laid_out


def test_refuses_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for path in ("missing/a.png", "file/a.png", "folder.png"):
        with pytest.raises(RequestError, match="cannot be written"):
            save(Image.new("RGB", (4, 4)), tmp_path / path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_failed_save_leaves_the_old_image(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.jpg")
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"a\.jpg cannot be written: cannot write mode RGBA as JPEG"):
        save(Image.new("RGBA", (4, 4)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_images_are_scaled_and_converted_as_diffusers_does(mode: str) -> None:
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (50, 70, 4), dtype=np.uint8), "RGBA")
    image = colours.convert("RGB").convert(mode) if mode != "I;16" else colours.convert("I").convert(mode)
    processor = VaeImageProcessor(do_normalize=False, do_convert_rgb=True, vae_scale_factor=8)
    expected = processor.preprocess(image, height=32, width=48).numpy()
    assert np.array_equal(arrays_from_images([image], (48, 32), 3), expected)


def test_a_mask_is_one_channel() -> None:
    masks = arrays_from_images([Image.new("L", (4, 4), 255), Image.new("L", (4, 4), 0)], (2, 2), 1)
    assert masks.shape == (2, 1, 2, 2)
    assert (masks[0] == 1).all()
    assert (masks[1] == 0).all()


def test_refuses_a_file_that_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\0" * 100)
    with pytest.raises(RequestError, match="is not an image"):
        open_image(tmp_path / "x.png")
    with pytest.raises(RequestError, match="is not an image"):
        open_image(tmp_path / "missing.png")
