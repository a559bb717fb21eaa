"""Logs of jobs through the API: whose, how much, how long, how many at once, and what is left of one that ended."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from deploy.cli import firm_app
from quota.audit.tables import audit
from quota.client import QuotaClient, ServiceUnavailable
from quota.dispatch.logs import BROKEN, CUT, OVER, STOPPING
from quota.dispatch.tables import scheduler_lease
from quota.errors import filled
from quota.schemas.jobs import Job
from scheduler.clusters.logs import ClusterUnavailable, NoLogs, NoLogsReason
from tests import databases
from tests.builders import Api, a_problem, an_api
from tests.integration.quota.log_leader import HandLog, LogLeader, a_log_leader

PATIENCE_S = 30


class World:
    """A served hub whose leader answers for logs, and a job that runs."""

    def __init__(self, api: Api, leader: LogLeader) -> None:
        self.api = api
        self.leader = leader
        self.alpha = api.firms["alpha"]
        self.hub = api.application.state.hub
        self._grant = api.hub.award("alpha", "1000")
        self.job = self.run()

    def run(self, **spec: Any) -> Job:
        job = self.api.hub.submit("alpha", **spec)
        self.api.hub.run(job, self._grant)
        return job

    def log_of(self, job: Job) -> HandLog:
        """A log that is written by hand from now on."""
        log = HandLog()
        self.leader.cluster.answers[f"{job.id}-1"] = log
        return log

    def refuse(self, trouble: Exception) -> None:
        self.leader.cluster.answers[f"{self.job.id}-1"] = trouble

    def read(self, client: QuotaClient | None = None, **asked: Any) -> str:
        """A whole answer."""
        target = io.BytesIO()
        size = (client or self.alpha).read_job_logs(self.job.id, target, **asked)
        assert size == len(target.getvalue())
        return target.getvalue().decode()

    def nothing_left(self) -> None:
        """Neither seats, nor open logs, nor threads."""
        deadline = threading.Event()
        for _ in range(PATIENCE_S * 100):
            watching = [thread.name for thread in threading.enumerate() if thread.name == "log-watch"]
            if not (self.hub.seats.taken() or self.leader.desk.open_now() or watching):
                return
            deadline.wait(0.01)
        raise AssertionError((self.hub.seats.taken(), self.leader.desk.open_now(), watching))


@contextmanager
def a_log_world(folder: Path, **settings: Any) -> Iterator[World]:
    with an_api(databases.new_sqlite(folder), **settings) as api, a_log_leader(api.hub) as leader:
        yield World(api, leader)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_log_world(tmp_path) as made:
        yield made
        made.nothing_left()


@contextmanager
def following(world: World) -> Iterator[Iterator[bytes]]:
    """An answer as it comes. Who drops the iterator has left."""
    url = f"/v1/jobs/{world.job.id}/logs"
    with world.alpha._http.stream("GET", url, params={"follow": "true"}, timeout=PATIENCE_S) as answer:
        assert answer.status_code == 200
        yield answer.iter_raw()


# --- what is asked, and whose ----------------------------------------------------------------------------


def test_a_firm_reads_what_its_job_wrote(world: World) -> None:
    assert world.read() == f"{world.job.id}-1 pod 0 runs\n"
    assert world.read(world.api.operator) == world.read()


def test_what_is_asked_for_reaches_the_cluster(world: World) -> None:
    world.job = world.run(pods=2)
    world.read(attempt=1, pod=1, tail_lines=7, since_s=60, follow=True, timestamps=True)
    name, pod, request = world.leader.cluster.asked[-1]
    assert (name, pod) == (f"{world.job.id}-1", 1)
    assert (request.tail_lines, request.since_s, request.follow, request.timestamps) == (7, 60, True, True)
    world.read()
    _, pod, request = world.leader.cluster.asked[-1]
    assert (pod, request.tail_lines, request.since_s, request.follow) == (0, 1000, None, False)


def test_it_is_plain_text_that_nobody_keeps(world: World) -> None:
    answer = world.api.call(world.alpha, "GET", f"/v1/jobs/{world.job.id}/logs")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"


def test_bytes_come_as_they_were_written(world: World) -> None:
    log = world.log_of(world.job)
    written = bytes(range(256)) + "가\n".encode()
    log.write(written)
    log.end()
    target = io.BytesIO()
    world.alpha.read_job_logs(world.job.id, target)
    assert target.getvalue() == written


def test_anothers_job_is_as_unknown_as_none(world: World) -> None:
    for job_id in (world.job.id, "job-nobody"):
        with a_problem("not_found", 404):
            world.api.firms["beta"].read_job_logs(job_id, io.BytesIO())
    assert world.leader.cluster.asked == []


def test_an_auditor_reads_no_logs(world: World) -> None:
    with a_problem("forbidden", 403):
        world.read(world.api.auditor)


def test_whoever_reads_a_log_is_in_the_trail(world: World) -> None:
    world.read(world.api.operator, tail_lines=5)
    world.read()
    rows = [row for row in world.api.hub.rows(audit) if row.action == "personal.read"]
    assert [row.subject for row in rows] == ["job.logs", "job.logs"]
    assert len({row.actor for row in rows}) == 2
    assert world.job.id in rows[0].detail
    assert '"tail_lines": 5' in rows[0].detail


def test_a_refused_reading_is_not_in_the_trail(world: World) -> None:
    world.refuse(NoLogs(NoLogsReason.GONE, "deleted"))
    before = world.api.hub.contents()
    with a_problem("logs_gone", 410):
        world.read()
    assert world.api.hub.contents() == before


# --- why there may be none -------------------------------------------------------------------------------


def test_a_job_that_never_started_has_written_nothing(world: World) -> None:
    world.job = world.api.hub.submit("alpha")
    with a_problem("logs_not_started", 409):
        world.read()


def test_a_pod_that_is_about_to_start_has_written_nothing(world: World) -> None:
    world.refuse(NoLogs(NoLogsReason.NOT_STARTED, "it pulls its image"))
    with a_problem("logs_not_started", 409):
        world.read()


def test_an_attempt_that_was_not_made_is_not_found(world: World) -> None:
    with a_problem("not_found", 404) as caught:
        world.read(attempt=2)
    assert caught[0].problem.numbers == {"job_id": world.job.id, "attempt": 2}


@pytest.mark.parametrize(
    "asked",
    [{"pod": 1}, {"pod": -1}, {"attempt": 0}, {"tail_lines": 100_001}, {"tail_lines": -1}, {"since_s": 0}],
)
def test_a_parameter_that_cannot_be_is_named(world: World, asked: dict[str, int]) -> None:
    with a_problem("invalid_request", 422) as caught:
        world.read(**asked)
    assert [entry["field"] for entry in caught[0].problem.errors] == list(asked)


def _refused(world: World, code: str, **headers: str) -> httpx2.Response:
    answer = world.api.call(world.alpha, "GET", f"/v1/jobs/{world.job.id}/logs", headers=headers)
    assert answer.json()["code"] == code, answer.text
    assert int(answer.headers["Retry-After"]) == int(answer.json()["numbers"]["retry_after_s"]) > 0
    return answer


def test_a_cluster_that_does_not_answer_is_told(world: World) -> None:
    world.refuse(ClusterUnavailable("timed out"))
    assert _refused(world, "cluster_unreachable").status_code == 503
    assert (
        "클러스터 sim" in _refused(world, "cluster_unreachable", **{"Accept-Language": "ko"}).json()["detail"]
    )
    with pytest.raises(ServiceUnavailable, match="cluster_unreachable: cluster sim does not answer"):
        world.read()


@pytest.mark.parametrize(
    "change",
    [
        {"expires_wall_ms": 1},
        {"url": ""},
        {"url": "http://127.0.0.1:9"},
        {"url": "no address"},
        {"door_secret": "another epoch's"},
        {"door_secret": ""},
    ],
    ids=["expired", "no address", "nobody there", "bad address", "taken over", "old lease"],
)
def test_without_a_leader_nobody_can_read(world: World, change: dict[str, Any]) -> None:
    world.api.hub.database.write(
        lambda tx: tx.connection.execute(scheduler_lease.update().values(**change)).rowcount
    )
    assert _refused(world, "no_leader").status_code == 503
    assert world.leader.cluster.asked == []


# --- bounds ------------------------------------------------------------------------------------------------


def test_too_many_bytes_are_cut_with_a_last_line(tmp_path: Path) -> None:
    with a_log_world(tmp_path, log_limit_bytes=12) as world:
        cut = filled(CUT, {"limit_bytes": 12})
        log = world.log_of(world.job)
        log.write(b"123456\n")
        log.write(b"7890123456")
        assert world.read() == f"123456\n78901\n{cut}\n"
        assert log.released.get(timeout=PATIENCE_S)
        log = world.log_of(world.job)
        log.write(b"12345678901\n")
        log.end()
        assert world.read() == "12345678901\n", "exactly the limit is not cut"
        world.nothing_left()


def test_following_ends_after_its_time(tmp_path: Path) -> None:
    with a_log_world(tmp_path, log_limit_s=0.3) as world:
        log = world.log_of(world.job)
        log.write(b"silent from here")
        assert world.read(follow=True) == f"silent from here\n{filled(OVER, {'limit_s': '0.3'})}\n"
        assert log.released.get(timeout=PATIENCE_S)
        world.nothing_left()


def test_a_token_reads_so_many_at_once(tmp_path: Path) -> None:
    with a_log_world(tmp_path, logs_per_token=1) as world:
        log = world.log_of(world.job)
        log.write(b"first\n")
        with following(world) as coming:
            assert next(coming) == b"first\n"
            assert _refused(world, "too_many_logs").status_code == 429
            other = world.run()
            world.api.operator.read_job_logs(other.id, io.BytesIO())
            log.end()
        world.nothing_left()
        world.leader.cluster.answers.clear()
        assert world.read(), "the seat is free again"


def test_all_together_read_so_many_at_once(tmp_path: Path) -> None:
    with a_log_world(tmp_path, logs_at_once=1) as world:
        log = world.log_of(world.job)
        log.write(b"first\n")
        with following(world) as coming:
            assert next(coming) == b"first\n"
            with a_problem("too_many_logs", 429):
                world.read(world.api.operator)
            log.end()
        world.nothing_left()


# --- following ---------------------------------------------------------------------------------------------


def test_lines_come_while_they_are_written_and_end_with_the_pod(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")
    with following(world) as coming:
        assert next(coming) == b"one\n"
        log.write(b"two\n")
        assert next(coming) == b"two\n"
        log.end()
        assert list(coming) == []
    assert log.released.get(timeout=PATIENCE_S)


def test_no_database_connection_is_held_meanwhile(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")
    pool = world.hub.database.engine.pool
    kept = pool.checkedout()
    with following(world) as coming:
        assert next(coming) == b"one\n"
        assert pool.checkedout() == max(kept, 1)  # the writer that is always open
        log.end()


def test_a_reader_that_leaves_a_silent_log_leaves_nothing(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")
    with following(world) as coming:
        assert next(coming) == b"one\n"
        assert world.hub.seats.taken() == 1
        assert world.leader.desk.open_now() == 1
    assert log.released.get(timeout=PATIENCE_S)
    world.nothing_left()


def test_a_cluster_that_breaks_off_is_told_in_the_last_line(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"half a li")
    log.break_off()
    assert world.read(follow=True) == f"half a li\n{BROKEN}\n"


def test_a_leader_that_dies_meanwhile_is_told_in_the_last_line(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")
    with following(world) as coming:
        assert next(coming) == b"one\n"
        world.leader.desk.close()
        assert b"".join(coming).decode() == f"{BROKEN}\n"


def test_a_service_that_stops_does_not_wait_for_followers(world: World) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")
    with following(world) as coming:
        assert next(coming) == b"one\n"
        world.hub.stopping.set()
        assert b"".join(coming).decode() == f"{STOPPING}\n"


def test_the_last_line_is_in_the_readers_language(world: World) -> None:
    world.log_of(world.job).break_off()
    with QuotaClient(
        world.api.base_url, world.alpha._http.headers["Authorization"][7:], language="ko"
    ) as korean:
        told = world.read(korean)
    assert told.startswith("[gpuhub] broken off: 스케줄러")


# --- the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def gpuhub(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("GPUHUB_URL", world.api.base_url)
    monkeypatch.setenv("GPUHUB_TOKEN", world.alpha._http.headers["Authorization"][7:])
    return lambda *words: CliRunner().invoke(firm_app(), words)


def test_the_command_shows_it(world: World, gpuhub: Any) -> None:
    done = gpuhub(
        "logs", world.job.id, "--tail", "3", "--follow", "--timestamps", "--attempt", "1", "--pod", "0"
    )
    assert (done.exit_code, done.stdout) == (0, f"{world.job.id}-1 pod 0 runs\n")
    _, _, request = world.leader.cluster.asked[-1]
    assert (request.tail_lines, request.follow, request.timestamps) == (3, True, True)


def test_the_command_says_why_there_is_none(world: World, gpuhub: Any) -> None:
    world.refuse(NoLogs(NoLogsReason.GONE, "deleted"))
    done = gpuhub("logs", world.job.id)
    assert done.exit_code == 1
    assert "logs_gone" in done.stderr
    assert "logs go with their pods" in done.stderr


def test_the_command_ends_cleanly_when_it_is_interrupted(
    world: World, gpuhub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.log_of(world.job)
    log.write(b"one\n")

    def interrupt(_self: object, _data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.commands.logs._Output.write", interrupt)
    done = gpuhub("logs", world.job.id, "--follow")
    assert (done.exit_code, done.output) == (130, "")
    assert log.released.get(timeout=PATIENCE_S)
