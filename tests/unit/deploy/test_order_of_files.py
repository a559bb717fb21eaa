"""The files that begin are there: one that was renamed would begin last, unnoticed."""

from __future__ import annotations

from tests import order


def test_every_file_that_begins_is_there_once() -> None:
    assert [name for name in order.LONGEST if not (order.TESTS / name).is_file()] == []
    assert len(set(order.LONGEST)) == len(order.LONGEST)


def test_who_is_named_begins() -> None:
    places = [
        order.place(order.TESTS / name) for name in (*order.LONGEST, "unit/deploy/test_order_of_files.py")
    ]
    assert places == list(range(len(order.LONGEST) + 1))
