"""Write cases of the corpus as plain files: a bundle, its requests, and what they must give."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import torch
from PIL import Image
from safetensors.numpy import save

Array = np.ndarray
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Step:
    """Expect a report of a step: its number of how many, the images of its batch, their latents and their preview."""

    step: int
    steps: int
    images: Sequence[int]
    latents: Array
    preview: Array | None = None


@dataclass(frozen=True)
class Request:
    """Expect ``result`` [N, …] of a request, or that it is ``refused``: as a request, a bundle, or as cancelled.

    A result is compared within a tolerance, or to the last bit where it is ``exact``.
    """

    name: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    result: Array | None = None
    refused: str = ""
    steps: Sequence[Step] = ()
    cancel_after: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Case:
    """Hold one bundle and its requests. ``graphs`` are ONNX models as text or bytes; ``facts`` add to their entries."""

    name: str
    programs: Mapping[str, str]
    requests: Sequence[Request]
    graphs: Mapping[str, str | bytes] = field(default_factory=dict)
    tables: Mapping[str, Array] | bytes = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


def model(text: str) -> bytes:
    """Serialize an ONNX model of one graph, written as ``onnx.parser`` reads it."""
    parsed = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    onnx.checker.check_model(parsed)
    return parsed.SerializeToString()


def write_files(folder: Path, files: Mapping[str, bytes], **manifest: Any) -> None:
    """Write files and a manifest that lists them."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    listed = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in sorted(files.items())}
    entries = {"schema": 3, "diffc": "0.1.0", "target": "onnx-fp32", **manifest, "files": listed, "provenance": {}}
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def write_bundle(case: Case, folder: Path) -> None:
    """Write the bundle of a case."""
    models = {name: text if isinstance(text, bytes) else model(text) for name, text in case.graphs.items()}
    files = {f"graphs/{name}.onnx": content for name, content in models.items()}
    files |= {f"tokenizer/{name}.json": text.encode() for name, text in case.tokenizers.items()}
    if case.tables:
        files["tables.safetensors"] = case.tables if isinstance(case.tables, bytes) else save(dict(case.tables))
    graphs = {
        name: {"file": f"graphs/{name}.onnx", "kind": "onnx", "component": name, "stage": ""}
        | dict(case.facts.get(name, {}))
        for name in models
    }
    tokenizers = {name: f"tokenizer/{name}.json" for name in case.tokenizers}
    programs = {name: {"text": text} for name, text in case.programs.items()}
    entries = {"programs": programs, "graphs": graphs, "engines": {}, "tokenizers": tokenizers}
    write_files(folder, files | dict(case.files), **(entries | dict(case.manifest)))


def write_case(case: Case, root: Path) -> None:
    """Write ``root/NAME/``: the bundle ``bundle/``, ``requests.json``, and arrays and images beside them."""
    folder = root / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_bundle(case, folder / "bundle")
    requests = {request.name: _request(request, folder) for request in case.requests}
    assert len(requests) == len(case.requests), f"{case.name}: two requests of one name"
    (folder / "requests.json").write_text(json.dumps(requests, indent=1) + "\n", encoding="utf-8")


def _request(request: Request, folder: Path) -> dict[str, Any]:
    stem = re.sub("[^a-z0-9]+", "-", request.name)
    inputs = {name: _input(value, folder, f"{stem}.{name}") for name, value in request.inputs.items()}
    entry: dict[str, Any] = {"inputs": inputs}
    if request.steps:
        entry["steps"] = [_step(step, folder, f"{stem}.{step.step}") for step in request.steps]
    if request.cancel_after:
        entry["cancel_after"] = request.cancel_after
    if request.refused:
        return entry | {"refused": request.refused}
    assert request.result is not None, request.name
    entry |= {"exact": True} if request.exact else {}
    return entry | {"result": _array(np.asarray(request.result, np.float32), folder, stem)}


def _step(step: Step, folder: Path, stem: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"step": step.step, "steps": step.steps, "images": list(step.images)}
    entry["latents"] = _array(np.asarray(step.latents, np.float32), folder, f"{stem}.latents")
    if step.preview is not None:
        entry["preview"] = _array(np.asarray(step.preview, np.float32), folder, f"{stem}.preview")
    return entry


def _input(value: Any, folder: Path, stem: str) -> Any:
    if isinstance(value, np.ndarray):
        return {"npy": _array(value, folder, stem)}
    if isinstance(value, Image.Image):
        value.save(folder / f"{stem}.png")
        return {"png": f"{stem}.png"}
    if isinstance(value, list) and value and isinstance(value[0], Image.Image):
        return [_input(image, folder, f"{stem}.{at}") for at, image in enumerate(value)]
    return value


def _array(array: Array, folder: Path, stem: str) -> str:
    np.save(folder / f"{stem}.npy", array, allow_pickle=False)
    return f"{stem}.npy"


def noise(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    """Draw arrays of normal numbers from one generator of PyTorch."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


def last(channels_first: Array) -> Array:
    """Move the channels of images or videos to the end."""
    return np.moveaxis(channels_first, -3, -1)
