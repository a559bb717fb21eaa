"""What if over the API: both futures of the live hub from the scheduler that leads, and nothing of the hub changes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quota.client import ServiceProblem, ServiceUnavailable
from quota.dispatch.lease import take_lease
from quota.schemas.scheduling import LeaseRequest
from quota.schemas.what_if import GrantWhatIf, NodesWhatIf, WhatIfRequest
from scheduler.whatif.desk import WhatIfDesk
from tests.builders import DAY_MS, HOUR_MS, Api, Hub, a_problem, an_api
from tests.integration.quota.log_leader import a_log_leader

JSON = {"Content-Type": "application/json"}
HUNG = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url, what_if_limit_s=30) as made:
        yield made


def _fill(hub: Hub) -> None:
    """Alpha's job takes a node, beta's two want both; alpha's grant is small."""
    grants = {"alpha": hub.award("alpha", "20"), "beta": hub.award("beta", "1000")}
    hub.clock.advance(DAY_MS)
    running = hub.submit("alpha", gpus_per_pod=8, walltime_s=7200)
    hub.run(running, grants["alpha"], "n0")
    for _ in range(2):
        hub.submit("beta", gpus_per_pod=8, pods=2, walltime_s=3600)
    hub.clock.advance(HOUR_MS // 2)
    hub.report(through=hub.now)


def _more_nodes(number: int = 1) -> WhatIfRequest:
    change = NodesWhatIf(kind="nodes", gpu_class="h100", change=number)
    return WhatIfRequest(changes=(change,), horizon_h=8)


def test_operators_see_both_futures_and_nothing_changes(api: Api) -> None:
    _fill(api.hub)
    with a_log_leader(api.hub):
        before = api.hub.contents()
        reply = api.operator.ask_what_if(_more_nodes())
        assert api.hub.contents() == before
    assert (reply.taken_at, reply.until) == (api.hub.now, api.hub.now + 8 * HOUR_MS)
    # the running job ends in an hour and a half; then one gang after the other
    assert reply.base.organizations["beta"].mean_wait_ms == HOUR_MS // 2 + 2 * HOUR_MS
    assert reply.changed.organizations["beta"].mean_wait_ms == HOUR_MS // 2 + HOUR_MS // 2
    assert reply.difference.organizations["beta"].mean_wait_ms == -3 * HOUR_MS // 2
    assert reply.difference.organizations["alpha"].jobs == 0


def test_a_change_that_cannot_be_names_its_field(api: Api) -> None:
    _fill(api.hub)
    change = GrantWhatIf(kind="grant", id="grant-of-nobody", gpu_hours=5)
    with a_log_leader(api.hub), a_problem("invalid_request", 422) as refused:
        api.operator.ask_what_if(WhatIfRequest(changes=(change,)))
    assert refused[0].problem.errors[0]["field"] == "changes.0.id"
    assert "there are grant-" in refused[0].detail


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"changes": []}, "changes"),
        ({"changes": [{"kind": "luck"}]}, "changes.0"),
        ({"changes": [{"kind": "grant", "id": "g"}]}, "changes.0.grant"),
        ({"changes": [{"kind": "grant", "id": "g", "gpu_hours": "many"}]}, "changes.0.grant.gpu_hours"),
        ({"changes": [{"kind": "hub", "paused": True}], "horizon_h": 0}, "horizon_h"),
        ({"changes": [{"kind": "hub", "paused": True}] * 101}, "changes"),
    ],
)
def test_a_question_that_is_none_is_refused_before_anybody_is_asked(
    api: Api, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(ServiceProblem) as refused:
        api.operator._request("POST", "/v1/what-if", content=json.dumps(body).encode(), headers=JSON)
    assert refused.value.status == 422
    assert refused.value.problem.errors[0]["field"] == field


def test_only_operators_ask(api: Api) -> None:
    for client in (api.firms["alpha"], api.auditor):
        with a_problem("forbidden", 403):
            client.ask_what_if(_more_nodes())


def test_nobody_leads(api: Api) -> None:
    with pytest.raises(ServiceUnavailable, match="503"):
        api.operator.ask_what_if(_more_nodes())
    gone = LeaseRequest(
        holder="scheduler-0", instance="instance-1", url="http://127.0.0.1:9", epoch=api.hub.epoch
    )
    api.hub.database.write(lambda tx: take_lease(tx, gone, 60.0))
    with pytest.raises(ServiceUnavailable, match="503"):
        api.operator.ask_what_if(_more_nodes())


def test_one_question_at_a_time_and_not_for_ever(database_url: str) -> None:
    with an_api(database_url, what_if_limit_s=5) as api:
        _fill(api.hub)
        desk = WhatIfDesk(lambda _: True, child=HUNG)
        with a_log_leader(api.hub, what_if=desk):
            told: list[Exception] = []
            asking = threading.Thread(target=_ask, args=(api, told))
            asking.start()
            hub = api.application.state.hub
            while hub.questions._value:
                time.sleep(0.005)
            with a_problem("too_many_questions", 429) as refused:
                api.operator.ask_what_if(_more_nodes())
            assert refused[0].retry_after_s == 5
            asking.join()
        (late,) = told
        assert isinstance(late, ServiceProblem)
        assert (late.status, late.code) == (422, "question_too_long")
        assert late.problem.errors[0]["field"] == "horizon_h"
        with a_log_leader(api.hub):
            assert api.operator.ask_what_if(_more_nodes()).difference.all_jobs.mean_wait_ms < 0


def _ask(api: Api, told: list[Exception]) -> None:
    try:
        api.operator.ask_what_if(_more_nodes())
    except (ServiceProblem, ServiceUnavailable) as error:
        told.append(error)


def test_a_service_that_stops_lets_go_of_the_question(api: Api) -> None:
    _fill(api.hub)
    told: list[Exception] = []
    with a_log_leader(api.hub, what_if=WhatIfDesk(lambda _: True, child=HUNG)):
        asking = threading.Thread(target=_ask, args=(api, told))
        asking.start()
        time.sleep(0.5)
        api.application.state.hub.stopping.set()
        asking.join(10)
        assert not asking.is_alive()
    assert isinstance(told[0], ServiceUnavailable)


def test_a_scheduler_that_cannot_play_it_is_told_apart(api: Api) -> None:
    _fill(api.hub)
    with (
        a_log_leader(api.hub, what_if=WhatIfDesk(lambda _: True, child=("false",))),
        pytest.raises(ServiceUnavailable, match="503"),
    ):
        api.operator.ask_what_if(_more_nodes())
