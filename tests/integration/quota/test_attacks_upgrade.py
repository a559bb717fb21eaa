"""What a release before the whole ledger left behind is answered by this one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
from alembic import command
from sqlalchemy import insert, text

from quota import schema_version
from quota.db import Database
from quota.dispatch.tables import streams
from tests import databases
from tests.builders import START_MS, HandClock, Hub

GRANT = {
    "kind": "grant",
    "id": "grant-1",
    "seq": 7,
    "grant": {
        "id": "grant-1",
        "program_id": "ax",
        "organization_id": "alpha",
        "starts_at": "2026-11-22T00:00:00.000Z",
        "ends_at": "2027-02-20T00:00:00.000Z",
        "paths": [
            {
                "accounts": [
                    {
                        "id": "grant:grant-1",
                        "granted_gpu_us": "36000000000",
                        "held_gpu_us": "0",
                        "used_gpu_us": "0",
                        "overdraft_gpu_us": "0",
                    }
                ]
            }
        ],
        "pace": None,
    },
}
DECISIONS = {"stream": "decisions", "stream_seq": 1, "seq": 7, "results": [], "objects": [GRANT]}
BATCH = b'{"epoch":1,"stream":"decisions","seq":1,"items":[]}'


@pytest.fixture
def old(database_url: str) -> Iterator[Database]:
    """A database at schema 0001 as it is when the reply to the scheduler's first batch was lost."""
    empty = database_url + ".old" if database_url.startswith("sqlite") else databases.empty_postgres()
    database = Database(empty, HandClock(START_MS))
    config = schema_version.alembic_config()
    with database.engine.execution_options(hub_writes=True).connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            insert(streams),
            {
                "stream": "decisions",
                "last_seq": 1,
                "body_sha256": hashlib.sha256(BATCH).hexdigest(),
                "reply": json.dumps(DECISIONS),
            },
        )
        connection.execute(text("UPDATE scheduler_epoch SET epoch = 1"))
    yield database
    database.close()
    if not database_url.startswith("sqlite"):
        databases.drop_postgres(empty)


def test_a_batch_whose_reply_was_lost_over_the_upgrade_is_answered(old: Database) -> None:
    schema_version.upgrade(old)
    clock = old.clock
    assert isinstance(clock, HandClock)
    reply = Hub(old, clock, epoch=1).send_decisions(BATCH)
    [item] = reply.objects
    assert item.grant is not None
    assert [path.organization_id for path in item.grant.paths] == ["alpha"]
