"""The form in which errors print."""

from __future__ import annotations

import pytest

from diffc.runtime import BundleError, Cancelled, DiffcError, RequestError


def test_a_part_that_is_not_known_has_no_line() -> None:
    assert str(DiffcError("it is broken")) == "it is broken"
    assert str(DiffcError("it is broken", fix="mend it")) == "it is broken\n  fix: mend it"


def test_every_part_is_one_line() -> None:
    error = DiffcError("two\nlines", where="a\nb", fix="c\nd")
    error.inside = "deepcache"
    assert str(error) == "two lines\n  at:  a b\n  fix: c d\n  in:  deepcache"


@pytest.mark.parametrize("kind", [BundleError, RequestError, Cancelled])
def test_one_except_clause_catches_all(kind: type[DiffcError]) -> None:
    with pytest.raises(DiffcError):
        raise kind("what")
    assert issubclass(Cancelled, RequestError)


def test_no_terminal_codes_are_shown() -> None:
    error = DiffcError("\x1b[96mstep 2/3\x1b[0m failed", where="\x1b[1mhere", fix="do \x07that\tnow")
    assert str(error) == "step 2/3 failed\n  at:  here\n  fix: do that\tnow"
    assert error.what == "step 2/3 failed"
