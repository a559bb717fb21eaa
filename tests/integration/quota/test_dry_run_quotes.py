"""`POST /v1/jobs?dry_run=true`: what a job would cost, who would pay, when it could start; and no trace of asking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.dispatch import ranking
from quota.jobs import switches
from quota.jobs.grant_edits import edit_grant
from quota.jobs.quoting import quote
from quota.schemas.fleet import NewGpuClass
from quota.schemas.quotes import GrantVerdict, Quote, StartOutlook
from quota.schemas.scheduling import RankingDocument, Waiting, WaitReason
from quota.schemas.switches import FreezeChange, GrantEdit, PlacementChange
from tests import databases
from tests.builders import (
    DAY_MS,
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    Api,
    Hub,
    a_hub,
    a_problem,
    a_submission,
    an_api,
    lost,
)

START_LIMIT_MS = 600_000


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        yield made


def _quote(hub: Hub, organization: str = "alpha", **fields: Any) -> Quote:
    body = a_submission(**fields)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        return quote(connection, organization, body, hub.queue, hub.clock)


def _rank(hub: Hub, *job_ids: str, code: WaitReason = WaitReason.NO_FREE_GPU) -> None:
    reasons = {job_id: Waiting(code=code) for job_id in job_ids}
    cycle = 1 if hub.queue.ranked_at_ms() is None else 2
    document = RankingDocument(
        epoch=hub.epoch, cycle=cycle, at=hub.now, order=job_ids, reasons=reasons, paces={}
    )
    hub.database.write(lambda tx: ranking.put_ranking(tx, document))


def _verdicts(found: Quote) -> dict[str, GrantVerdict]:
    return {one.grant_id: one.verdict for one in found.grants}


# --- cost -----------------------------------------------------------------------------------------------


def test_the_cost_is_that_of_the_whole_limit_at_the_classs_rate_and_price(hub: Hub) -> None:
    hub.award()
    found = _quote(hub, gpu_class="a100", pods=2, gpus_per_pod=3, walltime_s=5400)
    assert found.cost.gpu_us == 5_400_000 * 6 * 550
    assert found.cost.krw == 9 * 2100
    assert (found.gpus, found.cost.rate_id) == (6, "a100@1")


@pytest.mark.parametrize(("seconds", "krw"), [(1, 1), (6, 4), (18, 11), (24, 14)])
def test_won_are_rounded_half_up(hub: Hub, seconds: int, krw: int) -> None:
    hub.award()
    assert _quote(hub, gpu_class="a100", walltime_s=seconds).cost.krw == krw


# --- grants ---------------------------------------------------------------------------------------------


def test_the_grant_that_ends_first_is_chosen_and_of_equal_ends_the_smallest_that_suffices(hub: Hub) -> None:
    end = hub.now + 30 * DAY_MS
    later = hub.award(hours="1", ends_at=end + DAY_MS)
    big, small = hub.award(hours="50", ends_at=end), hub.award(hours="5", ends_at=end)
    short = hub.award(hours="1", ends_at=end)
    found = _quote(hub, walltime_s=2 * 3600)
    assert [one.grant_id for one in found.grants] == [short.id, small.id, big.id, later.id]
    assert found.grant_id == small.id
    assert _verdicts(found) == {
        short.id: GrantVerdict.SHORT,
        small.id: GrantVerdict.CHOSEN,
        big.id: GrantVerdict.COULD_PAY,
        later.id: GrantVerdict.SHORT,
    }


def test_each_grant_that_cannot_pay_says_why(hub: Hub) -> None:
    ends_first = hub.award(ends_at=hub.now + HOUR_MS)
    not_started = hub.award(starts_at=hub.now + DAY_MS, ends_at=hub.now + 9 * DAY_MS)
    capped = hub.award(ends_at=hub.now + 20 * DAY_MS)
    body = GrantEdit(max_gpus=1, reason="r")
    hub.database.write(lambda tx: edit_grant(tx, OPERATOR, capped.id, body))
    hub.run(hub.submit(grant_id=capped.id), capped)
    found = _quote(hub, walltime_s=7200)
    assert _verdicts(found) == {
        ends_first.id: GrantVerdict.ENDS_FIRST,
        capped.id: GrantVerdict.CAPPED,
        not_started.id: GrantVerdict.NOT_STARTED,
    }
    by_id = {one.grant_id: one for one in found.grants}
    assert by_id[ends_first.id].fitting_walltime_s == 3600
    assert not by_id[ends_first.id].could_ever
    assert by_id[capped.id].gpus_left == 0
    assert by_id[capped.id].could_ever
    assert found.estimate.waiting is not None
    assert found.estimate.waiting.code is WaitReason.GRANT_CAP


def test_what_is_held_now_comes_back_so_the_job_could_start_some_day(hub: Hub) -> None:
    grant = hub.award(hours="2")
    hub.run(hub.submit(walltime_s=7200), grant)
    found = _quote(hub)
    assert (found.grant_id, found.could_ever_start) == (None, True)
    assert found.estimate.starts is StartOutlook.LATER
    assert found.estimate.waiting is not None
    assert found.estimate.waiting.code is WaitReason.GRANT_EXHAUSTED
    assert found.estimate.waiting.numbers["needed_gpu_us"] == GPU_HOUR_US


def test_a_job_that_no_grant_outlasts_could_never_start(hub: Hub) -> None:
    hub.award(ends_at=hub.now + HOUR_MS)
    found = _quote(hub, walltime_s=7200)
    assert not found.could_ever_start
    assert found.estimate.starts is StartOutlook.NEVER
    assert found.estimate.start_by is None
    assert found.estimate.room_at_the_latest is None


def test_only_the_named_grant_is_asked(hub: Hub) -> None:
    hub.award()
    named = hub.award()
    found = _quote(hub, grant_id=named.id)
    assert list(_verdicts(found)) == [named.id]


def test_the_chosen_grant_is_the_one_that_takes_the_hold(hub: Hub) -> None:
    hub.award(hours="1", ends_at=hub.now + 30 * DAY_MS)
    small = hub.award(hours="5", ends_at=hub.now + 30 * DAY_MS)
    told = _quote(hub, gpus_per_pod=2)
    job = hub.submit(gpus_per_pod=2)
    assert told.grant_id == small.id
    hub.start(job, small)
    assert hub.grant(small.id).held_gpu_us == told.cost.gpu_us == job.cost_limit_gpu_us


# --- the wait -------------------------------------------------------------------------------------------


def test_with_room_a_grant_and_nobody_waiting_it_starts_now(hub: Hub) -> None:
    hub.award()
    estimate = _quote(hub, gpus_per_pod=8, pods=2).estimate
    assert (estimate.starts, estimate.waiting, estimate.position_at_worst) == (StartOutlook.NOW, None, 1)
    assert estimate.room_at_the_latest == hub.now
    assert (estimate.ranked_at, estimate.ranking_age_s) == (None, None)


def test_without_room_it_tells_by_when_running_attempts_must_have_made_some(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    short, long = hub.submit(gpus_per_pod=8), hub.submit(gpus_per_pod=8, walltime_s=7200)
    hub.run(short, grant, "n0")
    hub.run(long, grant, "n1")
    started = hub.now
    hub.clock.advance(MINUTE_MS)
    hub.report()
    one = _quote(hub, gpus_per_pod=4).estimate
    assert one.starts is StartOutlook.LATER
    assert one.waiting is not None
    assert one.waiting.code is WaitReason.NO_FREE_GPU
    assert one.room_at_the_latest == started + HOUR_MS + 30_000
    assert _quote(hub, gpus_per_pod=8, pods=2).estimate.room_at_the_latest == started + 2 * HOUR_MS + 30_000


def test_an_attempt_that_has_not_started_may_take_its_whole_start_limit(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    for node in ("n0", "n1"):
        hub.start(hub.submit(gpus_per_pod=8), grant, node)
    estimate = _quote(hub).estimate
    assert estimate.room_at_the_latest == hub.now + START_LIMIT_MS + HOUR_MS + 30_000


def test_what_was_lost_from_sight_frees_no_room_that_could_be_promised(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    for node in ("n0", "n1"):
        job = hub.submit(gpus_per_pod=8)
        hub.run(job, grant, node)
        hub.report(lost(job, hub.now))
    assert _quote(hub).estimate.room_at_the_latest is None


def test_who_waits_for_the_same_room_may_go_first(hub: Hub) -> None:
    hub.award()
    hub.award("beta")
    waiting = hub.submit("beta")
    estimate = _quote(hub).estimate
    assert estimate.waiting is not None
    assert (estimate.starts, estimate.waiting.code) == (StartOutlook.LATER, WaitReason.BEHIND_IN_ORDER)
    assert estimate.waiting.numbers["waiting"] == 1
    assert estimate.room_at_the_latest == hub.now
    _rank(hub, waiting.id, code=WaitReason.GRANT_EXHAUSTED)
    assert _quote(hub).estimate.starts is StartOutlook.NOW
    assert _quote(hub, gpu_class="a100").estimate.starts is StartOutlook.NOW


def test_the_position_is_behind_ones_own_jobs_and_the_rankings_age_is_told(hub: Hub) -> None:
    hub.award(hours="1000")
    hub.award("beta")
    own, others = [hub.submit() for _ in range(2)], [hub.submit("beta") for _ in range(3)]
    _rank(hub, others[0].id, own[0].id, others[1].id, own[1].id, others[2].id)
    hub.clock.advance(7000)
    estimate = _quote(hub).estimate
    assert (estimate.position, estimate.position_at_worst) == (5, 6)
    assert (estimate.ranked_at, estimate.ranking_age_s) == (hub.now - 7000, 7)


@pytest.mark.parametrize("what", ["hub", "cluster", "gpu_class", "frozen", "unseen"])
def test_what_is_shut_is_named(hub: Hub, what: str) -> None:
    hub.award()
    pause = PlacementChange(paused=True, reason="r")
    keys: dict[str, Any] = {"hub": "hub", "cluster": "sim", "gpu_class": "h100"}
    if what in keys:
        hub.database.write(lambda tx: switches.pause(tx, OPERATOR, what, keys[what], pause))  # type: ignore[arg-type]
        code = WaitReason.PLACEMENT_PAUSED
    elif what == "frozen":
        freeze = FreezeChange(frozen=True, reason="r")
        hub.database.write(lambda tx: switches.freeze(tx, OPERATOR, "alpha", freeze))
        code = WaitReason.ORGANIZATION_FROZEN
    else:
        hub.clock.advance(2 * MINUTE_MS)
        code = WaitReason.CLUSTER_UNSEEN
    estimate = _quote(hub).estimate
    assert estimate.waiting is not None
    assert (estimate.starts, estimate.waiting.code) == (StartOutlook.LATER, code)


def test_history_is_the_median_wait_of_jobs_of_the_same_size_and_needs_five(hub: Hub) -> None:
    grant = hub.award(hours="10000")
    for wait_s in (10, 20, 30, 40):
        _waited(hub, grant, wait_s, gpus=3)
    assert _quote(hub, gpus_per_pod=4).estimate.history is None
    _waited(hub, grant, 1000, gpus=4)
    _waited(hub, grant, 7, gpus=1)
    history = _quote(hub, gpus_per_pod=4).estimate.history
    assert history is not None
    assert (history.gpus_from, history.gpus_to, history.jobs, history.median_wait_s) == (3, 4, 5, 30)
    assert _quote(hub, gpu_class="a100", gpus_per_pod=4).estimate.history is None
    hub.clock.advance(8 * DAY_MS)
    assert _quote(hub, gpus_per_pod=4).estimate.history is None


def _waited(hub: Hub, grant: Any, wait_s: int, gpus: int) -> None:
    job = hub.submit(gpus_per_pod=gpus)
    hub.clock.advance(wait_s * 1000)
    hub.run(job, grant)
    hub.finish(job)


# --- over HTTP ------------------------------------------------------------------------------------------


def test_a_quote_leaves_no_trace_and_its_key_stays_free(api: Api) -> None:
    api.hub.award()
    before = api.hub.contents()
    firm, body = api.firms["alpha"], a_submission()
    told = firm.quote_job(body, "key-1")
    assert told.dry_run
    assert api.hub.contents() == before
    job = firm.submit_job(body, "key-1")
    assert job.cost_limit_gpu_us == told.cost.gpu_us
    answer = api.call(firm, "POST", "/v1/jobs", json=body.model_dump(mode="json"), params={"dry_run": "true"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"gpu_class": "v100"}, "unknown_gpu_class"),
        ({"gpus_per_pod": 9}, "never_fits"),
        ({"pods": 3, "gpus_per_pod": 8}, "never_fits"),
        ({"walltime_s": 200 * 3600}, "insufficient_balance"),
        ({"grant_id": "grant-none"}, "not_found"),
        ({"organization_id": "beta"}, "not_found"),
    ],
)
def test_a_quote_is_refused_as_the_submission_would_be(api: Api, fields: dict[str, Any], code: str) -> None:
    api.hub.award()
    body = a_submission(**fields)
    before = api.hub.contents()
    with a_problem(code) as dry:
        api.firms["alpha"].quote_job(body)
    with a_problem(code) as real:
        api.firms["alpha"].submit_job(body)
    same = {"type", "title", "status", "code", "detail", "numbers", "errors"}
    assert dry[0].problem.model_dump(include=same) == real[0].problem.model_dump(include=same)
    assert api.hub.contents() == before


def test_a_quote_under_a_key_of_another_job_is_refused_as_the_submission_would_be(api: Api) -> None:
    api.hub.award()
    api.firms["alpha"].submit_job(a_submission(), "key-1")
    before = api.hub.contents()
    with a_problem("idempotency_key_reused"):
        api.firms["alpha"].quote_job(a_submission(walltime_s=60), "key-1")
    assert api.hub.contents() == before


def test_an_organization_without_a_grant_gets_the_same_problem(api: Api) -> None:
    with a_problem("no_grant"):
        api.firms["beta"].quote_job(a_submission())


def test_an_auditor_gets_no_quote(api: Api) -> None:
    with a_problem("forbidden", 403):
        api.auditor.quote_job(a_submission())


def test_a_later_price_changes_the_quote_and_not_what_runs(api: Api) -> None:
    api.hub.award()
    first = api.firms["alpha"].quote_job(a_submission())
    api.operator.put_gpu_class(NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=5000))
    second = api.firms["alpha"].quote_job(a_submission())
    assert (first.cost.krw, second.cost.krw) == (4000, 5000)
    assert (first.cost.rate_id, second.cost.rate_id) == ("h100@1", "h100@2")
