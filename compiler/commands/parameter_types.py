"""Define the types of parameters: sizes, lists, settings. Other values are refused with an example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


class Size(click.ParamType[tuple[int, int]]):
    """Read a width and a height."""

    name = "WxH"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Return both, in pixels."""
        width, _, height = str(value).partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            self.fail(f"{value!r} is not WIDTHxHEIGHT, such as 512x512", param, ctx)
        return int(width), int(height)


class Sizes(click.ParamType[tuple[tuple[int, int], ...]]):
    """Read a list of sizes."""

    name = "WxH[,WxH…]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[tuple[int, int], ...]:
        """Return them in order."""
        return tuple(Size().convert(size, param, ctx) for size in str(value).split(","))


class Counts(click.ParamType[tuple[int, ...]]):
    """Read a list of positive numbers."""

    name = "N[,N…]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return them in order."""
        counts = str(value).split(",")
        if not all(count.isdecimal() and int(count) > 0 for count in counts):
            self.fail(f"{value!r} is not a list of positive numbers, such as 10,20", param, ctx)
        return tuple(map(int, counts))


class Interval(click.ParamType[tuple[float, float]]):
    """Read two fractions."""

    name = "START,STOP"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        """Return both; whether there is such an interval depends on the number of steps."""
        try:
            start, stop = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two fractions of the steps, such as 0.2,0.8", param, ctx)
        return start, stop


class Names(click.ParamType[tuple[str, ...]]):
    """Read a list of names."""

    name = "NAME[,NAME…]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return each once, in order."""
        return tuple(dict.fromkeys(value.split(","))) if isinstance(value, str) else value


class Named(click.ParamType[tuple[str, Any]]):
    """Read a text with a name, or with the path of a field, such as ``conditions.0.index``."""

    name = "NAME=VALUE"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Return the name and the text."""
        name, equals, text = str(value).partition("=")
        first, *places = name.split(".")
        is_path = first.isidentifier() and all(part.isidentifier() or part.isdecimal() for part in places)
        if not equals or not is_path:
            self.fail(f"{value!r} is not NAME=VALUE, such as {self.example}", param, ctx)
        return name, text


def by_name(ctx: click.Context, param: click.Parameter, values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the values of an option by their names. Raises `click.BadParameter` for a name that is there twice."""
    named = dict(values)
    if len(named) < len(values):
        names = [name for name, _ in values]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"{twice} is set twice", ctx, param)
    return named


class Setting(Named):
    """Read a value with a name: JSON, or a text where it is none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Return the name and the value."""
        name, text = super().convert(value, param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text
