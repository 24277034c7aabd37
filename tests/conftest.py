"""Build the trained examples once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffc.compiler import build

ROOT = Path(__file__).parent.parent
UNET = ROOT / "examples" / "models" / "shapes-unet.safetensors"
DIT = ROOT / "examples" / "models" / "shapes-dit"

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the UNet for two step counts; tests must leave it as it is."""
    return build(UNET, "ort-fp32", tmp_path_factory.mktemp("bundle") / "shapes.diffc", steps=(4, 2))
