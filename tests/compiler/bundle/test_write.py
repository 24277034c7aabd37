"""A bundle's manifest names every file with its digest, and opens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffc.compiler.analysis.work import Work
from diffc.compiler.bundle.tokenizer_file import tokenizer_text
from diffc.compiler.bundle.write import Contents, add_file, json_of, write_contents
from diffc.compiler.ir.parse import parse
from diffc.runtime.bundle.open import open_bundle
from tests.zoo.components import clip_tokenizer

TEXT = """
program main() {
    table rows: float32[1, 2]
    n: float32[1, 2] = noise()
    x: float32[1, 2] = linear(n, rows; 1, 1)
    return x
}
"""


def contents() -> Contents:
    """Describe a bundle of one program that adds a table to noise."""
    program = parse(TEXT)
    tables = tuple(replace(table, data=np.array([[1.0, 2.0]], np.float32)) for table in program.tables)
    programs = [replace(program, tables=tables)]
    return Contents("ort-fp32", programs, {"tokenizer": "{}"}, {}, {}, {}, Work({}, {}), {}, {"cache": {"chosen": 1}})


def listed(folder: Path) -> dict[str, Any]:
    """Read the digests that the manifest lists."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: file["sha256"] for name, file in files.items()}


def digests(folder: Path) -> dict[str, str]:
    """Compute the digest of every file but the manifest."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files, key=str)
    }


def test_every_file_is_listed_with_its_digest(tmp_path: Path) -> None:
    write_contents(tmp_path, contents())
    assert list(listed(tmp_path)) == ["cache.json", "tables.safetensors", "tokenizer/tokenizer.json"]
    assert listed(tmp_path) == digests(tmp_path)
    add_file(tmp_path, "quantization.json", json_of({"psnr": 1.0}))
    assert list(listed(tmp_path)).index("quantization.json") == 1 and listed(tmp_path) == digests(tmp_path)


def test_what_was_written_opens(tmp_path: Path) -> None:
    text = tokenizer_text("tokenizer", clip_tokenizer())
    write_contents(tmp_path, Contents(**vars(contents()) | {"tokenizers": {"tokenizer": text}}))
    bundle = open_bundle(tmp_path)
    assert bundle.tables["rows"].tolist() == [[1.0, 2.0]] and list(bundle.programs) == ["main"]
