"""A checkpoint that is not there is refused at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffc.compiler.checkpoint.source_path import check_source
from diffc.compiler.errors import LoadError

PROGRAM = """
import sys
from click.testing import CliRunner
from diffc.compiler.commands.cli import main

source, bundle = sys.argv[1:]
for arguments in (("build", source), ("estimate", source), ("verify", bundle, "--against", source),
                  ("bench", bundle, "--against", "torch", "--source", source)):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and f"there is no {source}" in result.stderr, result.output
assert "torch" not in sys.modules
"""


def test_what_is_there_is_accepted(tmp_path: Path) -> None:
    check_source(tmp_path)
    with pytest.raises(LoadError, match="there is no .*x.safetensors"):
        check_source(tmp_path / "x.safetensors")


def test_commands_refuse_a_missing_checkpoint_before_they_import_a_library(tmp_path: Path) -> None:
    names = (str(tmp_path / name) for name in ("x.safetensors", "x.diffc"))
    subprocess.run([sys.executable, "-c", PROGRAM, *names], check=True, timeout=60)
