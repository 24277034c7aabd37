"""The form of an error is a contract: what, where, fix, and during what."""

from __future__ import annotations

import doctest
import pickle

import pytest

import diffc.runtime.errors
from diffc.compiler import errors
from diffc.compiler.errors import DiffcError, DiffcWarning, PassError

KINDS = [getattr(errors, name) for name in errors.__all__ if name != "DiffcWarning"]


def test_prints_what_where_and_fix() -> None:
    error = PassError(
        "deepcache: a call to deep has no step", where="d = deep(x)", fix="run fuse_linear before deepcache"
    )
    assert str(error) == (
        "deepcache: a call to deep has no step\n  at:  d = deep(x)\n  fix: run fuse_linear before deepcache"
    )


def test_the_pipeline_adds_a_fourth_line() -> None:
    error = PassError("interval is 0", fix="use 1 or more")
    error.inside = "deepcache, after no other pass"
    assert str(error) == "interval is 0\n  fix: use 1 or more\n  in:  deepcache, after no other pass"


def test_leaves_out_what_is_not_known() -> None:
    assert str(DiffcError("the disk is full")) == "the disk is full"


def test_keeps_each_part_on_one_line() -> None:
    assert str(DiffcError("a\nb", where="c\r\nd", fix="e\n")) == "a b\n  at:  c d\n  fix: e"


def test_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(PassError("what", where="where", fix="fix")))
    assert isinstance(error, PassError)
    assert str(error) == "what\n  at:  where\n  fix: fix"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_diffc_error(kind: type[Exception]) -> None:
    assert issubclass(kind, DiffcError)


def test_a_warning_is_no_error() -> None:
    assert issubclass(DiffcWarning, UserWarning)


def test_the_example_runs() -> None:
    assert doctest.testmod(diffc.runtime.errors).failed == 0
