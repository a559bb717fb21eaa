"""A commit that fails answers no 2xx and leaves nothing; one whose answer is lost is not done twice.

Every operation that changes something is asked, as the API's own document lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, select
from structlog.testing import capture_logs

from quota.audit import seals
from quota.clock import instant_text
from quota.identity.tables import tokens
from quota.schema import metadata
from tests.builders import Api, an_api
from tests.integration.quota.door_world import operations
from tests.integration.quota.mutations import REQUESTS, Request, more_room

Hook = Callable[[Connection], None]

TOLD_AGAIN = {"revoke_organization_tokens", "reconcile_day"}
"""Asked again they find nothing to do, and the trail says that they were asked."""
TRAIL = ("audit", "feed_head")
LEASE = ("scheduler_lease",)
"""Asked again it is renewed: its end is later by the wall."""


@pytest.fixture(scope="module", name="api")
def _api(shared_database_url: str) -> Iterator[Api]:
    # no request may wait for a turn: there are some hundreds of them
    with an_api(shared_database_url, member_requests_per_s=0, staff_requests_per_s=0) as api:
        more_room(api.hub)
        with capture_logs():  # to draw some hundred tracebacks would take longer than the tests
            yield api


def test_every_operation_that_changes_something_is_asked(api: Api) -> None:
    changing = {one.id for one in operations(api).values() if one.method != "GET"}
    assert changing - {"ask_what_if"} == set(REQUESTS), "what if is only asked"


@pytest.mark.parametrize("operation", REQUESTS)
def test_a_commit_that_fails_answers_no_2xx_and_changes_nothing(operation: str, api: Api) -> None:
    request = REQUESTS[operation](api)
    for hook in (refuse, hang_up):
        before = contents(api)
        with at_commit(api, hook) as met:
            answer = send(api, operation, request, "key")
        assert met, "the operation committed something"
        assert answer.status_code in (500, 503), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "internal_error"
        assert contents(api) == before
    again = send(api, operation, request, f"{operation} after all")
    assert 200 <= again.status_code < 300, again.text
    assert contents(api) != before


@pytest.mark.parametrize("operation", REQUESTS)
def test_a_commit_whose_answer_is_lost_is_not_done_again(operation: str, api: Api) -> None:
    request, key = REQUESTS[operation](api), f"{operation} lost"
    before = contents(api)
    with at_commit(api, commit_and_hang_up) as met:
        lost = send(api, operation, request, key)
    assert met
    assert lost.status_code >= 500, "whoever asked knows nothing"
    done = contents(api)
    assert done != before, "it was done"
    first, second = (send(api, operation, request, key) for _ in range(2))
    assert first.status_code == second.status_code
    assert steady(first) == steady(second)
    if first.status_code >= 400:
        assert first.json()["code"] == "secret_already_shown", first.text
        assert first.json()["numbers"], "it names what was made"
    left_out = TRAIL if operation in TOLD_AGAIN else LEASE if operation == "take_lease" else ()
    assert without(left_out, contents(api)) == without(left_out, done)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/grants/{grant}/statement", {"as_of": "{now}"}),
        ("/v1/exports/ledger", {"reason": "a check"}),
        ("/v1/tokens", {}),
        ("/v1/audit", {}),
    ],
)
def test_a_read_that_writes_its_trail_is_not_answered_without_it(
    path: str, query: dict[str, str], api: Api
) -> None:
    grant = api.hub.award("alpha", "10")
    api.hub.clock.advance(1000)
    seals.seal_due(api.hub.database)
    now = instant_text(api.hub.now)
    where = path.format(grant=grant.id)
    params = {name: value.format(now=now) for name, value in query.items()}
    before = contents(api)
    for hook in (refuse, hang_up):
        with at_commit(api, hook) as met:
            answer = api.call(api.auditor, "GET", where, params=params)
        assert met
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert contents(api) == before
    assert api.call(api.auditor, "GET", where, params=params).status_code == 200
    assert contents(api) != before


# --- what happens to a commit ----------------------------------------------------------------------


class DiskIsFull(Exception):
    """What a database may say at a commit."""


def refuse(_connection: Connection) -> None:
    raise DiskIsFull


def hang_up(connection: Connection) -> None:
    """The connection is gone before the commit was sent; the driver itself will say so."""
    connection.connection.dbapi_connection.close()  # type: ignore[union-attr]


def commit_and_hang_up(connection: Connection) -> None:
    """The commit reached the database, and its answer did not come back."""
    connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
    connection.connection.dbapi_connection.close()  # type: ignore[union-attr]


@contextmanager
def at_commit(api: Api, hook: Hook) -> Iterator[list[str]]:
    """Every commit of a writing transaction of the service meets `hook`; the list tells how often."""
    engine, met = api.application.state.hub.database.engine, []

    def commit(connection: Connection) -> None:
        if connection.get_execution_options().get("hub_writes"):
            met.append(hook.__name__)
            hook(connection)

    event.listen(engine, "commit", commit)
    try:
        yield met
    finally:
        event.remove(engine, "commit", commit)


def send(api: Api, operation: str, request: Request, key: str) -> Any:
    """The request over HTTP, with its key where the operation takes one."""
    known = operations(api)[operation]
    headers = {"Idempotency-Key": key} if known.has_header("Idempotency-Key") else {}
    content = None
    if known.takes_body:
        headers["Content-Type"] = "application/json"
        content = json.dumps(request.body)
    return api.call(request.client, known.method, known.url(**request.ids), content=content, headers=headers)


def contents(api: Api) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the database, but for when a token was used last: that is written now and then."""
    found = {}
    with api.hub.database.read() as connection:
        for table in metadata.sorted_tables:
            columns = [column for column in table.c if column is not tokens.c.last_used_at_ms]
            found[table.name] = sorted((tuple(row) for row in connection.execute(select(*columns))), key=repr)
    return found


def without(tables: tuple[str, ...], found: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    return {name: rows for name, rows in found.items() if name not in tables}


def steady(answer: Any) -> Any:
    """An answer without what tells the time of day."""
    body = answer.json()
    for name in ("expires_at", "wall_expires_at", "ttl_s"):
        body.pop(name, None)
    return body
