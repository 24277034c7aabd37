"""Build the trained examples once for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffc.compiler import build

ROOT = Path(__file__).parent.parent
UNET = ROOT / "examples" / "models" / "shapes-unet.safetensors"
DIT = ROOT / "examples" / "models" / "shapes-dit"

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the builds of a session share a cache, those of all its processes, and none with the user."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFC_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the UNet for two step counts; tests must leave it as it is."""
    return build(UNET, "ort-fp32", tmp_path_factory.mktemp("bundle") / "shapes.diffc", steps=(4, 2))
