"""The control plane that all tests of this folder share; each leaves it as it found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.kubernetes.isolated_world import World, an_isolated_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with an_isolated_world(tmp_path_factory.mktemp("isolation")) as made:
        yield made
