"""All items of a list, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

ItemT = TypeVar("ItemT", covariant=True)
PAGE = 200


class _Page(Protocol[ItemT]):
    @property
    def items(self) -> tuple[ItemT, ...]: ...

    @property
    def next(self) -> str | int | None: ...


def every(list_page: Callable[..., _Page[ItemT]], **filters: Any) -> Iterator[ItemT]:
    """Every item of `client.list_…`: `every(client.list_nodes, cluster="sim")`.

    What is made or ended between two pages may be missed or shown; nothing is shown twice.
    """
    page = list_page(limit=PAGE, **filters)
    yield from page.items
    while page.next is not None:
        page = list_page(after=page.next, limit=PAGE, **filters)
        yield from page.items
