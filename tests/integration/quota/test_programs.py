"""Programmes: what their budgets may come to."""

from __future__ import annotations

import pytest

from quota.errors import InsufficientBalance
from quota.programs import awards
from quota.programs import service as programs
from quota.schemas.identity import Caller, Role
from quota.schemas.programs import NewProgram
from tests.builders import a_hub

OPERATOR = Caller(token_id="tok-op", role=Role.OPERATOR, organization_id=None)


MOST = 49
"""Budgets of the largest size that fit beside the builder's: their double, with an overdraft, is still below 2^63."""


def test_all_budgets_together_stay_within_64_bits_even_overdrawn(database_url: str) -> None:
    hub = a_hub(database_url)

    def open_program(number: int) -> None:
        body = NewProgram(id=f"large-{number}", name="Large", budget_gpu_hours=25_000_000)
        hub.database.write(lambda tx: awards.create_program(tx, OPERATOR, body))

    for number in range(MOST):
        open_program(number)
    with pytest.raises(InsufficientBalance) as refused:
        open_program(100)
    assert refused.value.field == "budget_gpu_hours"
    assert int(refused.value.numbers["left_gpu_us"]) < int(refused.value.numbers["needed_gpu_us"])
    with hub.database.read() as connection:
        items = programs.list_programs(connection).items
    assert (
        sum(item.budget_gpu_us for item in items if item.id.startswith("large"))
        == MOST * 25_000_000 * 3_600_000_000
    )
    hub.database.close()
