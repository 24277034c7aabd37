"""A table reads as its docstring shows."""

from __future__ import annotations

import doctest

from diffc.compiler import text_table


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(text_table) == (0, 1)


def test_a_table_without_rows_is_its_header() -> None:
    assert text_table.text_table(["a", "b"], []) == "a  b"
