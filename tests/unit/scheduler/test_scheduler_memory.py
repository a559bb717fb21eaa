"""What a term remembers for a moment: what was asked, told, done, refused; and what it may forget."""

from __future__ import annotations

import random
from concurrent.futures import Executor

import pytest

from quota.client import ServiceUnavailable
from quota.schemas.scheduling import FeedItem, ItemResult, LeaseRequest, PolicyObject, Waiting, WaitReason
from scheduler import planner as planner_module
from scheduler.actions import Done, Hands, StartObject
from scheduler.backoff import Backoffs
from scheduler.cache import Cache
from scheduler.clusters.port import Observation, StartOutcome
from scheduler.core.cycle import decide
from scheduler.crash import CrashPlan
from scheduler.gateway import Gateway
from scheduler.planner import Planner
from scheduler.ranking import RankingPublisher, Standing
from scheduler.reconciler import Limits, Reconciler
from scheduler.reporting import ClusterReporter
from scheduler.specs import spec_of
from scheduler.views import ClusterView
from tests.unit.scheduler.cluster_model import ClusterModel, Time, an_object
from tests.unit.scheduler.quota_model import QuotaModel
from tests.unit.scheduler.quota_objects import a_job, an_attempt
from tests.unit.scheduler.scheduler_world import HandClock, InlineExecutor
from tests.unit.scheduler.sighting_builders import MARGIN, NOW, RUNNING, STARTING, a_view, shown

LIMITS = Limits(start_limit_ms=600_000, margin_ms=MARGIN, unknown_grace_ms=60_000, keep_ms=86_400_000)


def a_cache(*items: FeedItem) -> Cache:
    """Loaded with these."""
    cache = Cache()
    cache.replace(1, items)
    return cache


def an_attempt_item() -> FeedItem:
    """An attempt that has been claimed."""
    return FeedItem(kind="attempt", id="job-1-1", seq=1, attempt=an_attempt())


def a_reconciler(time: Time, view: ClusterView, cluster: ClusterModel, told: list[Done]) -> Reconciler:
    """One that does everything at once."""
    hands = Hands({"sim": cluster}, {"sim": InlineExecutor()}, told.append, CrashPlan())
    return Reconciler({"sim": view}, hands, lambda: True, HandClock(time), random.Random(0), time.monotonic_s)


def test_what_was_done_is_not_done_again_before_the_cluster_could_show_it() -> None:
    time, told = Time(NOW), list[Done]()
    view, cluster = a_view(), ClusterModel(time)
    reconciler = a_reconciler(time, view, cluster, told)
    cache = a_cache(an_attempt_item())
    reconciler.act(cache, LIMITS)
    reconciler.act(cache, LIMITS)
    reconciler.done(told.pop())
    reconciler.act(cache, LIMITS)
    assert cluster.calls == [("start", "job-1-1")]
    view.take(Observation(NOW + MARGIN + 1, False, (), (), None), NOW)
    reconciler.act(cache, LIMITS)
    assert len(cluster.calls) == 2, "it was not there although it should be: starting twice is starting once"


def test_failed_action_waits_longer_each_time() -> None:
    time = Time()
    backoffs: Backoffs[str] = Backoffs(random.Random(0), time.monotonic_s, first_s=1, longest_s=8)
    pauses = [backoffs.failed("x") for _ in range(6)]
    assert all(0.5 * bound <= pause <= bound for pause, bound in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True))
    assert backoffs.waits("x")
    assert not backoffs.waits("y")
    time.now_ms += 8_000
    assert not backoffs.waits("x")
    backoffs.succeeded("x")
    assert backoffs.failed("x") <= 1
    backoffs.retain(lambda key: key != "x")
    assert not backoffs.waits("x")


def test_cluster_is_not_touched_without_the_lease() -> None:
    cluster, told = ClusterModel(Time()), list[Done]()
    hands = Hands({"sim": cluster}, {"sim": InlineExecutor()}, told.append, CrashPlan())
    hands.submit(StartObject("sim", spec_of(STARTING)), lambda: False)
    assert cluster.calls == []
    assert told[0].trouble


@pytest.mark.parametrize(
    ("fault", "trouble", "outcome"),
    [
        ("", "", StartOutcome.CREATED),
        ("refuse", "StartRefused: not now", None),
        ("drop", "ClusterUnavailable: the request was lost", None),
    ],
)
def test_hands_tell_how_it_went(fault: str, trouble: str, outcome: StartOutcome | None) -> None:
    cluster, told = ClusterModel(Time(), faults=[fault]), list[Done]()
    executor: Executor = InlineExecutor()
    Hands({"sim": cluster}, {"sim": executor}, told.append, CrashPlan()).submit(
        StartObject("sim", spec_of(STARTING)), lambda: True
    )
    assert (told[0].trouble, told[0].outcome) == (trouble, outcome)


def test_name_that_is_taken_anew_is_not_gone() -> None:
    view = a_view(gone=("job-1-1",))
    assert view.gone == {"job-1-1": NOW}
    view.take(Observation(NOW + 1, False, (an_object(spec_of(STARTING), NOW, ()),), (), None), NOW)
    assert view.gone == {}
    assert "job-1-1" in view.objects


def test_watermark_of_a_view_never_falls() -> None:
    view = a_view(through_ms=NOW)
    view.take(Observation(NOW - 50, False, (), (), None), NOW)
    assert view.through_ms == NOW


def test_nothing_is_reported_before_the_cluster_was_seen_whole() -> None:
    time, view = Time(), ClusterView("sim")
    view.take(Observation(NOW, False, (), (), ()), NOW)
    assert ClusterReporter(view, 1.0, time.monotonic_s).news([], set(), MARGIN) is None


def test_answered_report_is_told_again_only_if_it_still_does_not_show() -> None:
    time = Time(NOW)
    view = a_view(shown(STARTING, RUNNING))
    reporter = ClusterReporter(view, 1.0, time.monotonic_s)
    news = reporter.news([STARTING], set(), MARGIN)
    assert news is not None
    assert len(news.items) == 1
    reporter.told(news, [])
    assert reporter.news([STARTING], set(), MARGIN) is None
    time.now_ms += 5_000
    again = reporter.news([STARTING], set(), MARGIN)
    assert again is not None
    assert again.items == news.items


def test_finding_is_told_once_and_only_if_quota_can_store_it() -> None:
    reporter = ClusterReporter(a_view(), 1.0, Time().monotonic_s)
    for _ in range(2):
        reporter.find("job-1", 1, "unknown_object", "x" * 900)
        reporter.find("Not An Id", 1, "unknown_object", "")
    news = reporter.news([], set(), MARGIN)
    assert news is not None
    assert [item.job_id for item in news.items] == ["job-1"]
    reporter.told(news, [])
    reporter.find("job-1", 1, "unknown_object", "")
    later = reporter.news([], set(), MARGIN)
    assert later is None or later.items == ()


def a_planner(quota: QuotaModel, time: Time) -> tuple[Planner, Cache]:
    """With everything that quota knows."""
    cache = a_cache(*quota.objects.values())
    return Planner(cache, {"sim": a_view()}, HandClock(time), random.Random(0)), cache


def test_core_that_failed_half_way_begins_again_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(NOW)
    quota = QuotaModel(time)
    quota.submit("job-1")
    planner, _ = a_planner(quota, time)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    planner.plan(NOW)
    monkeypatch.setattr(planner_module, "decide", fail)
    with pytest.raises(ZeroDivisionError):
        planner.plan(NOW)
    monkeypatch.setattr(planner_module, "decide", decide)
    assert planner.plan(NOW).order == ("job-1",)


def test_clock_that_is_set_back_does_not_stop_the_core() -> None:
    time = Time(NOW)
    planner, _ = a_planner(QuotaModel(time), time)
    planner.plan(NOW)
    planner.plan(NOW - 10_000)


def test_refusals_of_ended_jobs_are_forgotten() -> None:
    time = Time(NOW)
    planner, cache = a_planner(QuotaModel(time), time)
    cache.apply([FeedItem(kind="job", id="job-1", seq=99, job=a_job())])
    for job_id in ("job-1", "job-2"):
        planner.refused(ItemResult(job_id=job_id, attempt=1, outcome="refused", code="capacity_taken"))
    planner.forget_ended()
    assert set(planner._refusals) == {"job-1"}


def test_ranking_after_an_unknown_outcome_is_complete() -> None:
    time = Time(NOW)
    quota = QuotaModel(time)
    lease = quota.take_lease(LeaseRequest(holder="one", instance="instance-1"))
    gateway = Gateway(quota, lease.epoch, lease.streams, lambda _: True, CrashPlan())
    publisher = RankingPublisher(gateway, 1.0, 100, time.monotonic_s)
    waits = Waiting(code=WaitReason.NO_GRANT)

    def publish(*jobs: str) -> None:
        time.now_ms += 1_000
        assert publisher.due()
        publisher.publish(Standing(jobs, dict.fromkeys(jobs, waits)), NOW)

    publish("job-1")
    publish("job-1")
    publish("job-1", "job-2")
    quota.faults = ["drop"]
    with pytest.raises(ServiceUnavailable):
        publish("job-1", "job-2", "job-3")
    publish("job-1", "job-2", "job-3")
    assert [(document.base_cycle, len(document.reasons)) for document in quota.rankings] == [
        (None, 1), (101, 1), (None, 3)
    ]  # fmt: skip


def test_policy_is_found_whatever_its_id() -> None:
    policy = PolicyObject(
        half_life_ms=1,
        lag_bound_thousandths=1,
        cluster_unseen_wall_s=1,
        start_limit_wall_s=1,
        abandonments_limit=1,
    )
    assert a_cache(FeedItem(kind="policy", id="default", seq=1, policy=policy)).policy() == policy
