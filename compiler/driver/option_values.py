"""Read the values of options as Python's callers write them, with the same checks as on the command line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from diffc.compiler.checkpoint.tasks import TASKS
from diffc.compiler.errors import BuildError


def read_integer(option: str, value: Any, least: int | None = None) -> int:
    """Read an integer, NumPy's too; a truth value is none. Raises `BuildError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        limit = "" if least is None else f" of {least} or more"
        raise BuildError(f"{option} is {value!r}", where=option, fix=f"use an integer{limit}")
    return int(value)


def read_number(option: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float | None:
    """Read a finite number between two bounds; None stands for no number. Raises `BuildError`."""
    if value is None:
        return None
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        bounds = "" if math.isinf(low) else f" from {low:g} to {high:g}"
        raise BuildError(f"{option} is {value!r}", where=option, fix=f"use a number{bounds}")
    return float(value)


def read_counts(option: str, value: Any) -> tuple[int, ...]:
    """Read one positive integer, or several; None stands for none. Raises `BuildError`."""
    several = () if value is None else [value] if isinstance(value, Integral | str) else value
    if not isinstance(several, Sequence):
        raise BuildError(f"{option} is {value!r}", where=option, fix="use an integer, or a list, such as (10, 20)")
    return tuple(read_integer(option, count, 1) for count in several)


def read_fractions(option: str, value: Any) -> tuple[float, float] | None:
    """Read a pair of numbers; None stands for no pair. Raises `BuildError`."""
    if value is None:
        return None
    edges = [read_number(option, edge) for edge in value] if isinstance(value, list | tuple) else []
    if len(edges) != 2 or edges[0] is None or edges[1] is None:
        raise BuildError(f"{option} is {value!r}", where=option, fix="use a start and a stop, such as (0.2, 0.8)")
    return edges[0], edges[1]


def read_flag(option: str, value: Any) -> bool:
    """Read a truth value. Raises `BuildError`."""
    if not isinstance(value, bool):
        raise BuildError(f"{option} is {value!r}", where=option, fix="use True or False")
    return value


def read_text(option: str, value: Any) -> str | None:
    """Read a text; None stands for none. Raises `BuildError`."""
    if value is not None and not isinstance(value, str):
        raise BuildError(f"{option} is {value!r}", where=option, fix="use a text, as on the command line")
    return value


def read_task(value: Any) -> str:
    """Read the name of a task. Raises `BuildError`."""
    if value not in TASKS:
        raise BuildError(f"task is {value!r}", where="task", fix=f"use one of {', '.join(TASKS)}")
    return str(value)


def read_path(option: str, value: Any) -> Path | None:
    """Read a path; None stands for none. Raises `BuildError`."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise BuildError(f"{option} is {value!r}", where=option, fix="use a path")
    return Path(value)


def read_mapping(option: str, value: Any) -> dict[str, Any]:
    """Read values by their names. Raises `BuildError`."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BuildError(f"{option} is {value!r}", where=option, fix='use a dictionary, such as {"num_frames": 16}')
    return dict(value)


def read_arguments(option: str, value: Any) -> dict[str, Any]:
    """Read values that a bundle can record, by their names. Raises `BuildError` for what JSON does not hold."""
    arguments = read_mapping(option, value)
    for name, argument in arguments.items():
        try:
            json.dumps(argument)
        except (TypeError, ValueError) as error:
            what = f"{name} is of type {type(argument).__name__}, which a bundle cannot record"
            fix = "use numbers, texts, lists and dictionaries; name arrays of the request with inputs"
            raise BuildError(what, where=option, fix=fix) from error
    return arguments
