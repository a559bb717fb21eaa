"""Two schedulers: one is paused past its lease and goes on later. Nothing changes that was not decided already."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from crash_door import Door, Fate
from crash_workload import BRISK, Crowd, verdict
from hub_processes import Hub, Shelf, a_hub, until

from scheduler.crash import POINTS

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

LEASE_S = 2.0
FIRST, SECOND = "scheduler", "second"
PAUSE_S = (0.05, 0.3)
REFUSED_LATE = {
    "before_started_report": "stepped_down",
    "before_ended_report": "stepped_down",
    "before_ranking": "stepped_down",
}
"""Where the first thing that the paused scheduler does is to speak: it hears that it is no longer the leader."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with Shelf(tmp_path_factory, lease_ttl_s=LEASE_S) as shelf:
        yield shelf


@pytest.fixture
def hub(shelf: Shelf) -> Iterator[Hub]:
    with shelf.lend() as hub:
        yield hub


@pytest.mark.parametrize("moment", ["idle", *POINTS])
def test_paused_leader_finds_everything_done(moment: str, hub: Hub) -> None:
    with Crowd(hub, f"settled {moment}", kinds=BRISK, pause_s=PAUSE_S) as crowd:
        pause(hub, moment)
        second = lead_instead(hub)
        decided = starts(hub, SECOND)
        until(lambda: len(starts(hub, SECOND)) > len(decided) + 3, "the second scheduler works")
    hub.settle()
    before = everything(hub)
    said = len(hub.log(FIRST))
    go_on(hub)
    new = [row for then, now in zip(before, everything(hub), strict=True) for row in now if row not in then]
    assert not new, "nothing changes that was not already decided"
    if moment in REFUSED_LATE:
        assert REFUSED_LATE[moment] in hub.log(FIRST)[said:]
    if moment == "between_claim_and_create":
        assert 'outcome="done",verb="start"' in metrics(hub, FIRST), "the late creation found its name taken"
    give_back(hub, second)
    verdict(hub, crowd)


@pytest.mark.parametrize(
    "moment",
    [
        *("after_decision_sent_before_reply", "between_claim_and_create", "between_stop_and_suspend"),
        *("before_started_report", "before_ended_report"),
    ],
)
def test_paused_leader_goes_on_beside_a_busy_one(moment: str, hub: Hub) -> None:
    with Crowd(hub, f"busy {moment}", kinds=BRISK, pause_s=PAUSE_S) as crowd:
        pause(hub, moment)
        second = lead_instead(hub)
        go_on(hub)
        decided = starts(hub, SECOND)
        until(lambda: len(starts(hub, SECOND)) > len(decided) + 3, "the second scheduler works")
        assert not starts(hub, FIRST) & starts(hub, SECOND), "one epoch starts an attempt"
        give_back(hub, second)
    verdict(hub, crowd)


@pytest.mark.parametrize("path", ["decisions", "reports", "ranking", "lease"])
def test_what_an_old_leader_sent_arrives_late(path: str, tmp_path: Path) -> None:
    door = Door()
    with a_hub(tmp_path / "hub", lease_ttl_s=LEASE_S, door=door) as hub:
        epoch = epochs(hub, FIRST)[-1]
        with Crowd(hub, path, kinds=BRISK, pause_s=PAUSE_S) as crowd:
            door.rule = lambda _, asked, body: (
                Fate.HOLD if asked.endswith(path) and epoch_of(body) == epoch else Fate.DELIVER
            )
            until(lambda: door.held, f"{path} is under way")
            hub.programs[FIRST].send(signal.SIGSTOP)
            second = lead_instead(hub)
            decided = starts(hub, SECOND)
            until(lambda: len(starts(hub, SECOND)) > len(decided) + 3, "the second scheduler works")
            door.release()
            until(lambda: door.passages, f"{path} arrived")
            go_on(hub)
            give_back(hub, second)
        assert {(seen.status, json.loads(seen.answer)["code"]) for seen in door.passages} == {
            (409, "stale_epoch")
        }
        verdict(hub, crowd)
    door.close()


@pytest.mark.parametrize("path", ["decisions", "reports"])
def test_a_late_batch_after_its_repetition_changes_nothing(path: str, tmp_path: Path) -> None:
    door = Door()
    with a_hub(tmp_path / "hub", lease_ttl_s=30.0, call_timeout_s=0.8, door=door) as hub:
        with Crowd(hub, path, kinds=BRISK, pause_s=PAUSE_S) as crowd:
            door.rule = lambda _, asked, __: (
                Fate.HOLD if asked.endswith(path) and len(door.held) < 3 else Fate.DELIVER
            )
            until(lambda: len(door.held) == 3, f"{path} are under way")
            decided = starts(hub, FIRST)
            until(lambda: len(starts(hub, FIRST)) > len(decided) + 5, "the leader said it again and went on")
            door.release()
            until(lambda: len(door.passages) == 3, f"{path} arrived")
        for seen in door.passages:
            last_one_again = seen.status == 200
            assert last_one_again or json.loads(seen.answer)["code"] == "stale_sequence"
        verdict(hub, crowd)
    door.close()


def test_a_restarted_leader_is_not_harmed_by_what_it_sent_before(tmp_path: Path) -> None:
    door = Door()
    with a_hub(tmp_path / "hub", door=door) as hub:
        with Crowd(hub, "restarted", kinds=BRISK, pause_s=PAUSE_S) as crowd:
            for number in range(5):
                door.rule = lambda _, asked, __, number=number: (
                    Fate.HOLD if asked.endswith("decisions") and len(door.held) == number else Fate.DELIVER
                )
                until(lambda number=number: len(door.held) > number, "decisions are under way")
                hub.kill(FIRST)
                decided = starts(hub, FIRST)
                until(lambda decided=decided: len(starts(hub, FIRST)) > len(decided), "it decides anew")
                door.release()
                until(lambda number=number: len(door.passages) > number, "the old decisions arrived")
        assert {json.loads(seen.answer)["code"] for seen in door.passages} == {"stale_epoch"}
        taken = epochs(hub, FIRST)
        assert taken == sorted(set(taken)), "every process start takes a greater epoch"
        verdict(hub, crowd)
    door.close()


def test_a_dead_leaders_request_for_the_lease_arrives_late(tmp_path: Path) -> None:
    """It takes the lease for nobody: the living leader stands aside, and leads again when that has run out."""
    door = Door()
    with a_hub(tmp_path / "hub", lease_ttl_s=LEASE_S, door=door) as hub:
        with Crowd(hub, "ghost", kinds=BRISK, pause_s=PAUSE_S) as crowd:
            door.rule = lambda _, asked, body: (
                Fate.HOLD
                if asked.endswith("lease") and not epoch_of(body) and not door.held
                else Fate.DELIVER
            )
            hub.kill(FIRST)
            until(lambda: door.held, "it asks for the lease")
            hub.kill(FIRST)
            until(lambda: leads(hub, FIRST), "the next process leads")
            led = epochs(hub, FIRST)
            door.release()
            until(lambda: door.passages, "the dead one's request arrived")
            assert door.passages[0].status == 200
            until(lambda: len(epochs(hub, FIRST)) > len(led), "it leads again")
        verdict(hub, crowd)
    door.close()


# --- two schedulers ---


def pause(hub: Hub, moment: str) -> None:
    """Stop the first scheduler, idle or in the middle of a step, with SIGSTOP."""
    first = hub.programs[FIRST]
    if moment == "idle":
        first.send(signal.SIGSTOP)
    else:
        first.crash_at = f"{moment}:3:stop"
        hub.kill(FIRST)
    until(first.is_stopped, f"it is paused at {moment}")
    first.crash_at = ""


def lead_instead(hub: Hub) -> str:
    """Let a second scheduler take over once the lease has run out."""
    if SECOND in hub.programs:
        hub.programs[SECOND].comes_back = True
        hub.programs[SECOND].start()
    else:
        hub.add_scheduler(SECOND)
    until(lambda: leads(hub, SECOND), "the second scheduler leads")
    assert epochs(hub, SECOND)[-1] > epochs(hub, FIRST)[-1]
    return SECOND


def go_on(hub: Hub) -> None:
    """Continue the first scheduler, and wait until it knows that it does not lead."""
    hub.programs[FIRST].send(signal.SIGCONT)
    until(lambda: ready_reason(hub, FIRST) in ("lease_held", "superseded"), "it stands by")
    until(lambda: ready_reason(hub, FIRST) == "lease_held", "it asked for the lease again")


def give_back(hub: Hub, second: str) -> None:
    """End the second scheduler; the first one leads again, under a greater epoch."""
    before = epochs(hub, second)[-1]
    hub.programs[second].comes_back = False
    hub.programs[second].send(signal.SIGKILL)
    until(lambda: leads(hub, FIRST), "the first scheduler leads again")
    assert epochs(hub, FIRST)[-1] > before


def leads(hub: Hub, name: str) -> bool:
    return ready_reason(hub, name).startswith("epoch")


def ready_reason(hub: Hub, name: str) -> str:
    try:
        answer = httpx2.get(f"{hub.url(name)}/-/ready", timeout=5, trust_env=False)
    except httpx2.TransportError:
        return "gone"
    return str(answer.json()["reason"])


def metrics(hub: Hub, name: str) -> str:
    return httpx2.get(f"{hub.url(name)}/metrics", timeout=5, trust_env=False).text


def lines(hub: Hub, name: str, event: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in hub.log(name).splitlines() if f'"{event}"' in line]
    return [line for line in found if line["event"] == event]


def epochs(hub: Hub, name: str) -> list[int]:
    """The epochs that a scheduler has led under."""
    return [int(str(line["epoch"])) for line in lines(hub, name, "lease_taken")]


def starts(hub: Hub, name: str) -> set[tuple[object, object]]:
    """The attempts that a scheduler knows it has started."""
    return {(line["job"], line["attempt"]) for line in lines(hub, name, "start_decided")}


def epoch_of(body: bytes) -> int:
    """The epoch that a request speaks for; a ranking comes packed."""
    plain = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
    return int(json.loads(plain).get("epoch") or 0)


def everything(hub: Hub) -> list[list[object]]:
    """All that was ever decided, run or charged.

    Not whether an object was suspended whose stop was recorded: pods may end by themselves before that is done. Nor
    when an object was cleared away whose attempt had ended: the living leader does that in its own time.
    """
    tables = (
        "jobs",
        "attempts",
        "placements",
        "holds",
        "transfers",
        "transfer_legs",
        "slices",
        "node_capacity",
    )
    stopped = {
        name for (name,) in hub.ask("SELECT job_id || '-' || attempt FROM attempts WHERE stop_reason <> ''")
    }
    over = {
        name for (name,) in hub.ask("SELECT job_id || '-' || attempt FROM attempts WHERE capacity_held = 0")
    }
    beside = {"object_suspended": stopped, "object_deleted": over}
    events = [e for e in hub.events() if e.get("name") not in beside.get(e["event"], ())]
    return [events, *(hub.ask(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables)]
