"""Checkpoints to load, to compare and to damage: what the tests of loading share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import LoadError

NEURAL = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

Tensors = dict[str, torch.Tensor]


def refusal(source: Path, **options: Any) -> str:
    """Load a checkpoint that must be refused in three lines, without a traceback in them; return the message."""
    with pytest.raises(LoadError) as caught:
        load(source, **options)
    _, where, fix = str(caught.value).splitlines()
    assert where.startswith("  at:  ") and fix.startswith("  fix: ")
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def same_weights(left: Any, right: Any) -> bool:
    """Compare all weights of two pipelines bit for bit."""
    pairs = [(getattr(left, name).state_dict(), getattr(right, name).state_dict()) for name in NEURAL]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def weights_of(folder: Path, name: str) -> Path:
    """Return the path of a component's weight file."""
    return folder / name / f"{NEURAL[name]}.safetensors"


def rewrite(path: Path, change: Callable[[Tensors], object], metadata: dict[str, str] | None = None) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata or {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
