"""Functions become commands: their result is printed as JSON, their errors as three lines with an exit code."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from diffc.compiler.commands.command import command, show, timed
from diffc.runtime import DiffcError, DiffcWarning


def result_of(function: Any, *arguments: str) -> Result:
    group = click.Group()
    command(group, "try", alias="attempt")(function)
    return CliRunner().invoke(group, arguments)


def fails(error: BaseException) -> Any:
    def function() -> dict[str, Any]:
        raise error

    return function


def test_the_result_is_one_object_on_stdout_and_lines_for_people_on_stderr() -> None:
    def function() -> dict[str, Any]:
        """Try."""
        show("hello")
        with timed() as progress:
            progress("work")
        return {"answer": 42}

    plain, as_json = result_of(function, "try"), result_of(function, "try", "--json")
    assert plain.stdout == "" and json.loads(as_json.stdout) == {"answer": 42, "warnings": []}
    hello, work, done = as_json.stderr.splitlines()
    assert hello == "hello" and work.endswith(" s  work") and done.endswith(" s  done")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (DiffcError("it is broken", fix="mend it"), "it is broken"),
        (ModuleNotFoundError("no", name="torch"), "torch is not installed"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_error_is_printed_and_exits_with_1(error: BaseException, what: str) -> None:
    plain, as_json = result_of(fails(error), "try"), result_of(fails(error), "try", "--json")
    assert (plain.exit_code, as_json.exit_code) == (1, 1)
    assert plain.stderr.startswith(what) and "fix: " in plain.stderr and "Traceback" not in plain.output
    printed = json.loads(as_json.stdout)["error"]
    assert printed["what"] == what and printed.keys() == {"what", "where", "fix", "in"}


def test_a_result_may_fail_after_it_was_printed() -> None:
    result = result_of(lambda: {"psnr": 1.0, "failed": True}, "try", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["psnr"] == 1.0


def test_warnings_are_lines_of_stderr_and_a_list_of_the_object() -> None:
    def function() -> dict[str, Any]:
        warnings.warn("the prompt was cut", DiffcWarning, stacklevel=1)
        return {}

    assert result_of(function, "try").stderr == "warning: the prompt was cut\n"
    assert json.loads(result_of(function, "try", "--json").stdout) == {"warnings": ["the prompt was cut"]}


def test_a_usage_error_is_an_object_too() -> None:
    plain, as_json = result_of(lambda: {}, "try", "--no"), result_of(lambda: {}, "try", "--no", "--json")
    assert (plain.exit_code, plain.stdout, as_json.exit_code) == (2, "", 2)
    assert "--no" in json.loads(as_json.stdout)["error"]["what"] and "--no" in as_json.stderr


def test_an_alias_works_and_is_not_listed() -> None:
    assert result_of(lambda: {"answer": 42}, "attempt", "--json").exit_code == 0
    assert "attempt" not in result_of(lambda: {}, "--help").output
