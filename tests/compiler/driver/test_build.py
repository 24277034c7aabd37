"""Phases are a list made from the options; each is verified, timed, shown, and named in errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from diffc.compiler import build, write_bundle
from diffc.compiler.driver.build import default_output, dump_below, phases_to_bundle, phases_to_programs
from diffc.compiler.driver.options import read_options
from diffc.compiler.driver.state import Phase, State, run_phases
from diffc.compiler.errors import BuildError
from diffc.compiler.ir.parse import parse
from diffc.compiler.recipe import name_of

PROGRAM = parse("program main() { n: float32[2] = noise() x: float32[2] = aten.mul.Tensor(n, 2.0) return x }")
NORMALIZED = parse("program main() { n: float32[2] = noise() x0: float32[2] = linear(n; 2.0) return x0 }")


def names(phases: Sequence[Phase]) -> list[str]:
    """List the names of phases."""
    return [name_of(phase) for phase in phases]


@pytest.mark.parametrize(
    ("target", "cache", "present"),
    [
        ("ort-fp32", None, ["normalize", "stage", "lower", "write", "check"]),
        ("ort-bf16", "none", ["normalize", "stage", "lower", "write", "check"]),
        ("ort-fp32", "deepcache", ["normalize", "stage", "cache", "lower", "write", "check"]),
        ("ort-w8a8", None, ["normalize", "stage", "quantize", "lower", "write", "measure", "check"]),
        ("trt-fp16", None, ["normalize", "stage", "legalize", "lower", "write", "check"]),
        (
            "trt-w8a8",
            "deepcache",
            ["normalize", "stage", "cache", "quantize", "legalize", "lower", "write", "measure", "check"],
        ),
    ],
)
def test_a_phase_that_no_option_requests_is_absent(target: str, cache: str | None, present: list[str]) -> None:
    options = read_options(target, cache=cache)
    assert names([*phases_to_bundle(options)]) == present
    assert names([*phases_to_programs(options)]) == ["load", "trace", "capture"]


def test_a_cache_that_compares_has_the_program_of_twice_as_many_steps() -> None:
    phases = phases_to_programs(read_options("ort-fp32", cache="auto"))
    assert names([*phases]) == ["load", "trace", "trace_finer", "capture"]


def test_a_dump_holds_the_text_that_every_phase_and_pass_returned(tmp_path: Path) -> None:
    options, texts = read_options("ort-fp32"), list[tuple[str, str]]()

    def recorded(phase: Phase) -> Phase:
        def record(state: State) -> State:
            after = phase(state)
            texts.append((state.place, str(after.programs[0])))
            return after

        record.__name__ = name_of(phase)
        return record

    (tmp_path / "x.diffc").mkdir()
    state = State(options, tmp_path / "x.diffc", programs=(PROGRAM,), seen=dump_below(tmp_path / "dump"))
    run_phases(state, map(recorded, phases_to_bundle(options)))
    places = ["01-normalize", "02-stage", "03-lower", "04-write", "05-check"]
    assert [place for place, _ in texts] == places and texts[-1][1] == str(NORMALIZED)
    assert [(place, (tmp_path / "dump" / place / "main.txt").read_text()) for place in places] == [
        (place, f"{text}\n") for place, text in texts
    ]
    passes = ["01-recognize_linear", "02-fuse_linear", "03-sum_spawned_noise", "04-outline"]
    passes += ["05-common_subexpressions"]
    assert sorted(path.name for path in (tmp_path / "dump" / "01-normalize").iterdir()) == [*passes, "main.txt"]
    after = [(tmp_path / "dump" / "01-normalize" / name / "main.txt").read_text() for name in passes]
    assert after[0] == f"{PROGRAM}\n" and after[1:] == [f"{NORMALIZED}\n"] * 4


def test_a_dump_replaces_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="exists") as refused:
        build(tmp_path / "none.safetensors", "ort-fp32", tmp_path / "x.diffc", dump=tmp_path)
    assert refused.value.where == "--dump" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dump", ["file/dump", "/proc/dump"])
def test_a_dump_that_cannot_be_written_is_refused_before_the_work(dump: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BuildError, match="dump cannot be written") as refused:
        build(tmp_path / "none.safetensors", "ort-fp32", tmp_path / "x.diffc", dump=tmp_path / dump)
    assert refused.value.where == "--dump" and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("here", "source", "output"),
    [
        (".", "sd.v1.safetensors", "sd.v1.diffc"),
        (".", "folder", "folder.diffc"),
        (".", "folder/", "folder.diffc"),
        (".", "./link", "link.diffc"),
        ("folder", ".", "{}/folder.diffc"),
        ("folder/unet", "..", "{}/folder.diffc"),
        ("folder/unet", "../../folder/", "{}/folder.diffc"),
        ("elsewhere", "../folder", "folder.diffc"),
        ("elsewhere", "../folder/unet/..", "folder.diffc"),
    ],
)
def test_a_bundle_is_named_after_its_source_and_never_inside_it(
    here: str, source: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("folder/unet", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path / here)
    assert str(default_output(Path(source))) == output.format(tmp_path)


@pytest.mark.parametrize("option", ["output", "dump"])
def test_nothing_is_written_inside_a_checkpoint(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(BuildError, match="would lie inside the checkpoint"):
        build(Path(), **{"output": tmp_path / "x.diffc", option: Path("deep/x")})
    assert list(tmp_path.rglob("*")) == [tmp_path / "model"]


def test_the_report_shows_the_time_of_every_phase(tmp_path: Path) -> None:
    report = (write_bundle([PROGRAM], tmp_path / "x.diffc") / "report.html").read_text()
    for name in ("normalize", "normalize: outline", "stage", "lower", "write", "check"):
        assert f"<td>{name}</td>" in report
    assert "report.html" not in (tmp_path / "x.diffc" / "manifest.json").read_text(), "its bytes differ"


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="stepz"):
        build(tmp_path / "none.safetensors", stepz=3)
