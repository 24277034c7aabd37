"""Install the wheel alone, as a user of a bundle does, and look at what came with it. Needs the package index."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffc.runtime import load
from tests.conftest import PROMPT

ROOT = Path(__file__).parent.parent
SOURCES = ("compiler", "passes", "runtime", "plugins")
MEGABYTES_ALLOWED = 250

pytestmark = pytest.mark.index


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed; its errors become the test's."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree, so that no earlier build's leftovers get in."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", ".", cwd=folder)
    return next((folder / "dist").glob("diffc-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and what it requires into an empty environment; give that environment's interpreter."""
    folder = tmp_path_factory.mktemp("slim")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    interpreter = folder / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet")
    run(*pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    return interpreter


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [p for name in SOURCES for p in (ROOT / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    expected = {f"diffc/{path.relative_to(ROOT).as_posix()}" for path in files if "cpp" not in path.parts}
    assert expected - held == set()
    assert {name for name in held if name.startswith("diffc/")} - expected == set()


def test_the_slim_environment_has_no_framework(python: Path) -> None:
    names = run(
        python, "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))", cwd=python.parent
    )
    installed = {name.lower() for name in names.split()}
    assert "onnxruntime" in installed
    assert installed & {"torch", "onnx", "diffusers", "transformers", "scipy", "onnxscript"} == set()


def test_the_slim_environment_is_small(python: Path, record_property: pytest.RecordProperty) -> None:
    size = sum(p.lstat().st_size for p in python.parent.parent.rglob("*") if not p.is_dir()) / 1e6
    record_property("slim_environment_megabytes", round(size, 1))
    assert size <= MEGABYTES_ALLOWED


def test_the_runtime_imports_there(python: Path) -> None:
    where = run(python, "-c", "import diffc.runtime; print(diffc.runtime.__file__)", cwd=python.parent)
    assert Path(where.strip()).is_relative_to(python.parent.parent)


def test_a_bundle_draws_there(python: Path, bundle: Path, tmp_path: Path) -> None:
    command = (python.with_name("diffc"), "run", bundle, PROMPT, "--seed", "5", "-o", tmp_path / "slim.png", "--json")
    found = json.loads(run(*command, cwd=tmp_path))
    assert found["image"] == str(tmp_path / "slim.png")
    here = load(bundle)(PROMPT, seed=5)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "slim.png")), np.asarray(here))


def test_the_process_that_draws_holds_no_framework(python: Path, bundle: Path, tmp_path: Path) -> None:
    code = "import sys; from diffc.runtime import load; load(sys.argv[1])('a circle', seed=0); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(python, "-c", code, bundle, cwd=tmp_path).split()}
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "onnx", "diffusers", "transformers"} == set()


def test_the_compiler_says_how_to_install_it(python: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    command = [python.with_name("diffc"), "build", tmp_path / "x.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "diffc[compiler]" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(run(python.with_name("diffc"), "doctor", "--json", cwd=tmp_path))["targets"] == []
