"""The names that code may read are those in it, in the code inside of it, and in its texts."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from diffc.compiler.tracing.code_names import imported_by, is_library, names_of
from tests import tolerances


def _reading(x: Any) -> Any:
    return [getattr(y, "by_name").attribute for y in x] + [sys.path]  # noqa: B009


def _importing() -> Any:
    def inner() -> Any:
        from .. import __name__ as above  # noqa: TID252 - the level is what is tested

        return above

    from tests.tolerances import PICTURE

    return PICTURE, inner


def test_names_are_those_of_variables_attributes_and_texts_in_all_code() -> None:
    names = names_of(_reading.__code__)
    assert {"by_name", "attribute", "sys", "path", "getattr"} <= names and not {"x", "y"} & names


def test_modules_are_imported_where_code_runs() -> None:
    assert imported_by(_importing) == [sys.modules["tests.compiler"], tolerances]  # type: ignore[arg-type]
    assert imported_by(_reading) == []  # type: ignore[arg-type]


def test_libraries_are_python_pytorch_and_installed_packages_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_library, ("sys", "builtins", "torch", "numpy")))
    assert not any(map(is_library, ("diffusers", "transformers", "tests")))
    settings = ModuleType("only_settings")
    monkeypatch.setitem(sys.modules, "only_settings", settings)
    assert not is_library("only_settings"), "it is installed nowhere"
