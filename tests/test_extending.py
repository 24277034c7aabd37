"""A package from elsewhere adds a back end, a precision, an engine and an operator, and nothing of diffc is changed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from diffc.compiler import capture, write_bundle
from diffc.compiler.errors import BackendError
from diffc.runtime import BundleError, DiffcWarning, load
from tests.command_line import succeeded
from tests.toys.package import install

ROOT = Path(__file__).parent.parent
OFFSET = 100.0
"""Added by the toy library alone."""

Installed = Callable[..., Path]

with_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed: apt install gcc")


def forget() -> None:
    """Unload the package but for its torch operators, which a process defines once."""
    for name in [name for name in sys.modules if re.fullmatch(r"toy_diffc(\.(?!definitions).*)?", name)]:
        del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """Install the toy package for one test; the function returns the folder on the path."""
    with pytest.MonkeyPatch.context() as patch:

        def to_path(offset: float | None = None) -> Path:
            folder = install(tmp_path / "site", offset=offset)
            patch.syspath_prepend(folder)
            return folder

        yield to_path
    forget()


class Net(torch.nn.Module):
    """Have a layer, and perhaps an operator of the toy package behind it."""

    def __init__(self, operator: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.operator = torch.nn.Linear(64, 64), operator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(x)
        return getattr(torch.ops.toy, self.operator)(hidden, 3.0) if self.operator else hidden


def built(folder: Path, target: str, operator: str = "") -> tuple[Path, np.ndarray]:
    """Build a bundle of the net, and return it with the expected image of seed 0."""
    if operator:
        import_module("toy_diffc.definitions")
    net = Net(operator).requires_grad_(False)
    program = capture(lambda: net(torch.randn(1, 1, 4, 64)), {"net": net})
    noise = torch.randn(1, 1, 4, 64, generator=torch.Generator("cpu").manual_seed(0))
    expected = net.layer(noise) * (3.0 if operator else 1.0)
    return write_bundle([program], folder / "x.diffc", target), expected.movedim(1, -1).numpy()


def image(bundle: Path) -> np.ndarray:
    return np.asarray(load(bundle)(seed=0, output="np"))


def test_a_back_end_a_precision_and_an_engine_from_elsewhere(installed: Installed, tmp_path: Path) -> None:
    installed()
    bundle, expected = built(tmp_path, "toy-stored16")
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {entry["kind"] for entry in manifest["graphs"].values()} == {"toy"}
    np.testing.assert_allclose(image(bundle), expected, atol=2e-3)
    run = succeeded("run", bundle, "", "-o", tmp_path / "x.png")
    assert run["engines"] == ["Toy"] and (tmp_path / "x.png").is_file()
    assert "toy-stored16" in succeeded("doctor", bundle)["targets"]


@pytest.mark.slow
def test_they_build_a_checkpoint_on_the_command_line(installed: Installed, tmp_path: Path) -> None:
    from tests.test_quantized_bundles import PIPELINES, Source

    installed()
    source = Source(PIPELINES["unet"], tmp_path)
    succeeded("build", source.path, "--target", "toy-stored16", *source.options, "-o", tmp_path / "x.diffc")
    assert succeeded("run", tmp_path / "x.diffc", "", "-o", tmp_path / "x.png")["engines"] == ["Toy"]


def test_without_the_package_its_bundle_names_the_known_engines(installed: Installed, tmp_path: Path) -> None:
    folder = installed()
    bundle, _ = built(tmp_path, "toy-stored16")
    sys.path.remove(str(folder))
    forget()
    with pytest.raises(BundleError, match="unknown engine 'toy'") as raised:
        image(bundle)
    assert "known: onnx, ort, ov, torchtrt, trt" in str(raised.value.fix)


@pytest.mark.parametrize("target", ["ort-fp32", "onnx-fp32", "ov-fp32"])
def test_an_operator_with_a_function_runs_in_every_engine(installed: Installed, tmp_path: Path, target: str) -> None:
    if target.startswith("ov"):
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'diffc[openvino]'")
    installed()
    bundle, expected = built(tmp_path, target, "scale")
    np.testing.assert_allclose(image(bundle), expected, atol=1e-4)
    assert all("operators" not in entry for entry in load_manifest(bundle)["graphs"].values())


def test_an_operator_that_nothing_computes_is_refused_by_name(installed: Installed, tmp_path: Path) -> None:
    installed()
    with pytest.raises(BackendError, match=r"nothing computes toy\.Bare for this target"):
        built(tmp_path, "ort-fp32", "bare")


def load_manifest(bundle: Path) -> dict[str, dict[str, dict[str, object]]]:
    manifest: dict[str, dict[str, dict[str, object]]] = json.loads((bundle / "manifest.json").read_text())
    return manifest


@with_compiler
def test_a_library_computes_the_operator(installed: Installed, tmp_path: Path) -> None:
    folder = installed(OFFSET)
    bundle, expected = built(tmp_path, "ort-fp32", "bare")
    np.testing.assert_allclose(image(bundle), expected + OFFSET, atol=1e-4)
    (entry,) = (entry["operators"]["toy"] for entry in load_manifest(bundle)["graphs"].values() if "operators" in entry)
    assert {key: entry[key] for key in ("package", "version", "operators", "library", "has_functions")} == {
        "package": "toy-diffc",
        "version": "1.5",
        "operators": ["Bare"],
        "library": "libtoy.so",
        "has_functions": False,
    }
    assert "libtoy.so of toy-diffc 1.5" in json.dumps(succeeded("doctor", bundle))
    sys.path.remove(str(folder))
    forget()
    with pytest.raises(BundleError, match=r"toy\.Bare: toy-diffc is not installed") as raised:
        image(bundle)
    assert raised.value.fix == "pip install 'toy-diffc==1.5'"


@with_compiler
def test_without_its_library_an_operator_runs_as_its_function(installed: Installed, tmp_path: Path) -> None:
    folder = installed(OFFSET)
    bundle, expected = built(tmp_path, "ort-fp32", "scale")
    np.testing.assert_allclose(image(bundle), expected + OFFSET, atol=1e-4)
    metadata = folder / "toy_diffc-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.5", "Version: 1.6"))
    forget()
    with pytest.warns(DiffcWarning, match="toy-diffc is 1.6, and the bundle was built with 1.5\n  fix: pip install"):
        np.testing.assert_allclose(image(bundle), expected, atol=1e-4)


def test_the_guide_names_files_that_exist_at_most_three_for_each_addition() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"(?m)^## (.+)\n((?:(?!## ).*\n?)*)", text))
    additions = ("technique", "feature cache", "pass", "precision", "number format", "back end", "engine", "operator")
    for addition in (*additions, "sampler"):
        (body,) = (body for title, body in sections.items() if title.lower().endswith(addition))
        files = re.findall(r"(?m)^\d\. `([^`]+)`", body)
        assert 1 <= len(files) <= 3, addition
        for file in (ROOT / file for file in files if not file.startswith("YOUR_PACKAGE/")):
            assert file.parent.is_dir() if "NAME" in file.name else file.exists(), f"{addition}: {file}"
