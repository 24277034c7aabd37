"""A plugin's library is taken from the package that is installed, or the package is named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from diffc.runtime.errors import BundleError, DiffcWarning
from diffc.runtime.plugins import CustomOperator, Plugin, find_plugin, library_of, state_of

ENTRY: dict[str, Any] = {
    "package": "numpy",
    "version": "0.1",
    "operators": ["Scale"],
    "library": "libtoy.so",
    "sha256": "0" * 64,
    "has_functions": False,
}


def test_a_package_that_is_missing_is_named_with_the_command() -> None:
    with pytest.raises(BundleError, match=r"toy\.Scale: no-such-package is not installed") as raised:
        library_of("toy", ENTRY | {"package": "no-such-package"}, "onnxruntime")
    assert raised.value.fix == "pip install 'no-such-package==0.1'"


def test_a_graph_with_functions_runs_without_it_and_a_warning_says_so() -> None:
    entry = ENTRY | {"package": "no-such-package", "has_functions": True}
    with pytest.warns(DiffcWarning, match="runs without its kernel"):
        assert library_of("toy", entry, "onnxruntime") is None
    assert state_of("toy", entry, "onnxruntime") == (
        True,
        "no-such-package is not installed; their functions run instead",
    )


def test_an_unknown_plugin_names_the_known_ones() -> None:
    with pytest.raises(BundleError, match="unknown plugin 'toy'") as raised:
        find_plugin("toy")
    assert "known: diffc" in str(raised.value.fix)


def test_an_entry_states_version_and_digest_of_the_library(tmp_path: Path) -> None:
    library = tmp_path / "libtoy.so"
    library.write_bytes(b"code")
    operators = (CustomOperator("scale", "Scale", 1, function="…"), CustomOperator("bare", "Bare", 1))
    plugin = Plugin("toy", "numpy", "toy", operators, {"onnxruntime": library})
    entry = plugin.entry({"Scale"}, "onnxruntime")
    assert entry["sha256"] == hashlib.sha256(b"code").hexdigest() and entry["library"] == "libtoy.so"
    assert entry["has_functions"] and not plugin.entry({"Scale", "Bare"}, "onnxruntime")["has_functions"]
