"""Names that packages register: the known ones are listed, and two claims to one are an error."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from diffc.runtime import BundleError, entry_points

POINTS = (
    EntryPoint("alpha", "one.alpha:Alpha", "diffc.toys"),
    EntryPoint("beta", "one.beta:Beta", "diffc.toys"),
    EntryPoint("beta", "two.beta:Beta", "diffc.toys"),
    EntryPoint("alpha", "one.alpha:Alpha", "diffc.toys"),  # the same package, found twice on the path
)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in POINTS if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(entry_points, "entry_points", installed)


def test_lists_each_name_once() -> None:
    assert entry_points.registered("diffc.toys") == ["alpha", "beta"] and entry_points.registered("diffc.none") == []


def test_finds_the_one_claim() -> None:
    point = entry_points.find_entry_point("diffc.toys", "alpha", "toy", BundleError)
    assert point.value == "one.alpha:Alpha"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BundleError, match="unknown toy 'alpa'\n  fix: did you mean alpha\\? known: alpha, beta"):
        entry_points.find_entry_point("diffc.toys", "alpa", "toy", BundleError)


def test_two_packages_cannot_claim_one_name() -> None:
    with pytest.raises(BundleError, match="toy 'beta' is claimed twice\n  at:  one.beta:Beta and two.beta:Beta"):
        entry_points.find_entry_point("diffc.toys", "beta", "toy", BundleError)
