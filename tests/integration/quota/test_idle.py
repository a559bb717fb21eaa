"""Idle jobs from evidence to end: warnings, stops, exemptions, late and doubled evidence; both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from quota.audit.tables import audit, findings
from quota.i18n import Language
from quota.idle.tables import activity, found, warnings
from quota.jobs import idling
from quota.jobs.telling import Teller
from quota.schemas.idle import IdleState
from quota.schemas.scheduling import EndReason, JobState, StopReason
from tests.builders import GPU_HOUR_US, MINUTE_MS, Hub, a_hub, ended
from tests.integration.quota.idle_world import (
    Agent,
    a_judged_hub,
    a_running_job,
    end_exemption,
    exempt,
    given,
    live,
    send,
    set_policy,
    stops_without_cause,
)

IDLE = StopReason.IDLE_RECLAIMED


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_judged_hub(database_url) as made:
        yield made


@pytest.fixture
def agent(hub: Hub) -> Agent:
    return a_running_job(hub)


def _state(agent: Agent) -> IdleState | None:
    idle = agent.hub.job(agent.job.id).idle
    return None if idle is None else idle.state


def _asked(agent: Agent) -> str | None:
    asked: str | None = agent.hub.attempt(agent.job.id).stop_asked
    return asked


# --- from evidence to end -------------------------------------------------------------------------------


def test_a_job_that_never_works_is_warned_twice_and_stopped(hub: Hub, agent: Agent) -> None:
    begin = hub.now
    live(agent, 60)
    assert (_state(agent), given(hub, agent.job)) == (IdleState.WARNED, [(1, True)])
    idle = hub.job(agent.job.id).idle
    assert idle is not None
    assert (idle.since, idle.stop_at, idle.rule) == (begin, begin + 120 * MINUTE_MS, "from_start")
    live(agent, 45)
    assert (_state(agent), _asked(agent)) == (IdleState.WARNED_TWICE, None)
    live(agent, 15)
    assert (_state(agent), _asked(agent)) == (IdleState.STOPPING, "idle_reclaimed")
    hub.clock.advance(MINUTE_MS)
    assert hub.stop(agent.job, IDLE).outcome == "accepted"
    hub.report(ended(agent.job, hub.now, reason="stopped", exit_code=143))
    detail = hub.job(agent.job.id)
    assert (detail.state, detail.end_reason, detail.idle) == (JobState.ENDED, EndReason.IDLE_RECLAIMED, None)
    assert [warning.step for warning in detail.idle_warnings] == [1, 2]


def test_it_is_charged_to_its_stop_and_the_rest_of_its_hold_comes_free(hub: Hub, agent: Agent) -> None:
    live(agent, 120)
    hub.stop(agent.job, IDLE)
    hub.report(ended(agent.job, hub.now, reason="stopped", exit_code=143))
    [attempt] = hub.job(agent.job.id).attempts
    assert (attempt.settled_gpu_us, attempt.refunded_gpu_us) == (2 * GPU_HOUR_US, 0)
    assert attempt.released_gpu_us == attempt.held_gpu_us - 2 * GPU_HOUR_US
    assert hub.grant(attempt.grant_id).held_gpu_us == 0


def test_a_restartable_job_is_not_queued_again(hub: Hub) -> None:
    agent = a_running_job(hub, restartable=True)
    live(agent, 120)
    hub.stop(agent.job, IDLE)
    hub.report(ended(agent.job, hub.now, reason="stopped", exit_code=143))
    assert hub.job(agent.job.id).end_reason == EndReason.IDLE_RECLAIMED


def test_who_worked_once_is_stopped_after_the_sliding_span(hub: Hub, agent: Agent) -> None:
    live(agent, 60, 0.9)
    live(agent, 295)
    assert (_state(agent), _asked(agent)) == (IdleState.WARNED_TWICE, None)
    live(agent, 5)
    assert _asked(agent) == "idle_reclaimed"


def test_an_interactive_job_has_spans_of_its_own(hub: Hub) -> None:
    agent = a_running_job(hub, kind="interactive")
    assert hub.job(agent.job.id).kind == "interactive"
    live(agent, 30, 0.4)
    live(agent, 55, every=5)
    assert _asked(agent) is None
    live(agent, 5)
    assert _asked(agent) == "idle_reclaimed"


def test_the_audit_trail_tells_warnings_and_stop(hub: Hub, agent: Agent) -> None:
    live(agent, 120)
    rows = sorted(hub.rows(audit, actor="hub", subject=agent.job.id), key=lambda row: row.id)
    assert [row.action for row in rows] == [
        "attempt.idle_warning",
        "attempt.idle_warning",
        "attempt.ask_stop",
    ]
    assert "no work since 2026-11-22T00:00:00.000Z, warned at" in rows[2].reason


def test_work_withdraws_warnings_and_a_new_stretch_begins(hub: Hub, agent: Agent) -> None:
    live(agent, 110)
    assert given(hub, agent.job) == [(1, True), (2, True)]
    live(agent, 5, 0.5)
    assert (given(hub, agent.job), _state(agent)) == ([(1, False), (2, False)], IdleState.ACTIVE)
    live(agent, 295)
    assert given(hub, agent.job) == [(1, False), (2, False), (1, True), (2, True)]
    live(agent, 5)
    assert _asked(agent) == "idle_reclaimed"


def test_a_gang_with_one_busy_gpu_is_flagged_and_runs_on(hub: Hub) -> None:
    agent = a_running_job(hub, gpus=4)
    live(agent, 400, [0.0, 0.9, 0.0, 0.0])
    idle = hub.job(agent.job.id).idle
    assert idle is not None
    assert (idle.state, idle.idle_gpus, idle.gpus) == (IdleState.PARTLY_IDLE, 3, 4)
    assert given(hub, agent.job) == []


def test_little_use_is_flagged_with_its_number(hub: Hub, agent: Agent) -> None:
    live(agent, 180, 0.05)
    idle = hub.job(agent.job.id).idle
    assert idle is not None
    assert (idle.state, idle.utilization_thousandths) == (IdleState.LOW_UTILIZATION, 50)
    assert given(hub, agent.job) == []


# --- evidence -------------------------------------------------------------------------------------------


def test_doubled_overtaken_and_split_deliveries_count_once(hub: Hub, agent: Agent) -> None:
    begin = hub.now
    agent.measure(begin, hub.clock.advance(STEP := 5 * MINUTE_MS), 0.5)
    first = agent.batch()
    agent.measure(begin + STEP, hub.clock.advance(STEP), 0.25)
    second = agent.batch()
    for batch in (second, first, second):
        send(hub, batch)
    agent.die()
    agent.measure(hub.now, hub.clock.advance(STEP), 1.0)
    third = agent.batch()
    for batch in (third, third):
        send(hub, batch)
    rows = hub.rows(activity)
    assert sum(row.busy_ms for row in rows) == STEP * 1.75
    assert sum(row.observed_ms for row in rows) == 3 * STEP


def test_what_is_added_up_is_what_the_evidence_says(hub: Hub) -> None:
    agent = a_running_job(hub, gpus=2)
    for minutes, busy, delivers in ((30, 0.3, True), (70, 0.01, False), (45, 0.9, True), (20, 0.0, True)):
        live(agent, minutes, busy, delivers=delivers, judges=False)
    measured = {each.gpu_uuid: (each.busy_ms, each.observed_ms) for each in hub.job(agent.job.id).measured}
    for gpu, (busy_ms, observed_ms) in measured.items():
        rows = hub.rows(activity, gpu_uuid=gpu)
        assert (sum(row.busy_ms for row in rows), sum(row.observed_ms for row in rows)) == (
            busy_ms,
            observed_ms,
        )


def test_late_evidence_of_work_comes_before_the_stop_and_withdraws_it(hub: Hub, agent: Agent) -> None:
    """The service was away for the agent of the second half of the time; what it delivers late shows work."""
    live(agent, 60, 0.0)
    live(agent, 45, 0.0)
    assert given(hub, agent.job) == [(1, True), (2, True)]
    live(agent, 10, 0.7, delivers=False)
    live(agent, 5, 0.0, judges=False)  # delivers all three
    assert idling.judge_all(hub.database).startswith("0 warned, 0 stopped, 1 withdrawn")
    assert (_asked(agent), _state(agent)) == (None, IdleState.LOW_UTILIZATION)


def test_evidence_that_comes_after_the_stop_was_asked_for_changes_nothing(hub: Hub, agent: Agent) -> None:
    live(agent, 120)
    assert _asked(agent) == "idle_reclaimed"
    live(agent, 10, 1.0)
    assert (_asked(agent), _state(agent)) == ("idle_reclaimed", IdleState.STOPPING)


def test_an_agent_that_falls_silent_stops_nothing_and_is_found(hub: Hub, agent: Agent) -> None:
    live(agent, 110)
    live(agent, 60, delivers=False)
    assert (_asked(agent), _state(agent)) == (None, IdleState.UNOBSERVED)
    row = hub.row(findings, code="idle_not_measured")
    assert row.subject == f"{agent.job.id}-1"
    agent.die()
    live(agent, 60)
    assert _asked(agent) is None, "an hour of the last two was not measured"


def test_a_job_that_nobody_measures_is_never_warned(hub: Hub) -> None:
    agent = a_running_job(hub)
    live(agent, 400, delivers=False)
    assert (given(hub, agent.job), _state(agent)) == ([], IdleState.UNOBSERVED)
    assert hub.rows(findings, code="idle_not_measured") == []


def test_activity_is_forgotten_with_its_attempt_and_past_the_longest_span(hub: Hub, agent: Agent) -> None:
    live(agent, 700, 0.5)
    assert len(hub.rows(activity)) <= (300 + 60 + 15) // 5
    hub.finish(agent.job)
    idling.judge_all(hub.database)
    assert hub.rows(activity) == []
    assert hub.rows(found) == []


# --- two at once, and dying between -------------------------------------------------------------------------


def test_judging_again_changes_nothing(hub: Hub, agent: Agent) -> None:
    for minutes in (60, 45, 15):
        live(agent, minutes)
        before = hub.contents()
        idling.judge_all(hub.database)
        assert hub.contents() == before


def test_a_warning_whose_transaction_dies_is_given_by_the_next_run(
    hub: Hub, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(agent, 55)

    def dies(*_: object) -> None:
        raise AssertionError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr(idling, "_write_down", dies)
        before = hub.contents(activity)
        begin = hub.now
        agent.measure(begin, hub.clock.advance(5 * MINUTE_MS), 0.0)
        with pytest.raises(ExceptionGroup):
            idling.judge_all(_delivered(agent).database)
        assert given(hub, agent.job) == []
        assert {name for name, rows in hub.contents(activity).items() if rows != before[name]} == {"evidence"}
    idling.judge_all(hub.database)
    assert given(hub, agent.job) == [(1, True)]


def _delivered(agent: Agent) -> Hub:
    agent.deliver()
    return agent.hub


@pytest.mark.parametrize("after_minutes", [60, 105, 120])
def test_a_look_from_before_another_run_acted_does_nothing_more(
    hub: Hub, agent: Agent, after_minutes: int
) -> None:
    """The other replica's run read before this one wrote: behind the lock it sees that nothing is due."""
    live(agent, after_minutes - 5)
    live(agent, 5, judges=False)
    with hub.database.read() as connection:
        stale = [each for each in idling.look(connection, hub.now, 1) if each.step.warn or each.step.stop]
    assert stale
    idling.judge_all(hub.database)
    before = hub.contents()
    assert hub.database.write_each(stale, lambda tx, each: idling._act(tx, each.job_id, 1)) == [""]
    assert hub.contents() == before


def test_a_cancelled_job_is_not_stopped_as_idle(hub: Hub, agent: Agent) -> None:
    live(agent, 115)
    hub.cancel(agent.job.id)
    live(agent, 5)
    assert _asked(agent) is None


@pytest.mark.parametrize(("first", "second"), [("idle", "requeue"), ("requeue", "idle")])
def test_what_operators_and_grants_ask_for_outweighs_idleness(
    database_url: str, first: str, second: str
) -> None:
    hub = a_hub(database_url)
    agent = a_running_job(hub)
    reasons = {"idle": IDLE, "requeue": StopReason.REQUEUED}
    hub.ask_stop(agent.job, reasons[first])
    assert hub.ask_stop(agent.job, reasons[second]) == (second == "requeue")
    assert _asked(agent) == "requeued"
    assert hub.ask_stop(agent.job, StopReason.GRANT_ENDED)
    assert not hub.ask_stop(agent.job, IDLE)
    hub.close()


# --- modes, programmes, exemptions --------------------------------------------------------------------------


def test_modes_below_stop(hub: Hub, agent: Agent) -> None:
    set_policy(hub, mode="observe")
    live(agent, 150)
    assert (_state(agent), given(hub, agent.job)) == (IdleState.IDLE, [])
    set_policy(hub, mode="warn")
    live(agent, 60)
    assert (given(hub, agent.job), _asked(agent)) == ([(1, True), (2, True)], None)
    idle = hub.job(agent.job.id).idle
    assert idle is not None
    assert idle.stop_at is None
    set_policy(hub, mode="off")
    live(agent, 5)
    assert (given(hub, agent.job), _state(agent)) == ([(1, False), (2, False)], IdleState.ACTIVE)


def test_a_programme_has_rules_of_its_own(hub: Hub, agent: Agent) -> None:
    set_policy(hub, mode="off", programs={"ax": {"mode": "stop"}})
    live(agent, 120)
    assert _asked(agent) == "idle_reclaimed"


def test_a_policy_with_longer_spans_withdraws_what_it_would_not_have_given(hub: Hub, agent: Agent) -> None:
    live(agent, 105)
    spans = {"first_warning_s": 7000, "second_warning_s": 14000, "stop_s": 18000}
    set_policy(hub, batch={"from_start": spans, "sliding": spans})
    live(agent, 5)
    assert given(hub, agent.job) == [(1, False), (2, False)]


@pytest.mark.parametrize("kind", ["job", "organization", "program", "grant"])
def test_an_exemption_keeps_from_warning_and_stop_until_it_ends(hub: Hub, agent: Agent, kind: str) -> None:
    attempt = hub.attempt(agent.job.id)
    subject = {
        "job": agent.job.id,
        "organization": "alpha",
        "program": "ax",
        "grant": attempt.grant_id,
    }[kind]
    live(agent, 60)
    made = exempt(hub, kind, subject)
    live(agent, 120)
    idle = hub.job(agent.job.id).idle
    assert idle is not None
    assert (idle.state, idle.exempt_until, given(hub, agent.job)) == (
        IdleState.IDLE,
        made.expires_at,
        [(1, False)],
    )
    end_exemption(hub, made)
    live(agent, 10)
    assert (given(hub, agent.job), _asked(agent)) == ([(1, False), (1, True)], None)
    live(agent, 20, every=5)
    assert _asked(agent) == "idle_reclaimed"


def test_an_exemption_expires_by_the_clock(hub: Hub, agent: Agent) -> None:
    exempt(hub, "job", agent.job.id, for_ms=200 * MINUTE_MS)
    live(agent, 195)
    assert given(hub, agent.job) == []
    live(agent, 30, every=5)
    assert _asked(agent) == "idle_reclaimed"


def test_an_exemption_names_what_is_there_and_ends_in_the_future(hub: Hub) -> None:
    for kind in ("job", "organization", "program", "grant"):
        with pytest.raises(Exception, match="there is no"):
            exempt(hub, kind, "nobody")
    with pytest.raises(Exception, match="future"):
        exempt(hub, "organization", "alpha", for_ms=0)
    before = hub.contents()
    made = exempt(hub, "organization", "alpha")
    assert hub.contents() != before
    once = end_exemption(hub, made)
    before = hub.contents()
    assert end_exemption(hub, made) == once
    assert hub.contents() == before


# --- telling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            Language.ENGLISH,
            "first warning; its GPUs have done no work since 09:00 KST; if that stays so it is",
        ),
        (
            Language.KOREAN,
            "첫 번째 경고입니다. 09:00부터 GPU를 쓰지 않고 있습니다. 이대로면 11:00에 중지됩니다",
        ),
    ],
)
def test_a_member_reads_when_it_is_stopped_and_what_helps(
    hub: Hub, agent: Agent, language: Language, expected: str
) -> None:
    live(agent, 60)
    with hub.database.read() as connection:
        told = Teller(connection, language, hub.now).job(hub.job(agent.job.id))
    assert told.idle_text is not None
    assert told.idle_text.startswith(expected)


# --- the checker itself ---------------------------------------------------------------------------------------


def test_a_stop_without_its_warnings_is_found(sqlite_url: str) -> None:
    hub = a_hub(sqlite_url)
    agent = a_running_job(hub)
    live(agent, 120)
    with hub.database.read() as connection:
        assert stops_without_cause(connection) == []
    first = hub.rows(warnings, step=1)[0]
    for change in (
        update(warnings).where(warnings.c.step == 2).values(withdrawn_at_ms=hub.now - 1),
        update(warnings).where(warnings.c.step == 2).values(at_ms=first.at_ms + MINUTE_MS),
        update(warnings).where(warnings.c.step == 1).values(step=2),
    ):
        with hub.database.engine.connect() as connection:
            connection.execute(change)
            assert stops_without_cause(connection) != []
            connection.rollback()
    hub.close()


def test_an_idle_job_that_nobody_asked_to_stop_is_not_stopped_as_idle(hub: Hub, agent: Agent) -> None:
    live(agent, 60)
    refused = hub.stop(agent.job, IDLE)
    assert (refused.outcome, refused.code) == ("refused", "wrong_state")
