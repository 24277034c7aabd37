"""Turn arguments into inputs: noise in torch's order, arrays by image, the program that serves; and refuse the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffc.runtime import DiffcWarning, RequestError, Sampler, load


def test_noise_of_few_values_is_generated_for_all_images_at_once(tiny: Any, tmp_path: Path) -> None:
    body = "n: T = noise() m: T = noise() i: T = linear(n, m; 0.1, 0.01, 0.5) return i"
    got = tiny.sampler(tmp_path, body)("", num_images=7, seed=3, output="np")
    generator = torch.Generator("cpu").manual_seed(3)
    n, m = (torch.randn((7, 3, 1, 1), generator=generator).numpy() for _ in range(2))
    tiny.close(got, (0.1 * n + 0.01 * m + 0.5).transpose(0, 2, 3, 1))


EMBEDDED = """program p(e: float32[2, 3, 1, 1], image: image[2, 3, 1, 1]) {
    n: float32[2, 3, 1, 1] = noise()
    y: float32[2, 3, 1, 1] = linear(n, e, image; 0.0, 1.0, 10.0)
    return y
}"""


def test_array_inputs_have_a_row_for_each_image(tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    rows = np.arange(9.0).reshape(3, 3, 1, 1)
    grey = np.full((1, 1, 3), 0.5, np.float32)
    got = sampler(e=rows, image=grey, output="np")
    tiny.close(got, (rows + 5).transpose(0, 2, 3, 1))
    tiny.close(sampler(e=rows[1], image=[grey] * 3, output="np"), np.repeat(got[1:2], 3, axis=0))
    tiny.close(sampler(e=rows, image=grey, num_images=2, output="np"), np.repeat(got, 2, axis=0))
    with pytest.raises(RequestError, match="2 images for each of 3 rows of image"):  # pipelines differ in their order
        sampler(e=rows, image=[grey] * 3, num_images=2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "this program needs e"),
        (np.zeros((3, 2, 1)), r"e is float64\[3, 2, 1\]"),
        (np.zeros((0, 3, 1, 1)), r"e is float64\[0, 3, 1, 1\]"),
        (np.zeros((1, 1, 3, 1, 1)), r"e is float64\[1, 1, 3, 1, 1\]"),
        (np.zeros((3, 1, 1), bool), r"e is bool\[3, 1, 1\]"),
        (np.array(["a", "b", "c"]).reshape(3, 1, 1), "e is <U1"),
        (np.array([[[1.0]], [[np.nan]], [[0.0]]]), "e holds NaN or infinity"),
        (np.full((3, 1, 1), 1e39), "e holds NaN or infinity"),
        ([[[[1.0]], [[2.0]], [[3.0]]], [[[1.0]]]], "e is a list of different shapes"),
        (np.zeros((3, 3, 1, 1)), "e has rows for 3 of 2 images|image has rows for 2 of 3 images"),
    ],
)
def test_refuses_arrays_that_the_program_cannot_read(array: Any, message: str, tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    with pytest.raises(RequestError, match=message):
        sampler(e=array, image=[np.zeros((1, 1, 3), np.float32)] * 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((1, 1, 3)), np.zeros((2, 1, 3))], "image is a list of different shapes"),
        ([np.zeros((1, 1, 3)), Image.new("RGB", (1, 1))], "the list image mixes images or paths with arrays"),
        (Image.new("RGB", (0, 1)), "an image has no pixels"),
    ],
)
def test_refuses_images_that_are_no_images_of_one_size(images: Any, message: str, tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    with pytest.raises(RequestError, match=message):
        sampler(e=np.zeros((3, 1, 1)), image=images)


def twice(tiny: Any, folder: Path, batch: int) -> Sampler:
    """Open a bundle whose noise is for both guidance branches, all of one before all of the second."""
    one, two = f"float32[{batch}, 3, 1, 1]", f"float32[{2 * batch}, 3, 1, 1]"
    text = f"""program p() {{
        n: {two} = noise()
        u: {one}, v: {one} = split(n, axis=0)
        y: {one} = linear(u, v; 1.0, 0.5)
        return y
    }}"""
    return load(tiny.write(folder / f"twice{batch}.diffc", programs={"p": text}))


def test_noise_for_both_guidance_branches_is_in_torch_order(tiny: Any, tmp_path: Path) -> None:
    def reference(seed: int, count: int, latents: torch.Tensor | None = None) -> np.ndarray:
        noise = torch.randn((2 * count, 3, 1, 1), generator=torch.Generator("cpu").manual_seed(seed))
        u, v = (noise if latents is None else latents).numpy().reshape(2, count, 3, 1, 1)
        return (u + 0.5 * v).transpose(0, 2, 3, 1)

    single, double = twice(tiny, tmp_path, 1), twice(tiny, tmp_path, 2)
    tiny.close(single(seed=4, output="np"), reference(4, 1))
    tiny.close(single(seed=[4, 5, 6], num_images=3, output="np"), np.concatenate([reference(s, 1) for s in (4, 5, 6)]))
    tiny.close(double(seed=4, num_images=2, output="np"), reference(4, 2))
    latents = torch.arange(12.0).reshape(4, 3, 1, 1)
    tiny.close(double(seed=0, num_images=2, latents=latents, output="np"), reference(0, 2, latents))
    for sampler, request in ((single, {"num_images": 2}), (double, {}), (double, {"num_images": 2, "seed": [1, 2]})):
        with pytest.raises(RequestError, match="in which order for . is not known"):
            sampler(output="np", **request)


@pytest.mark.parametrize("name", ["sampler", "pairs"])
def test_a_list_of_seeds_gives_each_image_its_own_noise(name: str, tiny: Any, request: pytest.FixtureRequest) -> None:
    got = request.getfixturevalue(name)("red circle", num_images=3, seed=[7, 8, 9], output="np")
    each = [tiny.noises(seed, 1) for seed in (7, 8, 9)]
    tiny.close(got, tiny.expected([tiny.red] * 3, [np.concatenate(rows) for rows in zip(*each, strict=True)]))


def test_latents_replace_the_first_noise(sampler: Sampler, tiny: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    got = sampler("red circle", num_images=2, latents=latents, seed=5, output="np")
    tiny.close(got, tiny.expected([tiny.red, tiny.red], [latents, *tiny.noises(5, 2, times=3)]))
    shared = sampler("red circle", num_images=2, latents=latents[:1], seed=5, output="np")
    tiny.close(shared[0], got[0])


def test_the_first_program_whose_guards_hold_is_chosen(sampler: Sampler) -> None:
    default = sampler("red circle", guidance_scale=0.5, seed=0, output="np")
    named = sampler("red circle", guidance_scale=0.5, seed=0, output="np", program="plain")
    np.testing.assert_array_equal(default, named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 5}, "prompt is 5"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"prompt": [5]}, "the prompt is a int"),
        ({"prompt": "a\0b"}, "the prompt holds a NUL byte"),
        ({"prompt": "\ud800"}, "the prompt is not valid Unicode"),
        ({"prompt": ["red", "blue"], "negative_prompt": ["a", "b", "c"]}, "prompt has 2 texts, another has 3"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": True}, "num_images is True"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "5"}, "guidance_scale is '5'"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        ({"guidance_scale": 0.5, "program": "draw"}, r"draw takes guidance_scale > 1\.0"),
        ({"program": "other"}, "the bundle has no program other"),
        ({"size": (8, 4)}, "this bundle has no size 8x4"),
        ({"size": (4, 4, 4)}, r"size is \(4, 4, 4\)"),
        ({"size": "4x4"}, "size is '4x4'"),
        ({"size": 8}, "this bundle has no size 8x8"),
        ({"size": 4.0}, "size is 4.0"),
        ({"size": True}, "size is True"),
        ({"num_images": 2.0}, "num_images is 2.0"),
        ({"eta": 0.5}, "no program of this bundle takes eta"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": [1, 2]}, "2 seeds for 1 images"),
        ({"latents": np.zeros((1, 3, 4))}, r"the latents are float64\[1, 3, 4\]"),
        ({"latents": np.full((1, 3, 4, 4), np.nan)}, "the latents hold NaN"),
        ({"latents": np.zeros((1, 3, 4, 4), bool)}, "the latents are bool"),
        ({"output": "latent"}, "output is 'latent'"),
    ],
)
def test_refuses_arguments_that_no_program_serves(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sampler(**{"prompt": "red circle", **options})


def noise_program(name: str, *shape: int) -> str:
    """Return the text of a program that returns noise of a shape."""
    return f"program {name}() {{ n: float32{list(shape)} = noise() return n }}"


def test_a_size_chooses_among_programs(tiny: Any, tmp_path: Path) -> None:
    shapes = {"square": (1, 3, 2, 2), "wide": (1, 3, 2, 4), "video": (1, 5, 3, 6, 4), "audio": (1, 2, 9)}
    sampler = load(
        tiny.write(tmp_path / "x.diffc", programs={n: noise_program(n, *shape) for n, shape in shapes.items()})
    )
    assert sampler(seed=0, output="np").shape == (1, 2, 2, 3), "the first is the default"
    assert sampler(seed=0, output="np", size=(4, 2)).shape == (1, 2, 4, 3)
    assert sampler(seed=0, output="np", size=[4, 6]).shape == (1, 5, 6, 4, 3)
    assert sampler(seed=0, output="np", size=2).shape == (1, 2, 2, 3), "an edge is that of a square"
    assert sampler(seed=0, output="np", size=(np.int64(4), np.int32(2)), num_images=np.int64(2)).shape == (2, 2, 4, 3)
    with pytest.raises(RequestError, match="this bundle has no size 2x4") as raised:
        sampler(seed=0, size=(2, 4))
    assert "it has 2x2, 4x2, 4x6;" in str(raised.value.fix)
    with pytest.raises(RequestError, match="wide has no size 2x2"):
        sampler(seed=0, size=(2, 2), program="wide")
    with pytest.raises(RequestError, match="audio has no size 9x2") as raised:
        sampler(seed=0, size=(9, 2), program="audio")
    assert raised.value.fix == "leave the size out"


def test_names_the_guards_when_none_holds(tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path))
    with pytest.raises(RequestError) as raised:
        sampler("red", guidance_scale=1.0)
    assert "serves guidance_scale=1.0" in str(raised.value) and "draw takes guidance_scale > 1.0" in str(raised.value)


def test_refuses_latents_without_noise(tiny: Any, tmp_path: Path) -> None:
    sampler = tiny.sampler(tmp_path, "i: T = linear(; a) return i")
    with pytest.raises(RequestError, match="has no noise"):
        sampler("", latents=np.zeros((1, 3, 1, 1)))
    with pytest.raises(RequestError, match="takes prompt"):
        sampler("a red circle")


def test_images_are_read_from_paths(tiny: Any, tmp_path: Path) -> None:
    sampler = load(tiny.write(tmp_path / "e.diffc", programs={"p": EMBEDDED}))
    images = [Image.new("RGB", (3, 2), (255 * at, 0, 51)) for at in range(2)]
    paths = [tmp_path / f"{at}.png" for at in range(2)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    e = np.zeros((3, 1, 1))
    expected = sampler(e=e, image=images, output="np")
    tiny.close(sampler(e=e, image=paths, output="np"), expected)
    tiny.close(sampler(e=e, image=(str(paths[0]), images[1]), output="np"), expected)
    with pytest.raises(RequestError, match=r"there is no file .*missing\.png"):
        sampler(e=e, image=tmp_path / "missing.png")


def test_an_input_that_the_serving_program_does_not_read_is_named(tiny: Any, tmp_path: Path) -> None:
    alone = """program alone(prompt: text[1], guidance_scale: scalar = 1.0) {
        guard guidance_scale <= 1.0
        n: float32[1, 3, 1, 1] = noise()
        return n
    }"""
    sampler = load(tiny.write(tmp_path / "two.diffc", programs={"guided": tiny.program(1, "guided"), "alone": alone}))
    message = r"negative_prompt has no effect: alone \(at guidance_scale=1\) does not read it"
    with pytest.warns(DiffcWarning, match=message):
        sampler("red", negative_prompt="blue", guidance_scale=1.0, seed=0)
    for nothing in (None, "", [""]):
        sampler("red", negative_prompt=nothing, guidance_scale=1.0, seed=0)
