"""Convert, lay out and save images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image, ImageCms

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
    with pytest.raises(DiffcError, match="the result holds NaN or infinity"):
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
    assert raised.value.fix == "use .png, .jpg, .webp, .gif, .bmp, .tiff, or .npy for the array" and not list(
        tmp_path.iterdir()
    )


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


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_scaled_and_converted_as_diffusers_does(mode: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).convert(mode)
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
    with pytest.raises(RequestError, match="there is no file"):
        open_image(tmp_path / "missing.png")


def of_mode(mode: str, colours: np.ndarray) -> Image.Image:
    """Return an image of a mode, whose alpha, where it has one, is 0 in the left half."""
    image = Image.fromarray(colours)
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, image.size, (np.asarray(image.convert("L")).astype(order) * 257).tobytes())
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    converted = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)).convert(mode)
    if mode in ("LA", "RGBA"):
        alpha = np.zeros((image.height, image.width), np.uint8)
        alpha[:, image.width // 2 :] = 255
        converted.putalpha(Image.fromarray(alpha))
    return converted


COLOURS = ("RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
GREYS = ("1", "LA", "La", "F", "I;16", "I;16L", "I;16B")


@pytest.mark.parametrize("size", [(16, 16), (9, 21), (40, 33)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", COLOURS + GREYS)
def test_an_image_of_any_mode_is_what_its_colours_are_at_every_size(
    mode: str, channels: int, size: tuple[int, int]
) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = of_mode(mode, colours)
    assert image.mode == mode
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    plain = Image.fromarray(colours).convert("L") if mode in ("F", *GREYS[4:]) else straight.convert("RGB")
    options = {"do_convert_rgb": channels == 3, "do_convert_grayscale": channels == 1, "vae_scale_factor": 1}
    [expected] = VaeImageProcessor(do_normalize=False, **options).preprocess(plain, size[1], size[0]).numpy()
    [array] = arrays_from_images([image], size, channels)
    assert np.abs(array - expected).max() <= 1 / 255


def test_an_image_of_16_bits_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    [array] = arrays_from_images([Image.fromarray(ramp)], (16, 16), 1)
    assert np.abs(array[0] - ramp / 65535).max() <= 0.5 / 255 + 1e-6


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(colours).quantize(16)
    image.save(tmp_path / "p.png", transparency=bytes(range(0, 256, 16)))
    [array] = arrays_from_images([open_image(tmp_path / "p.png")], (8, 8), 3)
    assert np.array_equal(array, np.asarray(image.convert("RGB")).transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "an image of 32-bit integers, whose range is not known"),
        (Image.fromarray(np.full((2, 2), 2.0, np.float32)), "floating-point values from 2.0 to 2.0, not from 0 to 1"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "floating-point values from nan"),
    ],
)
def test_images_of_unknown_range_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        arrays_from_images([image], (2, 2), 3)


def test_an_image_file_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png", exif=exif)
    expected = np.asarray(load_image(str(tmp_path / "x.png")))
    [array] = arrays_from_images([open_image(tmp_path / "x.png")], (4, 6), 3)
    assert np.array_equal(array, expected.transpose(2, 0, 1) / np.float32(255))
