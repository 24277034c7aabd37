"""Run the conformance corpus against the Python runtime; `README.md` says what each file means."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffc.runtime import BundleError, Cancelled, Progress, RequestError, Sampler, load
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.errors import DiffcError, DiffcWarning
from diffc.runtime.images import arrays_from_images, images_from_arrays, open_image
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.texts import transform
from diffc.runtime.program.verify import Level, verify
from diffc.runtime.rng import Generator
from tests.tolerances import PICTURE_8BIT, PICTURE_OF_NUMPY

FOLDER = Path(__file__).parent
LEVELS = {"traced": Level.TRACED, "normal form": Level.NORMAL_FORM, "executable": Level.EXECUTABLE}
ERRORS = {"request": RequestError, "bundle": BundleError, "cancelled": Cancelled}


def entries(pattern: str) -> list[Any]:
    """List the entries of every file of the corpus that matches, as parameters: the file's folder and the entry."""
    return [
        pytest.param(path.parent, entry, id=f"{path.parent.relative_to(FOLDER)}-{name}")
        for path in sorted(FOLDER.glob(pattern))
        for name, entry in json.loads(path.read_text()).items()
    ]


@cache
def sampler(folder: Path) -> Sampler:
    """Open a bundle of the corpus once."""
    return load(folder / "bundle", threads=1)


def read(value: Any, folder: Path) -> Any:
    """Return an input of a request, read from its file where it has one."""
    if isinstance(value, dict):
        [(kind, name)] = value.items()
        return np.load(folder / name) if kind == "npy" else open_image(folder / name)
    return [read(item, folder) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("folder", "entry"), entries("bundles/*/requests.json"))
@pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning")
def test_request(folder: Path, entry: dict[str, Any]) -> None:
    reports, steps = list[Progress](), entry.get("steps", [])
    inputs = {name: read(value, folder) for name, value in entry["inputs"].items()}
    inputs["size"] = tuple(inputs["size"]) if "size" in inputs else None

    def callback(progress: Progress) -> bool:
        reports.append(progress)
        return progress.step == entry.get("cancel_after")

    if "refused" in entry:
        with pytest.raises(ERRORS[entry["refused"]]):
            sampler(folder)(output="np", callback=callback, **inputs)
    else:
        result = sampler(folder)(output="np", callback=callback, **inputs)
        expected = np.load(folder / entry["result"])
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        tolerance = 0 if entry.get("exact") else PICTURE_OF_NUMPY
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
    for progress, step in zip(reports, steps, strict=True) if steps else ():
        check_step(progress, step, folder)


def check_step(progress: Progress, step: dict[str, Any], folder: Path) -> None:
    """Compare the report of a step."""
    assert (progress.step, progress.steps, list(progress.images)) == (step["step"], step["steps"], step["images"])
    expected = np.load(folder / step["latents"])
    np.testing.assert_allclose(progress.latents, expected, rtol=PICTURE_OF_NUMPY, atol=PICTURE_OF_NUMPY)
    if "preview" in step:
        preview = np.stack([np.asarray(image, np.float32) for image in progress.preview()])
        expected = np.clip(np.load(folder / step["preview"]), 0, 1) * 255
        assert np.abs(preview - expected).max() <= PICTURE_8BIT


@pytest.mark.parametrize(("folder", "entry"), entries("noise/streams.json"))
def test_noise_is_exact(folder: Path, entry: dict[str, Any]) -> None:
    generator = Generator(entry["seed"])
    draws = [generator.randn(tuple(shape)).ravel() for shape in entry["shapes"]]
    assert np.concatenate(draws).tobytes() == np.load(folder / entry["values"]).tobytes()


@pytest.mark.parametrize(("folder", "entry"), entries("tokens/tokens.json"))
@pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning")
def test_tokens(folder: Path, entry: dict[str, Any]) -> None:
    tokenizer = Tokenizer((folder / entry["tokenizer"]).read_bytes(), entry["tokenizer"])
    options = {key: value for key, value in entry.items() if key not in ("tokenizer", "texts", "ids", "mask")}
    ids, mask = tokenizer(entry["texts"], **options)
    for at, text in enumerate(entry["texts"]):
        assert (ids[at].tolist(), mask[at].tolist()) == (entry["ids"][at], entry["mask"][at]), text


@pytest.mark.parametrize(("folder", "entry"), entries("texts/texts.json"))
def test_text_operations(folder: Path, entry: dict[str, Any]) -> None:
    def tokens(name: str, text: str) -> list[str]:
        return Tokenizer((folder / name).read_bytes(), name).tokens(text)

    results = [transform(entry["operator"], entry["keywords"], text, tokens) for text in entry["texts"]]
    assert results == entry["expected"]
    for text in entry.get("refused", ()):
        with pytest.raises(RequestError, match="this program takes no text with something between"):
            transform(entry["operator"], entry["keywords"], text, tokens)


def images(key: str) -> list[Any]:
    """List the entries of one part of the images."""
    return [
        pytest.param(entry, id=name)
        for name, entry in json.loads((FOLDER / "images/images.json").read_text())[key].items()
    ]


@pytest.mark.parametrize("entry", images("encode"))
def test_arrays_become_images(entry: dict[str, Any]) -> None:
    [image] = images_from_arrays(np.load(FOLDER / "images" / entry["array"]))
    with Image.open(FOLDER / "images" / entry["image"]) as expected:
        assert (image.mode, image.size, image.tobytes()) == (expected.mode, expected.size, expected.tobytes())


@pytest.mark.parametrize("entry", images("decode"))
def test_images_become_arrays(entry: dict[str, Any]) -> None:
    image = open_image(FOLDER / "images" / entry["image"])
    array = arrays_from_images([image], (entry["width"], entry["height"]), entry["channels"])
    np.testing.assert_array_equal(array, np.load(FOLDER / "images" / entry["array"]))


def test_a_text_that_is_cut_is_warned_of() -> None:
    with pytest.warns(DiffcWarning, match="cut off"):
        sampler(FOLDER / "bundles/texts")("red red red", output="np")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(FOLDER / "bundles/texts")("red", output="np")


@pytest.mark.parametrize(("folder", "entry"), entries("programs/levels.json"))
def test_program(folder: Path, entry: dict[str, Any]) -> None:
    text = (folder / entry["text"]).read_bytes().decode("utf-8")
    accepted = [level for name, level in LEVELS.items() if accepts(text, level)]
    expected = list(LEVELS.values())[: ["refused", *LEVELS].index(entry["level"])]
    assert accepted == expected


def accepts(text: str, level: Level) -> bool:
    """Return whether a program is legal at a level."""
    try:
        verify(read_program(text), level, tokenizers=["words"])
    except DiffcError:
        return False
    return True


@pytest.mark.parametrize(("folder", "entry"), entries("opening/opening.json"))
def test_opening(folder: Path, entry: dict[str, Any], tmp_path: Path) -> None:
    bundle = folder / entry["tar"] if "tar" in entry else changed_bundle(folder, entry, tmp_path)
    if entry["expected"] == "refused":
        with pytest.raises(BundleError):
            load(bundle)
    elif entry["expected"] == "refused when run":
        with pytest.raises(BundleError):
            load(bundle)("red circle")
    else:
        assert load(bundle, threads=1)("red circle", seed=0, output="np").shape == (1, 4, 4, 3)


def changed_bundle(folder: Path, entry: dict[str, Any], parent: Path) -> Path:
    """Copy the sampler's bundle, and change it as the entry says."""
    bundle = shutil.copytree(FOLDER / "bundles/sampler/bundle", parent / "bundle")
    (parent / "outside.bin").write_bytes((bundle / "weights/hidden.bin").read_bytes())
    if "overlay" in entry:
        shutil.copytree(folder / entry["overlay"], bundle, dirs_exist_ok=True)
    for path in entry.get("remove", []):
        (bundle / path).unlink()
    for path, target in entry.get("links", {}).items():
        (bundle / path).symlink_to(target)
    return bundle
