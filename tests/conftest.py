"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import databases, engines, order

settings.register_profile(
    "hub",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("hub")
engines.install()

SLOW_FOLDERS = frozenset({"contract", "integration", "e2e"})
SLOW_MARKS = frozenset({"postgres", "crash", "e2e", "long", "kubernetes", "prometheus"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--part fast` is what `make check` runs, `--part slow` everything else that `make test` runs."""
    parser.addoption("--part", choices=("fast", "slow"), help="run only the fast tests, or only all others")


@pytest.hookimpl(trylast=True)  # after the tests were shuffled
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only the part that was asked for, the longest files first."""
    items.sort(key=lambda item: order.place(item.path))
    part = config.getoption("part")
    if part is None:
        return
    slow, fast = [item for item in items if is_slow(item)], [item for item in items if not is_slow(item)]
    items[:], left_out = (slow, fast) if part == "slow" else (fast, slow)
    config.hook.pytest_deselected(items=left_out)


def is_slow(item: pytest.Item) -> bool:
    """Whether it needs more than this process and SQLite, or more than a moment."""
    folder = item.path.relative_to(order.TESTS).parts[0]
    return folder in SLOW_FOLDERS or any(mark.name in SLOW_MARKS for mark in item.iter_markers())


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


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def shared_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Each of the two databases in turn, for all tests of a file that do not mind what others left in it."""
    if request.param == "sqlite":
        yield databases.new_sqlite(tmp_path_factory.mktemp("shared"))
        return
    url = databases.new_postgres()
    yield url
    databases.drop_postgres(url)
