"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import databases

settings.register_profile(
    "hub",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("hub")


@pytest.hookimpl(trylast=True)  # after the tests were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that kill processes or start a control plane begin, the rest of the end-to-end tests follow: they take
    minutes each, and the last files should be short ones, so that no worker waits long for the other.
    """
    items.sort(
        key=lambda item: ({"crash", "kubernetes"}.isdisjoint(item.keywords), "e2e" not in item.path.parts)
    )


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    return databases.new_sqlite(tmp_path)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    url = databases.new_postgres()
    yield url
    databases.drop_postgres(url)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))
