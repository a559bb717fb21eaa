"""Snapshot and feed: everything once, then every change, whoever commits when; both databases."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.db import Database, Tx, feed_head, feed_rows
from quota.dispatch import feed
from quota.errors import BadRequest, CursorExpired, HubError
from quota.fleet import service as fleet
from quota.identity import service as identity
from quota.identity import tokens
from quota.schemas.fleet import NewGpuClass, NodeChange
from quota.schemas.identity import NewOrganization, NewToken, Role
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import ClusterObject, FeedItem, JobState, StopReason
from tests.builders import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    a_member,
    ended,
    freed,
    lost,
    node_reports,
    started,
)

Objects = dict[tuple[str, str], FeedItem]


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def follow(objects: Objects, cursor: int, database: Database, limit: int = 2000) -> int:
    """Apply the feed as the contract says until its head; answers the new cursor."""
    while True:
        page = feed.read_feed(database, cursor, limit)
        apply(objects, page.items)
        if page.cursor == cursor:
            return cursor
        assert page.cursor > cursor
        cursor = page.cursor


def apply(objects: Objects, items: tuple[FeedItem, ...]) -> None:
    for item in items:
        key = (item.kind, item.id)
        if key in objects and objects[key].seq > item.seq:
            continue
        objects[key] = item


def state(objects: Objects) -> dict[tuple[str, str], Any]:
    """What the objects say, without the moment they were read at and what the scheduler itself reported."""
    return {
        key: _said(getattr(item, item.kind)).model_dump() for key, item in objects.items() if not item.gone
    }


def _said(model: Any) -> Any:
    if isinstance(model, ClusterObject):
        return model.model_copy(update={"observed_through": None})
    return model


# --- snapshot --------------------------------------------------------------------------------------


def _some_jobs(hub: Hub) -> tuple[Grant, list[Job]]:
    grant = hub.award(hours="1000")
    jobs = [hub.submit(gpus_per_pod=1, restartable=True) for _ in range(7)]
    for job in jobs[:4]:
        hub.run(job, grant)
    hub.cancel(jobs[6].id)
    hub.report(ended(jobs[0], hub.now), lost(jobs[1], hub.now))
    return grant, jobs


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_of_any_size_make_the_same_snapshot(hub: Hub, limit: int) -> None:
    _some_jobs(hub)
    whole = hub.snapshot()
    assert hub.snapshot(limit) == whole
    assert {kind for kind, _ in whole[1]} == {
        "policy",
        "cluster",
        "gpu_class",
        "node",
        "organization",
        "grant",
        "job",
        "attempt",
    }


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_ended_grants_do_not_hide_the_others_from_a_page(hub: Hub, limit: int) -> None:
    for number in range(5):
        hub.award(ends_at=START_MS + HOUR_MS if number != 4 else None)
    lasting = [hub.award("beta").id, hub.award("gamma").id]
    hub.clock.advance(HOUR_MS)
    grants = [key for kind, key in hub.snapshot(limit)[1] if kind == "grant"]
    assert set(lasting) < set(grants)
    assert len(grants) == 3


def test_a_snapshot_knows_unended_jobs_and_attempts_that_keep_capacity(hub: Hub) -> None:
    _, jobs = _some_jobs(hub)
    objects = hub.snapshot()[1]
    assert {key for kind, key in objects if kind == "job"} == {job.id for job in jobs[1:6]}
    assert {key for kind, key in objects if kind == "attempt"} == {f"{job.id}-1" for job in jobs[1:4]}
    assert objects[("attempt", f"{jobs[1].id}-1")].attempt.state is JobState.ENDED


def test_preemptions_are_remembered_for_a_day(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(restartable=True)
    hub.run(job, grant)
    hub.stop(job, StopReason.PREEMPTED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=None))
    hub.clock.advance(DAY_MS - 1)
    assert hub.snapshot()[1][("job", job.id)].job.preempted_at == (START_MS,)
    hub.clock.advance(1)
    assert hub.snapshot()[1][("job", job.id)].job.preempted_at == ()


@pytest.mark.parametrize("token", ["", "x", "1", "1|moon|", "one|job|", "|job|", "1|attempt|no-number"])
def test_a_page_token_from_elsewhere_is_refused(hub: Hub, token: str) -> None:
    with pytest.raises(BadRequest) as caught:
        feed.read_snapshot(hub.database, token, 10)
    assert caught.value.field == "after"


def test_the_cursor_is_of_before_the_first_page(hub: Hub) -> None:
    page = feed.read_snapshot(hub.database, None, 2)
    job = _job_after_award(hub)
    objects: Objects = {}
    apply(objects, page.items)
    first = page.cursor
    while page.next is not None:
        page = feed.read_snapshot(hub.database, page.next, 2)
        assert page.cursor == first
        apply(objects, page.items)
    follow(objects, first, hub.database)
    assert ("job", job.id) in objects
    assert state(objects) == state(hub.snapshot()[1])


# --- feed --------------------------------------------------------------------------------------------


def test_a_cursor_at_the_head_shows_nothing(hub: Hub) -> None:
    head = hub.snapshot()[0]
    page = feed.read_feed(hub.database, head, 10)
    assert (page.cursor, page.items) == (head, ())


def test_an_ended_job_leaves_a_tombstone(hub: Hub) -> None:
    job = _job_after_award(hub)
    cursor = hub.snapshot()[0]
    hub.cancel(job.id)
    page = feed.read_feed(hub.database, cursor, 10)
    assert [(item.kind, item.id, item.gone) for item in page.items] == [("job", job.id, True)]


def test_an_object_changed_often_is_shown_once_as_it_is_now(hub: Hub) -> None:
    grant = hub.award()
    cursor = hub.snapshot()[0]
    for _ in range(5):
        hub.top_up(grant, "1")
    page = feed.read_feed(hub.database, cursor, 100)
    assert [(item.kind, item.id) for item in page.items] == [("grant", grant.id)]
    assert page.items[0].grant.paths[0].accounts[0].granted_gpu_us == 105 * 3_600_000_000


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_pages_are_cut_between_transactions(hub: Hub, limit: int) -> None:
    cursor = hub.snapshot()[0]
    _some_jobs(hub)
    objects: Objects = {}
    ends = {row.seq for row in hub.rows(feed_rows)} | {hub.row(feed_head).seq}
    while True:
        page = feed.read_feed(hub.database, cursor, limit)
        apply(objects, page.items)
        if page.cursor == cursor:
            break
        cursor = page.cursor
        assert cursor in ends
    whole: Objects = {}
    follow(whole, 0, hub.database)
    assert state(objects).items() <= state(whole).items()
    assert {key for key in whole if key[0] in ("job", "attempt")} == {
        key for key in objects if key[0] in ("job", "attempt")
    }


def test_cursors_outside_the_feed_are_expired_on_both_ends(hub: Hub) -> None:
    grant = hub.award()
    for _ in range(6):
        hub.top_up(grant, "1")
    head = hub.snapshot()[0]
    oldest = hub.database.write(lambda tx: feed.trim(tx, kept=3))
    assert oldest == head - 3
    for cursor in (head + 1, head + 100, oldest - 1, 0):
        with pytest.raises(CursorExpired) as caught:
            feed.read_feed(hub.database, cursor, 10)
        assert caught.value.numbers == {"oldest": oldest, "head": head}
    assert feed.read_feed(hub.database, oldest, 10).items
    assert min(row.seq for row in hub.rows(feed_rows)) == oldest + 1
    assert hub.database.write(lambda tx: feed.trim(tx, kept=100)) == oldest, "trimming never goes back"


def test_changes_that_the_feed_does_not_show_still_move_its_head(hub: Hub) -> None:
    """An audit row carries a sequence of its own."""
    cursor = hub.snapshot()[0]
    hub.database.write(lambda tx: tokens.create_token(tx, "op", NewToken(role=Role.AUDITOR)))
    page = feed.read_feed(hub.database, cursor, 10)
    assert (page.cursor, page.items) == (cursor + 1, ())


def test_a_transaction_that_fails_shows_nothing(hub: Hub) -> None:
    before = hub.contents()

    def work(tx: Tx) -> None:
        identity.create_organization(tx, OPERATOR, NewOrganization(id="delta", name="D"))
        tx.publish()
        raise RuntimeError("the process died")

    with pytest.raises(RuntimeError):
        hub.database.write(work)
    assert hub.contents() == before


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_whoever_follows_the_feed_knows_what_a_fresh_snapshot_says(
    engine: str, request: pytest.FixtureRequest
) -> None:
    """Random work; one reader follows after every step in small pages, one only at the end."""
    hub = a_hub(str(request.getfixturevalue(f"{engine}_url")))
    cursor, eager = hub.snapshot()
    late_cursor, late = cursor, dict(eager)
    world = _World(hub)

    @settings(max_examples=25, deadline=None)
    @given(steps=st.lists(st.integers(0, 2**32), min_size=1, max_size=12), limit=st.integers(1, 6))
    def live(steps: list[int], limit: int) -> None:
        nonlocal cursor
        for step in steps:
            world.step(random.Random(step))
            cursor = follow(eager, cursor, hub.database, limit)
        assert state(eager) == state(hub.snapshot(limit)[1])

    live()
    assert len(world.done) >= 12, f"only {sorted(world.done)} were tried"
    follow(late, late_cursor, hub.database)
    assert state(late) == state(hub.snapshot()[1]) == state(eager)
    hub.close()


def test_a_reader_that_misses_one_change_is_found_out(hub: Hub) -> None:
    """The comparison above sees a reader that skips the last item of a page."""
    cursor, objects = hub.snapshot()
    job = _job_after_award(hub)
    items = feed.read_feed(hub.database, cursor, 100).items
    assert items[-1].id == job.id
    apply(objects, items[:-1])
    assert state(objects) != state(hub.snapshot()[1])


class _World:
    """Random legal and illegal work on a hub; what was tried is in `done`."""

    WORK = (
        *("submit", "start", "started", "end") * 2,
        *("lost", "freed", "stop", "cancel", "top_up", "cut", "award"),
        *("cordon", "nodes", "rate", "token", "organization", "hours"),
    )

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.grants = [hub.award(firm, "2000") for firm in ("alpha", "beta")]
        self.jobs: list[Job] = []
        self.done: set[str] = set()
        self.rate = 1000

    def step(self, rng: random.Random) -> None:
        name = rng.choice(self.WORK)
        self.hub.clock.advance(rng.randrange(1, 20 * MINUTE_MS))
        try:
            getattr(self, f"_{name}")(rng)
        except HubError:
            name += " refused"
        self.done.add(name)

    def _job(self, rng: random.Random) -> Job:
        if not self.jobs:
            self._submit(rng)
        return rng.choice(self.jobs[-12:])

    def _submit(self, rng: random.Random) -> None:
        self.jobs.append(
            self.hub.submit(
                rng.choice(["alpha", "beta"]),
                gpus_per_pod=rng.choice([1, 2, 4]),
                pods=rng.choice([1, 2]),
                restartable=rng.random() < 0.5,
                walltime_s=rng.choice([600, 7200]),
            )
        )

    def _start(self, rng: random.Random) -> None:
        job = self._job(rng)
        grant = self.grants[0 if job.organization_id == "alpha" else 1]
        self.hub.try_start(job, grant, *rng.sample(["n0", "n1"], 2))

    def _started(self, rng: random.Random) -> None:
        job = self._job(rng)
        now = self.hub.now
        last = now if rng.random() < 0.8 else None
        self.hub.report(started(job, now, last, attempt=max(1, self.hub.job(job.id).attempt)))

    def _end(self, rng: random.Random) -> None:
        job = self._job(rng)
        code = rng.choice([0, 0, 1])
        attempt = max(1, self.hub.job(job.id).attempt)
        self.hub.report(ended(job, self.hub.now, attempt=attempt, exit_code=code))

    def _lost(self, rng: random.Random) -> None:
        job = self._job(rng)
        seen = self.hub.now - rng.randrange(5 * MINUTE_MS)
        self.hub.report(lost(job, seen, attempt=max(1, self.hub.job(job.id).attempt)))

    def _freed(self, rng: random.Random) -> None:
        job = self._job(rng)
        number = self.hub.job(job.id).attempt
        self.hub.report(*(freed(job, attempt=attempt) for attempt in range(1, number + 1)))

    def _stop(self, rng: random.Random) -> None:
        job = self._job(rng)
        self.hub.stop(job, rng.choice(list(StopReason)), attempt=max(1, self.hub.job(job.id).attempt))

    def _cancel(self, rng: random.Random) -> None:
        self.hub.cancel(self._job(rng).id, a_member("alpha"))

    def _top_up(self, rng: random.Random) -> None:
        self.hub.top_up(rng.choice(self.grants), "1")

    def _cut(self, rng: random.Random) -> None:
        self.hub.cut(rng.choice(self.grants), rng.choice(["1", "100000"]))

    def _award(self, rng: random.Random) -> None:
        self.hub.award(rng.choice(["alpha", "gamma"]), "5")

    def _cordon(self, rng: random.Random) -> None:
        body = NodeChange(cordoned=rng.random() < 0.3, reason="r")
        self.hub.database.write(lambda tx: fleet.change_node(tx, OPERATOR, "sim", "n1", body))

    def _nodes(self, rng: random.Random) -> None:
        shown = {"n0": {"h100": 8}, "n1": {"h100": rng.choice([4, 8, 16])}, "a0": {"a100": 8}}
        if rng.random() < 0.3:
            del shown[rng.choice(["n1", "a0"])]
        self.hub.report(nodes=node_reports(shown, foreign=rng.choice([0, 0, 1])))

    def _rate(self, rng: random.Random) -> None:
        body = NewGpuClass(id="a100", name="A100", rate_thousandths=rng.choice([500, 550]), price_krw=2000)
        self.hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, body))

    def _token(self, rng: random.Random) -> None:
        self.hub.database.write(lambda tx: tokens.create_token(tx, "op", NewToken(role=Role.AUDITOR)))

    def _organization(self, rng: random.Random) -> None:
        body = NewOrganization(id=f"firm-{rng.randrange(10**6)}", name="F")
        self.hub.database.write(lambda tx: identity.create_organization(tx, OPERATOR, body))

    def _hours(self, rng: random.Random) -> None:
        self.hub.clock.advance(HOUR_MS)
        self.hub.report()


def _job_after_award(hub: Hub) -> Job:
    hub.award()
    return hub.submit()


# --- late commits ------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_no_commit_is_missed_however_late_it_comes(postgres_url: str) -> None:
    """Eight writers pause between their last statement and their commit; a reader follows meanwhile."""
    hub = a_hub(postgres_url)
    made: set[str] = set()
    failures: list[BaseException] = []
    paused, go_on = threading.Semaphore(0), threading.Event()

    def write(number: int) -> None:
        rng = random.Random(number)
        try:
            for turn in range(6):
                name = f"w{number}-{turn}"
                hub.database.write(lambda tx, name=name: _create_slowly(tx, name, rng, paused, go_on))
                made.add(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    cursor, objects = hub.snapshot()
    for thread in threads:
        thread.start()
    for _ in threads:
        assert paused.acquire(timeout=30), "all writers reached their pause"
    assert follow(objects, cursor, hub.database) == cursor, "nothing is shown before it is committed"
    go_on.set()
    while any(thread.is_alive() for thread in threads):
        cursor = follow(objects, cursor, hub.database, 3)
    cursor = follow(objects, cursor, hub.database)
    assert failures == []
    assert len(made) == 48
    assert {key for kind, key in objects if kind == "organization"} >= made
    assert cursor == hub.row(feed_head).seq
    assert state(objects) == state(hub.snapshot()[1])
    hub.close()


def _create_slowly(
    tx: Tx, name: str, rng: random.Random, paused: threading.Semaphore, go_on: threading.Event
) -> None:
    identity.create_organization(tx, OPERATOR, NewOrganization(id=name, name="W"))
    if not go_on.is_set():
        paused.release()
        assert go_on.wait(30)
    if rng.random() < 0.5:
        tx.publish()
        # the feed's row is locked now: whoever comes later gets a later number and commits later
        tx.connection.exec_driver_sql(f"SELECT pg_sleep({rng.random() * 0.01})")


@pytest.mark.postgres
def test_numbers_taken_before_the_end_would_be_missed(postgres_url: str) -> None:
    """The planted error: a sequence that is counted without holding the head's row skips a late commit."""
    hub = a_hub(postgres_url)
    cursor = hub.snapshot()[0]
    with hub.database._writer.connect() as late:
        transaction = late.begin()
        late.exec_driver_sql(f"INSERT INTO feed VALUES ({cursor + 1}, 'organization', 'alpha')")
        hub.database.write(lambda tx: tx.touch("organization", "beta"))
        seen = feed.read_feed(hub.database, cursor, 10)
        transaction.rollback()
        assert [item.id for item in seen.items] == ["beta"]
        assert seen.cursor == cursor + 1, "a reader is past the late row and would never see it"
    hub.close()
