"""Run diffc's commands in tests, in this process."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from diffc.compiler.commands.cli import main

DIFFC = (sys.executable, "-c", "from diffc.compiler.commands.cli import main; main()")


def diffc(*arguments: str | Path) -> Result:
    """Run a command and return its result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeded(*arguments: str | Path) -> dict[str, Any]:
    """Run a command that has to succeed, and return the object of ``--json``."""
    result = diffc(*arguments, "--json")
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def refused(*arguments: str | Path) -> str:
    """Check the form of an error: three lines at most, no traceback, exit code 1. Return its text."""
    result = diffc(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if not line.lstrip()[:1].isdigit() and line.strip()]
    assert 1 <= len(lines) <= 4
    return result.stderr


def digests(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of every file of a bundle by relative path, but for the report, which holds times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.html"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
