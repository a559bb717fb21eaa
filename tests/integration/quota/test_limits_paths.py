"""The paths that holds may take: shares x released tranches, in the order in which they are drawn on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from quota.programs.paths import account_paths


def test_a_grant_alone_is_its_own_organizations_path() -> None:
    assert _paths(_grant()) == [("alpha", ("grant:g",))]


def test_each_party_has_a_path_through_each_released_tranche() -> None:
    rows = (_tranche(2), _share("beta"), _tranche(1), _grant(), _share("alpha"))
    expected = [
        ("alpha", ("share:g:alpha", "tranche:g:1", "grant:g")),
        ("alpha", ("share:g:alpha", "tranche:g:2", "grant:g")),
        ("beta", ("share:g:beta", "tranche:g:1", "grant:g")),
        ("beta", ("share:g:beta", "tranche:g:2", "grant:g")),
    ]
    assert _paths(*rows) == expected
    assert _paths(*reversed(rows)) == expected, "whatever the order of the rows"


def test_tranches_stand_by_position_and_not_by_name() -> None:
    rows = (_tranche(10), _tranche(9), _grant(), _tranche(1))
    assert [names[0] for _, names in _paths(*rows)] == ["tranche:g:1", "tranche:g:9", "tranche:g:10"]


def test_a_locked_tranche_is_on_no_path() -> None:
    assert _paths(_grant(), _tranche(1), _tranche(2, released=False)) == [
        ("alpha", ("tranche:g:1", "grant:g"))
    ]
    assert _paths(_grant(), _tranche(1, released=False)) == [], "and the bare grant is none either"


def test_a_closed_share_is_on_no_path_and_the_grant_stays_divided() -> None:
    assert _paths(_grant(), _share("alpha", released=False), _share("beta")) == [
        ("beta", ("share:g:beta", "grant:g"))
    ]
    assert _paths(_grant(), _share("alpha", released=False)) == []


def test_the_grants_organization_needs_a_share_like_any_party() -> None:
    assert [party for party, _ in _paths(_grant(), _share("beta"))] == ["beta"]


def _paths(*rows: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (path.organization_id, tuple(account.id for account in path.accounts))
        for path in account_paths("alpha", list(rows))
    ]


def _row(account_id: str, kind: str, **fields: Any) -> Any:
    empty = {
        "organization_id": "alpha",
        "position": None,
        "released": True,
        "granted_gpu_us": 9,
        "held_gpu_us": 0,
        "used_gpu_us": 0,
        "overdraft_gpu_us": 0,
    }
    return SimpleNamespace(id=account_id, kind=kind, **(empty | fields))


def _grant() -> Any:
    return _row("grant:g", "grant")


def _share(party: str, *, released: bool = True) -> Any:
    return _row(f"share:g:{party}", "share", organization_id=party, released=released)


def _tranche(position: int, *, released: bool = True) -> Any:
    return _row(f"tranche:g:{position}", "tranche", position=position, released=released)
