"""What is mutated, and what may become of it: a named refusal, or exactly the result that is right."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffc.compiler.bundle.tokenizer_file import check_encodings, tokenizer_text
from diffc.compiler.checkpoint.load import load as load_checkpoint
from diffc.compiler.ir.program import Op
from diffc.runtime import load
from diffc.runtime.errors import DiffcError
from tests.checkpoints import NEURAL, weights_of
from tests.fuzz.mutators import ODD_VALUES, mutated_bytes, mutated_json, mutated_safetensors, mutated_text

REQUEST: dict[str, Any] = {"prompt": "a red circle", "seed": 0, "output": "np"}


class Subject(Protocol):
    """Mutate one kind of input. ``try_one`` returns the refusal, or None; it raises where a result is wrong."""

    def try_one(self, random: Random) -> str | None:
        """Mutate, use, and compare."""


class Bundles:
    """A file of a bundle is changed: it is refused, or draws the image that the bundle draws.

    In half of the tries the manifest is made to agree with the file, as by somebody who means it: that is another
    bundle, which may draw another image, and must not end otherwise. Programs have digests, as a build writes them.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.folder = folder.with_name(f"whole_{folder.name}"), folder
        shutil.copytree(bundle, self.bundle)
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        for program in manifest["programs"].values():
            program["sha256"] = hashlib.sha256(program["text"].encode()).hexdigest()
        (self.bundle / "manifest.json").write_text(json.dumps(manifest, indent=1))
        self.files = sorted(file.relative_to(bundle) for file in bundle.rglob("*") if file.is_file())
        self.expected = load(self.bundle)(**REQUEST)

    def try_one(self, random: Random) -> str | None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.bundle, self.folder)
        name = random.choice(self.files)
        agrees = random.random() < 0.5
        content = (self.bundle / name).read_bytes()
        (self.folder / name).write_bytes(_mutated(random, name.name, content))
        if agrees and name.name != "manifest.json":
            self._agree(name)
        try:
            image = load(self.folder)(**REQUEST)
        except DiffcError as error:
            return str(error)
        if not agrees and not (image.shape == self.expected.shape and np.array_equal(image, self.expected)):
            raise AssertionError(f"a change of {name} draws another image")
        return None

    def _agree(self, name: Path) -> None:
        manifest, content = json.loads((self.folder / "manifest.json").read_bytes()), (self.folder / name).read_bytes()
        manifest["files"][name.as_posix()] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (self.folder / "manifest.json").write_text(json.dumps(manifest))


class Checkpoints:
    """A file of a diffusers folder is changed: it is refused, or its weights are what safetensors reads."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.files = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())

    def try_one(self, random: Random) -> str | None:
        _copy_with_one_mutated(random, self.source, self.folder, self.files)
        try:
            pipeline: Any = load_checkpoint(self.folder)
        except DiffcError as error:
            return str(error)
        for component in NEURAL:
            try:
                stored = load_file(weights_of(self.folder, component))
            except (OSError, SafetensorError) as error:
                raise AssertionError(f"{component} is loaded from a file that safetensors refuses") from error
            weights = getattr(pipeline, component).state_dict()
            for key in weights.keys() & stored.keys():
                if not torch.equal(weights[key], stored[key].to(weights[key].dtype).reshape(weights[key].shape)):
                    raise AssertionError(f"{component}.{key} is not what the file holds")
        return None


class Vocabularies:
    """A file of a tokenizer is changed: it is refused, or a bundle's file encodes texts as the tokenizer does."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        names = ("vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json")
        self.files = [file.relative_to(source) for name in names for file in sorted(source.rglob(name))]

    def try_one(self, random: Random) -> str | None:
        _copy_with_one_mutated(random, self.source, self.folder, self.files)
        try:
            tokenizer = load_checkpoint(self.folder, lazy_weights=True).tokenizer
            attrs = (("length", 16), ("pad", tokenizer.pad_token_id))
            check_encodings("tokenizer", tokenizer, tokenizer_text("tokenizer", tokenizer), [Op("tokenize", (), attrs)])
        except DiffcError as error:
            return str(error)
        return None


class Requests:
    """Values of a request are changed: it is refused, or returns finite images of the requested number."""

    def __init__(self, bundle: Path) -> None:
        self.sampler = load(bundle)

    def try_one(self, random: Random) -> str | None:
        request = {name: self._value(random, value) for name, value in self._natural(random).items()}
        if random.random() < 0.1:
            request[random.choice(("image", "steps", "x", "mask_image"))] = random.choice(ODD_VALUES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images = self.sampler(**request)
        except DiffcError as error:
            return str(error)
        texts = [request.get(name) for name in ("prompt", "negative_prompt")]
        count = max(len(text) if isinstance(text, list) else 1 for text in texts) * request.get("num_images", 1)
        if len(images) != count or (isinstance(images, np.ndarray) and not np.isfinite(images).all()):
            raise AssertionError(f"{len(images)} images, or such that are not finite, for {str(request)[:500]}")
        return None

    def _natural(self, random: Random) -> dict[str, Any]:
        values = {
            "prompt": random.choice(("", "a red circle", ["a", "b"], "A  ü&amp; " * 50)),
            "negative_prompt": random.choice((None, "", "blue", ["a", "b"])),
            "guidance_scale": random.choice((None, 0.0, 1.0, 7.5, 1e9, -3)),
            "seed": random.choice((None, 0, 2**64 - 1, [1, 2])),
            "num_images": random.choice((1, 2, 3)),
            "latents": random.choice((None, np.zeros((1, 3, 4, 4), np.float32), np.full((3, 4, 4), np.nan))),
            "size": random.choice((None, (4, 4), [4, 4])),
            "output": random.choice(("np", "pil")),
        }
        return {name: value for name, value in values.items() if random.random() < 0.7}

    def _value(self, random: Random, value: Any) -> Any:
        return random.choice(ODD_VALUES) if random.random() < 0.15 else value


def _copy_with_one_mutated(random: Random, source: Path, folder: Path, files: Sequence[Path]) -> None:
    """Copy a folder anew, with one of its files mutated."""
    name = random.choice(files)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / name).write_bytes(_mutated(random, name.name, (source / name).read_bytes()))


def _mutated(random: Random, name: str, content: bytes) -> bytes:
    """Mutate a file as what it is, or its bytes."""
    if random.random() < 0.3:
        return mutated_bytes(random, content)
    if name.endswith(".safetensors"):
        return mutated_safetensors(random, content)
    if name.endswith(".txt"):
        return mutated_text(random, content.decode("utf-8")).encode("utf-8", "surrogatepass")
    if not name.endswith(".json"):
        return mutated_bytes(random, content)
    value = json.loads(content)
    programs = value.get("programs") if name == "manifest.json" and isinstance(value, dict) else None
    if programs and random.random() < 0.5:
        entry = programs[random.choice(sorted(programs))]
        entry["text"] = mutated_text(random, entry["text"])
    else:
        value = mutated_json(random, value)
    return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
