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


TINY = ("--steps", "2", "--size", "16x16")
"""The options with which the tiny model is built."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the tiny Stable Diffusion pipeline of the zoo; tests must leave it as it is."""
    from tests.zoo import ZOO  # which few tests need, and diffusers with it

    folder = tmp_path_factory.mktemp("tiny") / "model"
    ZOO["StableDiffusionPipeline"]().pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_build(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Compile the tiny model, and return the bundle, which tests must leave as it is, and the lines of progress."""
    lines = list[str]()
    output = tmp_path_factory.mktemp("tiny") / "tiny.diffc"
    return build(tiny_model, "ort-fp32", output, steps=(2,), size=(16, 16), progress=lines.append), lines


@pytest.fixture(scope="session")
def tiny_bundle(tiny_build: tuple[Path, list[str]]) -> Path:
    """Return the bundle of the tiny model; tests must leave it as it is."""
    return tiny_build[0]
