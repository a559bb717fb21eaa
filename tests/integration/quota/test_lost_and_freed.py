"""An attempt that is lost and freed in one report, and had run on: its slices are written in the order of time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from quota.clock import HOUR_MS
from quota.ledger.tables import accounts, transfers
from quota.schemas.scheduling import FreedItem
from tests.builders import MINUTE_MS, Hub, a_hub, lost
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


@pytest.mark.parametrize("behind_ms", [0, HOUR_MS], ids=["watermark now", "watermark behind"])
def test_what_the_grant_pays_is_settled_before_what_ran_unseen(behind_ms: int, hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=5 * 3600)
    begins = hub.now
    hub.run(job, grant)
    hub.clock.advance(4 * HOUR_MS)
    seen, gone = begins + 90 * MINUTE_MS + 1, begins + 3 * HOUR_MS + 5
    freed = FreedItem(job_id=job.id, attempt=1, ended_at=gone)
    hub.report(lost(job, seen), freed, through=hub.now - behind_ms - 2 * HOUR_MS)
    hub.report()
    rows = sorted(hub.rows(transfers, type="settle"), key=lambda row: (row.seq, row.position))
    spans = [(row.starts_at_ms, row.ends_at_ms) for row in rows]
    assert spans == sorted(spans)
    assert (spans[0][0], spans[-1][1]) == (begins, gone)
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    on_platform = hub.row(accounts, id="platform").used_gpu_us
    on_grant = hub.row(accounts, id=grant.account_id)
    assert on_platform + on_grant.used_gpu_us == (gone - begins) * 1000
    assert on_grant.held_gpu_us == 0
    with hub.database.read() as connection:
        assert violations(connection) == []
