"""Give bundles engines on the machine that runs them: TensorRT for RTX builds here, a stand-in for the classic."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffc.compiler.backends.tensorrt.build import Built, EngineRequest
from diffc.compiler.bundle import finalize as module
from diffc.compiler.bundle.atomic_folder import file_entry
from diffc.compiler.bundle.finalize import finalize
from diffc.compiler.errors import BackendError, BuildError
from diffc.runtime import BundleError, load
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines.cuda import Gpu, find_gpu
from diffc.runtime.engines.tensorrt_library import CLASSIC, INSTALL, RTX, Library, installed
from tests.command_line import diffc, succeeded
from tests.format.manifest_schema import schema_errors
from tests.runtime.conftest import tiny_program, write_tiny
from tests.tolerances import PICTURE_OF_NUMPY

GRAPHS = ["decoder", "text_encoder", "unet"]
PRECISION = json.dumps({"dtype": "float16", "limit": 32752.0, "wide": [], "prompts": []})
needs_rtx = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Write a bundle for TensorRT that has no engines yet."""
    return write_tiny(tmp_path / "tiny.diffc", place="{}.onnx", target="trt-fp16@sm86")


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this machine a GPU and the classic TensorRT."""
    library = Library(None, CLASSIC, "10.13.2.6")
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("NVIDIA GeForce RTX 4090", "sm89", "13.0"))
    monkeypatch.setattr(module, "installed", lambda: {CLASSIC: "10.13.2.6", RTX: "1.7"})
    monkeypatch.setattr(module, "find_library", lambda kind: {CLASSIC: library}[kind])


def stand_in(root: Path, wanted: Sequence[EngineRequest], archs: Sequence[str], *_: Any, kind: str) -> dict[str, Built]:
    """Write what stands for engines, and add a line to the timing cache."""
    assert kind == CLASSIC and all((root / each.file).exists() for each in wanted)
    graphs = [name for each in wanted for name in each.graphs]
    with (root / "engines/timing.cache").open("ab") as cache:
        cache.write(b"measured\n")
    strip = any(each.strip for each in wanted)
    for name in graphs:
        (root / f"engines/{name}.engine").write_bytes(f"{name} {archs} {'' if strip else 'weights'}".encode())
    made = {name: f"engines/{name}.engine" for name in graphs}
    about = ("tensorrt 10.13.2.6", tuple(archs), 1, 1.0, 1, 1, {}, 1, strip)
    return {name: Built(file, *about) for name, file in made.items()}


def without_a_driver() -> None:
    """Skip a test where there is a GPU."""
    try:
        find_gpu()
    except BundleError:
        return
    pytest.skip("there is a GPU")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_output_is_checked_before_the_bundle_is_opened(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").write_text("damaged")
    (tmp_path / "file").touch()
    for output, message in ((bundle, "exists"), (tmp_path / "file" / "x.diffc", "cannot be written")):
        with pytest.raises(BuildError, match=message):
            finalize(bundle, output)


@needs_rtx
def test_the_engines_of_a_named_gpu_are_built_here(bundle: Path, tmp_path: Path) -> None:
    before, other = contents(bundle), tmp_path / "other.diffc"
    found = succeeded("finalize", bundle, "--arch", "sm86,sm89", "-o", other)
    assert found["bundle"] == str(other) and sorted(found["engines"]) == GRAPHS
    assert contents(bundle) == before
    manifest = open_bundle(other).manifest
    for name in GRAPHS:
        engine = manifest.engines[name]
        assert (engine.builder, engine.archs) == (f"{RTX} {installed()[RTX]}", ("sm86", "sm89"))
        assert (other / engine.file).read_bytes()[:4] == b"vtrt"
    after = contents(other)
    assert [name for name, content in before.items() if after[name] != content] == ["manifest.json"]


@needs_rtx
def test_engines_take_the_place_of_others(bundle: Path) -> None:
    finalize(bundle, archs=["sm86"])
    before = (bundle / "engines/unet.engine").read_bytes()
    assert finalize(bundle, archs=["sm89", "sm120"]) == bundle
    assert [engine.archs for engine in open_bundle(bundle).manifest.engines.values()] == [("sm89", "sm120")] * 3
    assert (bundle / "engines/unet.engine").read_bytes() != before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@needs_rtx
@pytest.mark.gpu
def test_engines_draw_what_onnx_runtime_draws(bundle: Path, tmp_path: Path) -> None:
    try:
        find_gpu()
    except BundleError as error:
        pytest.skip(error.what)
    on_cpu = write_tiny(tmp_path / "cpu.diffc", target="ort-fp32")
    sampler = load(finalize(bundle))
    got, wanted = (each("red circle", seed=0, output="np") for each in (sampler, load(on_cpu)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=PICTURE_OF_NUMPY)
    assert any("tensorrt" in engine for engine in sampler.engines)


def test_finalizing_needs_no_framework() -> None:
    modules = "diffc.compiler.bundle.finalize, diffc.compiler.backends.tensorrt.build_process"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} & {"torch", "onnx", "diffusers", "transformers"} == set()


# The classic TensorRT


def test_the_classic_library_builds_for_the_gpu_that_is_there(bundle: Path, ada: None) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert finalize(bundle, build=stand_in) == bundle
    manifest = open_bundle(bundle).manifest
    assert {name: (e.builder, e.archs) for name, e in manifest.engines.items()} == {
        name: ("tensorrt 10.13.2.6", ("sm89",)) for name in ("text_encoder", "unet", "decoder")
    }
    assert "engines/timing.cache" in manifest.files
    assert (bundle / "notes.txt").read_text() == "mine"


def test_what_was_measured_is_taken_over_and_the_old_bundle_keeps_its_own(
    bundle: Path, tmp_path: Path, ada: None
) -> None:
    finalize(bundle, build=stand_in)
    before = contents(bundle)
    other = finalize(bundle, tmp_path / "other.diffc", build=stand_in)
    assert (other / "engines/timing.cache").read_bytes() == b"measured\nmeasured\n"
    assert contents(bundle) == before
    open_bundle(other)


def test_arithmetic_between_components_and_float64_get_no_engine(tmp_path: Path, ada: None) -> None:
    program = (
        tiny_program(1).replace("(image: float32", "(image: float64").replace("\nimage: float32", "\nimage: float64")
    )
    bundle = write_tiny(tmp_path / "x.diffc", target="trt-fp16", programs={"draw": program})
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["text_encoder"]["component"] = ""
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    finalize(bundle, build=stand_in)
    assert list(open_bundle(bundle).manifest.engines) == ["unet"]


def test_a_tar_becomes_a_folder(bundle: Path, tmp_path: Path, ada: None) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(bundle, "tiny.diffc")
    with pytest.raises(BuildError, match="is a tar file"):
        finalize(tmp_path / "x.tar", build=stand_in)
    made = finalize(tmp_path / "x.tar", tmp_path / "y.diffc", build=stand_in)
    assert sorted(open_bundle(made).manifest.engines) == GRAPHS


def test_a_finalized_bundle_is_still_drawn_without_a_gpu(bundle: Path, tmp_path: Path, ada: None) -> None:
    finalize(bundle, build=stand_in)
    result = diffc("run", bundle, "red circle", "--seed", "0", "-o", tmp_path / "x.png")
    assert result.exit_code == 0
    assert f"warning: {bundle} runs in ONNX Runtime, on the CPU: " in result.stderr
    assert result.stderr.splitlines()[-1].endswith(" s, ONNX Runtime")


# Engines without weights


def test_engines_without_weights_are_asked_for_and_said_to_be_so(bundle: Path, ada: None) -> None:
    finalize(bundle, strip=True, build=stand_in)
    assert schema_errors(bundle) == []
    manifest = open_bundle(bundle).manifest
    assert manifest.raw["schema"] == 2, "which an older diffc refuses"
    assert {name: engine.stripped for name, engine in manifest.engines.items()} == dict.fromkeys(GRAPHS, True)
    assert not (bundle / "engines/unet.engine").read_bytes().endswith(b"weights")
    assert json.loads((bundle / "engines.json").read_text())["unet"]["stripped"]
    assert "in the graph alone" in (bundle / "report.html").read_text()


def test_a_bundle_gets_whole_engines_again(bundle: Path, ada: None) -> None:
    finalize(bundle, build=stand_in)
    whole = contents(bundle)
    finalize(bundle, strip=True, build=stand_in)
    finalize(bundle, build=stand_in)
    again = contents(bundle)
    assert {name for name in whole if again[name] != whole[name]} == {"engines/timing.cache", "manifest.json"}
    manifest = json.loads(again["manifest.json"])
    assert manifest["schema"] == 1 and not any("stripped" in engine for engine in manifest["engines"].values())


def test_commands_say_which_engines_hold_no_weights(bundle: Path, ada: None) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest |= {"stages": {}, "multiply_adds": {}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    finalize(bundle, strip=True, build=stand_in)
    result = diffc("inspect", bundle)
    assert "unet: tensorrt 10.13.2.6, sm89, without weights" in result.stderr.splitlines()
    assert succeeded("inspect", bundle)["engines"]["unet"]["stripped"] is True


def test_the_command_asks_for_engines_without_weights(bundle: Path, ada: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.finalize, "__kwdefaults__", {**module.finalize.__kwdefaults__, "build": stand_in})
    result = diffc("finalize", bundle, "--strip")
    assert result.exit_code == 0, result.output
    assert "unet: tensorrt 10.13.2.6, sm89, without weights" in result.stderr.splitlines()


def test_engines_without_weights_need_a_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Gpu:
        raise BundleError("no NVIDIA driver is installed", where="libcuda.so.1", fix="install the driver of the GPU")

    monkeypatch.setattr(module, "find_gpu", nowhere)
    monkeypatch.setattr(module, "find_library", lambda kind: Library(None, kind, "1.0"))
    before = contents(bundle.parent)
    for archs in ([], ["sm89"]):
        with pytest.raises(BuildError) as raised:
            finalize(bundle, archs=archs, strip=True, build=broken)
        assert str(raised.value).splitlines() == [
            "engines without weights are built where a GPU is: no NVIDIA driver is installed",
            "  at:  libcuda.so.1",
            "  fix: finalize the bundle on the machine that runs it, or leave out --strip",
        ]
    assert contents(bundle.parent) == before


@needs_rtx
def test_engines_without_weights_are_for_the_gpu_that_is_here(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("NVIDIA GeForce RTX 4090", "sm89", "13.0"))
    with pytest.raises(BuildError, match="tried on this machine's GPU, which is sm89") as raised:
        finalize(bundle, archs=["sm86", "sm120"], strip=True, build=broken)
    assert (raised.value.where, raised.value.fix) == ("--strip --arch sm86,sm120", "name sm89 too, or leave out --arch")


@needs_rtx
def test_the_real_library_builds_none_without_a_driver(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_driver()
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("NVIDIA GeForce RTX 4090", "sm89", "13.0"))
    monkeypatch.setattr(module, "installed", lambda: {RTX: installed()[RTX]})
    finalize(bundle)
    before = contents(bundle.parent)
    with pytest.raises(BackendError) as raised:
        finalize(bundle, strip=True)
    assert contents(bundle.parent) == before
    what, where, fix = str(raised.value).splitlines()
    assert what.startswith("no engine for ") and "CUDA_SUCCESS" in what and where.startswith("  at:  ")
    assert fix == "  fix: finalize without --strip, and report this with the model's configuration"


# Reports


def test_the_report_is_of_the_new_engines(bundle: Path, ada: None) -> None:
    before = contents(bundle)
    manifest, old = json.loads(before["manifest.json"]), {"unet": {"builder": "another"}}
    for name, content in (("engines.json", json.dumps(old)), ("report.html", "old"), ("precision.json", PRECISION)):
        (bundle / name).write_text(content)
        manifest["files"][name] = file_entry(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    other = finalize(bundle, bundle.with_name("other.diffc"), build=stand_in)
    assert (bundle / "report.html").read_text() == "old", "a file with two names is not written to"
    report = (other / "report.html").read_text()
    assert "By tensorrt 10.13.2.6." in report and "What computes in float16" in report
    assert sorted(json.loads((other / "engines.json").read_text())) == GRAPHS
    open_bundle(other)


def test_a_report_of_another_form_is_left_out(bundle: Path, ada: None) -> None:
    (bundle / "precision.json").write_text("[]")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["precision.json"] = file_entry(bundle / "precision.json")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    finalize(bundle, build=stand_in)
    assert "By tensorrt 10.13.2.6." in (bundle / "report.html").read_text()
    assert (bundle / "precision.json").read_text() == "[]"


# What fails


def broken(root: Path, *_: Any, **__: Any) -> dict[str, Built]:
    (root / "engines/unet.engine").write_bytes(b"half")
    raise BackendError("no engine for unet: the builder crashed")


def test_a_failed_finalize_leaves_the_bundle_as_it_was(bundle: Path, ada: None) -> None:
    finalize(bundle, build=stand_in)
    before = contents(bundle)
    with pytest.raises(BackendError, match="no engine for unet"):
        finalize(bundle, build=broken)
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_of_two_at_once_the_last_to_be_done_stays(bundle: Path, ada: None) -> None:
    def slow(*asked: Any, kind: str) -> dict[str, Built]:
        finalize(bundle, strip=True, build=stand_in)
        return stand_in(*asked, kind=kind)

    finalize(bundle, build=slow)
    assert not any(engine.stripped for engine in open_bundle(bundle).manifest.engines.values())
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_too_little_disk_is_said_before_anything_is_built(
    bundle: Path, ada: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(BuildError, match="of disk, and there are 0.00 GB"):
        finalize(bundle, build=broken)


def test_a_machine_without_a_gpu_is_told_to_name_one(bundle: Path) -> None:
    without_a_driver()
    if RTX not in installed():
        pytest.skip("TensorRT for RTX is not installed")
    with pytest.raises(BuildError, match="no NVIDIA driver is installed|shows no GPU") as raised:
        finalize(bundle)
    assert "--arch sm89" in str(raised.value.fix)


@needs_rtx
def test_a_gpu_that_the_library_does_not_know_is_refused(bundle: Path) -> None:
    with pytest.raises(BuildError, match="TensorRT for RTX does not build for sm90") as raised:
        finalize(bundle, archs=["sm89", "sm90"])
    assert "sm120" in str(raised.value.fix) and "pip install tensorrt" in str(raised.value.fix)


def test_a_bundle_for_another_engine_is_refused(tmp_path: Path) -> None:
    made = write_tiny(tmp_path / "x.diffc", target="ort-fp32")
    result = diffc("finalize", made, "--arch", "sm89")
    assert result.exit_code == 1
    assert "was built for ort-fp32, which has no engines\n  fix: build it for a target trt-…" in result.output
