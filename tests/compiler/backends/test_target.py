"""Targets: read, printed, and refused with what to write instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffc.compiler.backends import target
from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import Target, parse_target
from diffc.compiler.errors import TargetError
from diffc.runtime.precisions import PRECISIONS, Precision

Register = Callable[..., None]

ARCHS = tuple(f"sm{at}" for at in range(10, 1000))


class Fake:
    """Support two precisions."""

    precisions: ClassVar[Mapping[str, Precision]] = {name: PRECISIONS[name] for name in ("fp32", "w4a8")}
    archs: ClassVar[Mapping[str, Sequence[str]]] = {"fp32": ARCHS, "w4a8": ARCHS}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Replace the registered backends by pairs of a name and a value."""

    def replace(*claims: tuple[str, str]) -> None:
        points = EntryPoints(EntryPoint(name, value, "diffc.backends") for name, value in claims)

        def fake_entry_points(**chosen: Any) -> EntryPoints:
            return points.select(**chosen)

        monkeypatch.setattr("diffc.runtime.entry_points.entry_points", fake_entry_points)

    module = ModuleType("fake_backends")
    module.Fake = module.Other = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backends", module)
    replace(("fake", "fake_backends:Fake"), ("trt", "fake_backends:Fake"), ("broken", "no_such_module:Fake"))
    return replace


@pytest.mark.usefixtures("register")
def test_reads_backend_precision_and_architectures() -> None:
    assert parse_target("fake-fp32") == Target("fake", "fp32")
    assert parse_target("trt-w4a8@sm86,sm120") == Target("trt", "w4a8", ("sm86", "sm120"))


@given(
    archs=st.lists(st.integers(10, 999).map("sm{}".format), unique=True), precision=st.sampled_from(["fp32", "w4a8"])
)
def test_prints_what_it_read(archs: list[str], precision: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "find_backend", lambda _: Fake)
        text = str(Target("fake", precision, tuple(archs)))
        assert str(parse_target(text)) == text


@pytest.mark.usefixtures("register")
@pytest.mark.parametrize("text", ["", "fake", "fake-", "-fp32", "fake-fp32@", "fake-fp32-x", "fake-fp32@sm86@sm89"])
def test_rejects_another_form(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert "sm86" in str(caught.value)


@pytest.mark.usefixtures("register")
def test_rejects_an_unknown_backend_and_lists_the_known() -> None:
    with pytest.raises(TargetError) as caught:
        parse_target("tensorflow-fp32")
    assert str(caught.value) == "unknown backend 'tensorflow'\n  fix: known: broken, fake, trt"
    with pytest.raises(TargetError) as caught:
        parse_target("frt-fp32")
    assert str(caught.value) == "unknown backend 'frt'\n  fix: did you mean trt? known: broken, fake, trt"


@pytest.mark.usefixtures("register")
def test_rejects_a_precision_that_the_backend_lacks() -> None:
    with pytest.raises(TargetError) as caught:
        parse_target("fake-fp7")
    assert str(caught.value) == (
        "backend fake has no precision 'fp7'\n  at:  fake-fp7\n  fix: choose one of fake-fp32, fake-w4a8"
    )


@pytest.mark.usefixtures("register")
@pytest.mark.parametrize("arch", ["86", "sm", "sm8", "sm0123", "SM86", "sm86 ", "gfx90a"])
def test_rejects_what_is_no_architecture(arch: str) -> None:
    with pytest.raises(TargetError, match="is no GPU architecture"):
        parse_target(f"fake-fp32@{arch}")


@pytest.mark.usefixtures("register")
def test_rejects_an_architecture_named_twice() -> None:
    with pytest.raises(TargetError, match="sm86 is named twice"):
        parse_target("fake-fp32@sm86,sm86")


def test_rejects_two_claims_to_one_name(register: Register) -> None:
    register(("fake", "fake_backends:Fake"), ("fake", "fake_backends:Other"))
    with pytest.raises(TargetError) as caught:
        find_backend("fake")
    assert str(caught.value).splitlines()[:2] == [
        "backend 'fake' is claimed twice",
        "  at:  fake_backends:Fake and fake_backends:Other",
    ]


def test_one_backend_seen_twice_is_one(register: Register) -> None:
    register(("fake", "fake_backends:Fake"), ("fake", "fake_backends:Fake"))
    assert find_backend("fake") is Fake


@pytest.mark.usefixtures("register")
def test_rejects_a_backend_that_cannot_be_imported() -> None:
    with pytest.raises(TargetError, match="cannot be imported: No module named 'no_such_module'"):
        find_backend("broken")


def test_the_packages_of_a_backend_are_the_extras_of_its_entry_point(register: Register) -> None:
    register(("lonely", "no_such_module:Lonely [torch-tensorrt, onnx]"))
    with pytest.raises(TargetError, match=r"pip install 'diffc\[torch-tensorrt,onnx\]'"):
        find_backend("lonely")
