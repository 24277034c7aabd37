"""Write the files of the corpus: ``python -m tests.format.make_corpus``, in the root of the repository.

The results come from Python, NumPy, PyTorch, transformers, Pillow and ONNX's reference evaluator, never from a runtime
of diffc. Run it when the format changes, and read the difference.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.format.array_cases import array_cases
from tests.format.authoring import FOLDER, write_case
from tests.format.length_cases import length_cases, length_texts
from tests.format.noise_cases import noise_cases
from tests.format.opening_cases import opening_cases
from tests.format.operation_cases import operation_cases
from tests.format.program_cases import program_cases
from tests.format.reference import Randn, grey, lanczos
from tests.format.request_cases import request_cases
from tests.format.text_cases import text_cases, words_tokenizer
from tests.format.token_cases import token_cases, tokenizers
from tests.tolerances import NOISE

STREAMS = {
    "small": (0, [(1,), (2,), (3,), (7,), (15,), (), (1,)]),
    "large": (5, [(16,), (17,), (31,), (32,), (37,), (100,), (4, 9, 7)]),
    "mixed": (1234, [(3,), (4, 16), (1,), (), (37,), (5,), (2, 2), (1, 4, 8, 8), (7,), (100,), (1,), (0,), (1,)]),
    "low-32-bits": (2**32 + 5, [(2,), (32,)]),
    "negative": (-1, [(2,), (32,)]),
    "lowest": (-(2**63), [(2,), (32,)]),
    "highest": (2**64 - 1, [(2,), (32,)]),
}
"""Streams of normal numbers: a name, a seed, and the shapes of the draws, in order."""


def write_json(name: str, value: Any) -> None:
    """Write a file of the corpus."""
    (FOLDER / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def fresh(name: str) -> None:
    """Empty a folder of the corpus."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    (FOLDER / name).mkdir()


def write_noise() -> None:
    """Write the streams, every bit as `Randn` computes it, after comparing it with PyTorch."""
    fresh("noise")
    streams = {}
    for name, (seed, shapes) in STREAMS.items():
        randn, generator = Randn(seed), torch.Generator("cpu").manual_seed(seed)
        draws = [randn(*shape) for shape in shapes]
        for draw, shape in zip(draws, shapes, strict=True):
            np.testing.assert_allclose(draw, torch.randn(shape, generator=generator).numpy(), rtol=0, atol=NOISE)
        np.save(FOLDER / "noise" / f"{name}.npy", np.concatenate([draw.ravel() for draw in draws]))
        streams[name] = {"seed": seed, "shapes": shapes, "values": f"{name}.npy"}
    write_json("noise/streams.json", streams)


def write_programs() -> None:
    """Write program texts, and the level that accepts each."""
    fresh("programs")
    entries = {}
    for name, level, text in (*program_cases(), *length_texts()):
        assert name not in entries, name
        file = f"{name.replace(' ', '-')}.program"
        (FOLDER / "programs" / file).write_bytes(text.encode())
        entries[name] = {"text": file, "level": level}
    write_json("programs/levels.json", entries)


def write_tokens() -> None:
    """Write tokenizers, and the ids of texts."""
    fresh("tokens")
    for name, text in tokenizers().items():
        (FOLDER / "tokens" / f"{name}.json").write_text(text, encoding="utf-8")
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in token_cases()]
    (FOLDER / "tokens" / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_texts() -> None:
    """Write text operations, and what becomes of texts."""
    fresh("texts")
    (FOLDER / "texts" / "words.json").write_text(words_tokenizer(), encoding="utf-8")
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in text_cases()]
    (FOLDER / "texts" / "texts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_images() -> None:
    """Write arrays and the 8-bit images of them, and images and the arrays that a program reads of them."""
    fresh("images")
    folder, rng = FOLDER / "images", np.random.default_rng(0)
    ladder = np.linspace(-0.1, 1.1, 24 * 20, dtype=np.float32)
    halves = (np.arange(480, dtype=np.float32) % 255 + np.float32(0.5)) / np.float32(255)
    encoded = {
        "grey": ladder.reshape(20, 24, 1),
        "colour": np.stack([ladder, ladder[::-1], halves], 1).reshape(20, 24, 3),
    }
    entries: dict[str, Any] = {"encode": {}, "decode": {}}
    for name, array in encoded.items():
        np.save(folder / f"{name}.npy", array[None])
        pixels = np.rint(np.clip(array, np.float32(0), np.float32(1)) * np.float32(255)).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / f"{name}.png")
        entries["encode"][name] = {"array": f"{name}.npy", "image": f"{name}.png"}
    sizes = {"same": (11, 9), "smaller": (6, 4), "larger": (23, 25), "one-axis": (11, 3)}
    source = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(source).save(folder / "source.png")
    for name, (width, height) in sizes.items():
        scaled = lanczos(source, width, height)
        assert np.array_equal(scaled, Image.fromarray(source).resize((width, height), Image.Resampling.LANCZOS))
        for channels, pixels in ((3, scaled), (1, grey(scaled)[..., None])):
            stem = f"{name}-{channels}"
            np.save(folder / f"{stem}.npy", (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None])
            size = {"width": width, "height": height, "channels": channels}
            entries["decode"][stem] = {"image": "source.png", **size, "array": f"{stem}.npy"}
    for name, image, shades in modes(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)):
        image.save(folder / f"{name}.png")
        pixels = lanczos(shades, 6, 4)
        np.save(folder / f"{name}-3.npy", (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None])
        size = {"width": 6, "height": 4, "channels": 3}
        entries["decode"][name] = {"image": f"{name}.png", **size, "array": f"{name}-3.npy", "optional": True}
    write_json("images/images.json", entries)


def modes(colours: np.ndarray) -> Iterator[tuple[str, Image.Image, np.ndarray]]:
    """Yield images of other modes than 8-bit grey and RGB, and the colours [H, W, 3] that they stand for."""
    shade, alpha = colours[..., 0], colours[..., 1]
    greys = np.repeat(shade[..., None], 3, axis=2)
    yield "rgba", Image.fromarray(np.dstack([colours, alpha])), colours
    yield "grey-with-alpha", Image.fromarray(np.dstack([shade, alpha]), "LA"), greys
    yield "two-levels", Image.fromarray(shade > 127), np.where(greys > 127, 255, 0).astype(np.uint8)
    indices = Image.fromarray(shade % 4, "P")
    indices.putpalette(colours[0, :4].tobytes())
    yield "palette", indices, colours[0, shade % 4]
    sixteen = shade.astype(np.uint16) * 256 + alpha
    exact = np.rint(sixteen / np.float32(65535) * np.float32(255)).astype(np.uint8)
    yield "grey-of-16-bits", Image.fromarray(sixteen), np.repeat(exact[..., None], 3, axis=2)


def write_bundles() -> None:
    """Write every bundle and its requests."""
    fresh("bundles")
    for case in (*request_cases(), *noise_cases(), *array_cases(), *operation_cases(), *length_cases()):
        write_case(case, FOLDER / "bundles")


def write_openings() -> None:
    """Write the changes that bundles are opened with, or refused for."""
    fresh("opening")
    entries: dict[str, Any] = {}
    for case in opening_cases():
        stem = re.sub("[^a-z0-9]+", "-", case.name)
        assert case.name not in entries, case.name
        entry: dict[str, Any] = {"expected": case.expected}
        if case.tar:
            entry["tar"] = f"{stem}.tar"
            (FOLDER / "opening" / entry["tar"]).write_bytes(case.tar)
        for path, content in case.overlay.items():
            entry["overlay"] = stem
            file = FOLDER / "opening" / stem / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        entry |= {"remove": list(case.remove)} if case.remove else {}
        entry |= {"links": dict(case.links)} if case.links else {}
        entries[case.name] = entry
    write_json("opening/opening.json", entries)


if __name__ == "__main__":
    write_noise()
    write_programs()
    write_tokens()
    write_texts()
    write_images()
    write_bundles()
    write_openings()
