"""Turn functions into commands: one JSON object or lines for people, errors of three lines, exit codes, options."""

from __future__ import annotations

import copy
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from diffc.compiler.commands.parameter_types import Named, Setting, by_name
from diffc.runtime.errors import DiffcError, DiffcWarning

Command = Callable[..., Any]

EXTRA = "this command needs the compiler: pip install 'diffc[compiler]'"


def path_option(*names: str, help: str, required: bool = False) -> Command:
    """Return an option that takes a path."""
    return click.option(*names, type=click.Path(path_type=Path), required=required, help=help)


def path_argument(name: str, *, required: bool = True) -> Command:
    """Return an argument that takes a path."""
    return click.argument(name, type=click.Path(path_type=Path), required=required)


def named_option(*names: str, type: Named, help: str, metavar: str = Named.name) -> Command:
    """Return an option that takes several values with names, each name once."""
    return click.option(*names, type=type, multiple=True, callback=by_name, metavar=metavar, help=help)


bundle_argument = path_argument("bundle")
source_argument = path_argument("source")
target_option = click.option(
    "--target", default="ort-fp32", show_default=True, help="BACKEND-PRECISION, such as ort-fp16."
)
ip_adapter_option = path_option(
    "--ip-adapter", help="The .safetensors file of an IP-Adapter; its image is the input ip_adapter_image."
)
component_option = named_option(
    "--component",
    "component_files",
    type=Named("transformer=model.gguf"),
    metavar="NAME=FILE",
    help="The .safetensors or .gguf file of one component, instead of the folder's.",
)
online_option = click.option(
    "--online", is_flag=True, help="Allow a single file's missing configuration to be fetched."
)
guidance_option = click.option("--guidance", type=float, help="Guidance scale.  [default: the bundle's]")
program_option = click.option(
    "--program", help="Which program of the bundle.  [default: the first that serves the request]"
)


def setting_option(name: str, help: str) -> Command:
    """Return the option ``--set NAME=VALUE``."""
    return named_option("--set", name, type=Setting("num_frames=16"), help=help)


def seed_option(help: str) -> Command:
    """Return a seed that is 0 by default."""
    return click.option("--seed", type=int, default=0, show_default=True, help=help)


class ReportingCommand(click.Command):
    """Print a usage error as a JSON object too where ``--json`` is among the arguments."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Read the arguments. Raises `click.UsageError`, which ends with exit code 2."""
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.UsageError as error:
            if as_json:
                print_error(DiffcError(error.format_message(), fix=f"see diffc {info_name} --help"))
            raise


def command(
    group: click.Group, name: str | None = None, *, alias: str | None = None
) -> Callable[[Command], click.Command]:
    """Turn a function into a command that prints JSON or lines; an ``alias`` is not listed in the help."""

    def decorate(function: Command) -> click.Command:
        @wraps(function)
        def run(*, as_json: bool, **options: Any) -> None:
            noted = list[str]()
            with _noting(noted):
                result = _guarded(function, as_json, options)
            if as_json:
                click.echo(json.dumps({**result, "warnings": noted}, indent=1))
            if result.get("failed"):
                sys.exit(1)

        flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
        registered = group.command(name=name or function.__name__, cls=ReportingCommand)(flag(run))
        if alias is not None:
            hidden = copy.copy(registered)
            hidden.hidden = True
            group.add_command(hidden, alias)
        return registered

    return decorate


@contextmanager
def _noting(noted: list[str]) -> Iterator[None]:
    """Print each warning on stderr, and append it to ``noted``."""

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        noted.append(str(message))
        click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DiffcWarning)
        warnings.showwarning = note
        yield


def _guarded(function: Command, as_json: bool, options: dict[str, Any]) -> Any:
    """Run a command; end with exit code 1 and an error's lines where it fails."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return function(**options)
    except DiffcError as error:
        _fail(error, as_json)
    except ModuleNotFoundError as error:
        _fail(DiffcError(f"{error.name} is not installed", fix=EXTRA), as_json)
    except KeyboardInterrupt:
        _fail(DiffcError("interrupted", fix="nothing was left half-made; run it again"), as_json)


def _fail(error: DiffcError, as_json: bool) -> None:
    if as_json:
        print_error(error)
    click.echo(str(error), err=True)
    sys.exit(1)


def print_error(error: DiffcError) -> None:
    """Print an error as one JSON object on stdout."""
    parts = {"what": error.what, "where": error.where, "fix": error.fix, "in": error.inside}
    click.echo(json.dumps({"error": parts}, indent=1))


def show(text: str = "") -> None:
    """Print a line for people, on stderr."""
    click.echo(text, err=True)


@contextmanager
def timed(last: str = "done") -> Iterator[Callable[[str], None]]:
    """Yield a function that prints lines with the seconds since the start; print the last one at the end."""
    start = time.monotonic()

    def progress(line: str) -> None:
        show(f"{time.monotonic() - start:7.1f} s  {line}")

    yield progress
    progress(last)
