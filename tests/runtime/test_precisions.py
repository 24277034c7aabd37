"""The rows of the table of precisions agree with each other, with the recipes, and with what they store."""

from __future__ import annotations

import pytest
import torch

from diffc.passes.quantize import RECIPES
from diffc.runtime.precisions import PRECISIONS, Precision

each_row = pytest.mark.parametrize("row", PRECISIONS.values(), ids=lambda row: row.name)


@each_row
def test_a_row_is_found_by_its_name_and_names_a_recipe_that_exists(row: Precision) -> None:
    assert PRECISIONS[row.name] is row
    assert row.recipe == "" or row.recipe in RECIPES


@each_row
def test_a_float_row_stores_as_many_bytes_as_its_type(row: Precision) -> None:
    if not row.recipe:
        assert row.bytes_per_weight == row.engine_bytes_per_weight == getattr(torch, row.storage).itemsize


@each_row
def test_bits_in_a_name_bound_what_is_stored(row: Precision) -> None:
    bits = float("".join(filter(str.isdigit, row.name.partition("a")[0])))
    assert bits / 8 <= row.bytes_per_weight <= bits / 8 * 1.25
