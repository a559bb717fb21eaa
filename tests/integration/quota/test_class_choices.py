"""Jobs that accept several GPU classes: what is submitted, quoted, held and charged, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from quota.errors import GrantCapReached, InsufficientBalance, NeverFits, UnknownGpuClass
from quota.jobs import reach
from quota.jobs.lists import JobFilter, list_jobs
from quota.jobs.quoting import quote
from quota.ledger.tables import holds
from quota.schemas.quotes import StartOutlook
from quota.schemas.scheduling import JobObject, JobState, WaitReason
from scheduler.core.cycle import decide
from scheduler.core.state import State
from scheduler.translate import Moment, changes_of, start_item
from tests import databases
from tests.builders import (
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
    ended,
    node_reports,
    started,
)
from tests.property.ledger.ledger_checks import violations

BOTH = ("h100", "a100")
A100 = 550
"""The rate, in thousandths of an H100's."""


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        yield made


# --- submitting -----------------------------------------------------------------------------------


def test_a_job_says_which_classes_it_accepts_and_the_scheduler_reads_them(hub: Hub) -> None:
    hub.award()
    job = hub.submit(gpu_classes=BOTH)
    assert (job.gpu_class, job.gpu_classes) == ("h100", BOTH)
    assert hub.job(job.id).gpu_classes == BOTH
    shown = hub.snapshot()[1]["job", job.id].job
    assert isinstance(shown, JobObject)
    assert shown.gpu_classes == BOTH
    assert hub.submit().gpu_classes == ("h100",)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a100", "h100"), "begins with gpu_class, h100"),
        (("h100", "a100", "a100"), "names a100 twice"),
        (("h100", "H100"), "pattern"),
        (("h100", "a", "b", "c", "d"), "at most 4"),
    ],
)
def test_what_cannot_be_a_choice_is_refused(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        a_submission(gpu_classes=classes)


def test_a_class_that_the_hub_lacks_is_named_with_its_field(hub: Hub) -> None:
    hub.award()
    with pytest.raises(UnknownGpuClass, match="no GPU class b200") as error:
        hub.submit(gpu_classes=("h100", "b200"))
    assert error.value.field == "gpu_classes"


def test_one_class_that_fits_and_can_be_paid_is_enough(hub: Hub) -> None:
    hub.award(hours="5")
    assert hub.submit(gpus_per_pod=8, gpu_classes=BOTH).cost_limit_gpu_us == 8 * GPU_HOUR_US
    with pytest.raises(InsufficientBalance):
        hub.submit(gpus_per_pod=8)
    # two nodes of H100, one of A100
    hub.award(hours="50")
    assert hub.submit(gpu_class="a100", gpu_classes=("a100", "h100"), gpus_per_pod=8, pods=2).gpu_classes
    with pytest.raises(NeverFits, match="8 a100"):
        hub.submit(gpu_class="a100", gpu_classes=("a100", "h100"), gpus_per_pod=8, pods=3)


def test_the_refusal_is_that_of_the_class_it_prefers(hub: Hub) -> None:
    hub.award(hours="1")
    with pytest.raises(InsufficientBalance) as error:
        hub.submit(gpus_per_pod=8, gpu_classes=BOTH)
    assert error.value.numbers["needed_gpu_us"] == 8 * GPU_HOUR_US
    assert not isinstance(error.value, GrantCapReached)


def test_a_submission_without_choices_is_what_it_was(api: Api) -> None:
    """So that a key of before this field is known again, and an older service takes what a newer client sends."""
    assert "gpu_classes" not in a_submission().model_dump(mode="json")
    with a_problem("invalid_request", 422) as problems:
        api.firms["alpha"].submit_job(a_submission().model_copy(update={"gpu_classes": ("a100", "h100")}))
    assert problems[0].code == "invalid_request"


# --- starting and paying --------------------------------------------------------------------------


def test_what_it_runs_on_is_what_it_costs(hub: Hub) -> None:
    """Hold, extension and charge are those of the class that it was placed on, not of the one it prefers."""
    grant = hub.award()
    job = hub.submit(gpu_classes=BOTH, gpus_per_pod=4)
    hub.start(job, grant, "a0", gpu_class="a100")
    per_hour = 4 * GPU_HOUR_US * A100 // 1000
    assert hub.grant(grant.id).held_gpu_us == per_hour
    (hold,) = hub.rows(holds)
    assert (hold.gpu_class, hold.rate_thousandths) == ("a100", A100)
    hub.report(started(job, hub.now, hub.now))
    hub.extend(job, 1800)
    assert hub.grant(grant.id).held_gpu_us == per_hour + per_hour // 2
    begin = hub.now
    hub.clock.advance(HOUR_MS)
    hub.report(ended(job, hub.now, first=begin, last=begin))
    after = hub.grant(grant.id)
    assert (after.held_gpu_us, after.used_gpu_us) == (0, per_hour)
    assert hub.job(job.id).charged_gpu_us == per_hour


def test_a_later_attempt_may_run_on_another_class(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpu_classes=BOTH, restartable=True)
    hub.start(job, grant, "a0", gpu_class="a100")
    assert hub.job(job.id).cost_limit_gpu_us == GPU_HOUR_US * A100 // 1000
    hub.report(started(job, hub.now, hub.now))
    hub.clock.advance(MINUTE_MS)
    hub.report(ended(job, hub.now, reason="node_lost", exit_code=None))
    assert hub.job(job.id).state is JobState.QUEUED
    # it may cost as much as on the dearest class again
    assert hub.job(job.id).cost_limit_gpu_us == GPU_HOUR_US
    hub.clock.advance(HOUR_MS)
    hub.start(job, grant, "n0")
    assert [row.gpu_class for row in sorted(hub.rows(holds), key=lambda row: row.attempt)] == ["a100", "h100"]


def test_only_an_accepted_class_is_started_and_one_for_the_whole_gang(hub: Hub) -> None:
    grant = hub.award()
    plain, choosy = hub.submit(), hub.submit(gpu_classes=BOTH, pods=2)
    refused = hub.try_start(plain, grant, "a0", gpu_class="a100")
    assert (refused.outcome, refused.code) == ("refused", "invalid_request")
    item = hub.start_item(choosy, grant, "n0", "a0")
    mixed = item.model_copy(
        update={"pods": (item.pods[0], item.pods[1].model_copy(update={"gpu_class": "a100"}))}
    )
    (result,) = hub.decide(mixed).results
    assert (result.outcome, result.code) == ("refused", "invalid_request")
    assert hub.rows(holds) == []


def test_from_the_snapshot_to_the_hold(hub: Hub) -> None:
    """The scheduler's own translation and core between two words of the quota service."""
    grant = hub.award()
    first = hub.submit(gpus_per_pod=8, pods=2)
    hub.start(first, grant, "n0", "n1")
    job = hub.submit(gpus_per_pod=8, gpu_classes=BOTH)
    items = hub.snapshot()[1].values()
    moment = Moment(last_seen={"sim": hub.now})
    plan, _ = decide(State(), changes_of(items, hub.clock, moment), hub.now)
    (start,) = plan.starts
    (result,) = hub.decide(start_item(start)).results
    assert (result.job_id, result.outcome) == (job.id, "accepted")
    hold = next(row for row in hub.rows(holds) if row.job_id == job.id)
    assert (hold.gpu_class, hold.amount_gpu_us) == ("a100", start.cost_gpu_us)


# --- quotes, lists, switches ----------------------------------------------------------------------


def _quote(hub: Hub, **fields: Any) -> Any:
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        return quote(connection, "alpha", a_submission(**fields), hub.queue, hub.clock)


def test_a_quote_tells_the_cost_of_each_class_and_which_would_be_taken(hub: Hub) -> None:
    grant = hub.award(hours="30")
    found = _quote(hub, gpus_per_pod=8, gpu_classes=BOTH)
    assert [(each.gpu_class, each.cost.gpu_us, each.grant_id) for each in found.classes] == [
        ("h100", 8 * GPU_HOUR_US, grant.id),
        ("a100", 8 * GPU_HOUR_US * A100 // 1000, grant.id),
    ]
    assert (found.gpu_class, found.cost.rate_thousandths) == ("h100", 1000)
    hub.start(hub.submit(gpus_per_pod=8, pods=2), grant, "n0", "n1")
    found = _quote(hub, gpus_per_pod=8, gpu_classes=BOTH)
    assert (found.gpu_class, found.cost.rate_thousandths, found.estimate.starts) == (
        "a100",
        A100,
        StartOutlook.NOW,
    )
    assert [each.starts for each in found.classes] == [StartOutlook.LATER, StartOutlook.NOW]
    assert found.classes[0].waiting.code is WaitReason.NO_FREE_GPU


def test_a_quote_names_the_class_that_can_be_paid(hub: Hub) -> None:
    grant = hub.award(hours="5")
    found = _quote(hub, gpus_per_pod=8, gpu_classes=BOTH)
    assert (found.gpu_class, found.grant_id, found.could_ever_start) == ("a100", grant.id, True)
    assert [(each.grant_id, each.starts) for each in found.classes] == [
        (None, StartOutlook.NEVER),
        (grant.id, StartOutlook.NOW),
    ]


def test_where_nothing_starts_now_the_quote_is_of_the_class_whose_room_comes_first(hub: Hub) -> None:
    grant = hub.award(hours="100")
    hub.start(hub.submit(gpus_per_pod=8, pods=2, walltime_s=7200), grant, "n0", "n1")
    hub.start(hub.submit(gpu_class="a100", gpus_per_pod=8, walltime_s=3600), grant, "a0")
    found = _quote(hub, gpus_per_pod=8, gpu_classes=BOTH)
    rooms = [each.room_at_the_latest for each in found.classes]
    assert rooms[1] < rooms[0]
    assert (found.gpu_class, found.estimate.room_at_the_latest) == ("a100", rooms[1])


def test_lists_and_switches_find_it_under_every_class(hub: Hub) -> None:
    hub.award()
    both, plain = hub.submit(gpu_classes=BOTH), hub.submit()
    with hub.database.read() as connection:
        pages = {
            name: list_jobs(connection, OPERATOR, hub.queue, JobFilter(gpu_class=name), None, 10)
            for name in ("h100", "a100", "a10")
        }
        paused = reach.of_class(connection, "a100")
        # without a cluster's A100 the job still has its H100
        node = reach.of_node(connection, "sim", "a0")
    assert {name: {job.id for job in page.items} for name, page in pages.items()} == {
        "h100": {both.id, plain.id},
        "a100": {both.id},
        "a10": set(),
    }
    assert (paused.waiting.ids, node.waiting.count) == ((both.id,), 0)
    hub.report(nodes=node_reports({"a0": {"a100": 8}}))
    with hub.database.read() as connection:
        assert reach.of_node(connection, "sim", "a0").waiting.ids == (both.id,)
