"""From readings to verdicts at the service, whatever dies, is lost or is full between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agents.detail import GpuDetail, XidCount
from agents.health import Timing
from agents.health_file import HealthFile
from agents.health_metrics import health_families
from agents.model import GpuReading, NodeReading, PastWorkload, Workload
from agents.verdicts import HealthCounts, Verdicts, VerdictSender
from quota.client import ServiceProblem, ServiceUnavailable
from quota.schemas.gpus import GpuHealth, GpuReport, GpuReportReply, GpuRow, GpuVerdict
from quota.schemas.service import Problem

S = 1000
MINUTE = 60 * S
START = 1_800_000_000_000
GPU = "GPU-1"
TIMING = Timing(hold_down_ms=10 * MINUTE, gap_ms=2 * MINUTE)


class Service:
    """Takes reports as the quota service does: verdicts once by id, rows by time."""

    def __init__(self) -> None:
        self.verdicts: dict[str, GpuVerdict] = {}
        self.rows: dict[str, GpuRow] = {}
        self.asked = 0
        self.before: Callable[[GpuReport], None] = lambda report: None
        self.after: Callable[[GpuReport], None] = lambda report: None

    def report_gpus(self, body: GpuReport, /) -> GpuReportReply:
        self.asked += 1
        self.before(body)
        new = [verdict for verdict in body.verdicts if verdict.id not in self.verdicts]
        self.verdicts |= {verdict.id: verdict for verdict in new}
        for row in body.gpus:
            known = self.rows.get(row.gpu_uuid)
            if known is None or known.observed_at < row.observed_at:
                self.rows[row.gpu_uuid] = row
        self.after(body)
        return GpuReportReply(gpus=len(body.gpus), verdicts=len(new), conflicts=0)


class Agent:
    """One life of the agent's health part over a file."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.counts = HealthCounts()
        self.file = HealthFile(folder / "agent.health.json")
        self.verdicts = Verdicts(self.file, self.counts, TIMING, at_wall=lambda wall_ms: wall_ms)
        self.sender = VerdictSender(service, self.verdicts, self.counts, 60.0)

    def read(self, at_ms: int, *gpus: GpuReading, past: tuple[PastWorkload, ...] = ()) -> None:
        self.verdicts.observe([NodeReading(START + at_ms, "n0", "boot", gpus or (a_gpu(),), past)])

    def watch(self, from_ms: int, until_ms: int, **fields: object) -> None:
        for at_ms in range(from_ms, until_ms, 10 * S):
            self.read(at_ms, a_gpu(**fields))


def a_gpu(uuid: str = GPU, xids: dict[int, int] | None = None, **fields: object) -> GpuReading:
    """A GPU; `xids` are the times (ms after the start) at which each came last."""
    up = bool(fields.pop("up", True))
    workload = fields.pop("workload", None)
    counts = tuple(XidCount(xid, "", 1, START + at_ms) for xid, at_ms in (xids or {}).items())
    return GpuReading(
        uuid,
        "h100",
        "NVIDIA H100",
        workload=workload,  # type: ignore[arg-type]
        up=up,
        detail=GpuDetail(serial="S1", pci_bus_id="0:1", driver="570", xids=counts, **fields),  # type: ignore[arg-type]
    )


def refused(status: int) -> ServiceProblem:
    return ServiceProblem(Problem(type="about:blank", title="no", status=status, code="no", detail="no"))


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_verdict_names_rule_xid_time_and_holder(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0)
    agent.read(10 * S, a_gpu(xids={79: 7 * S}, workload=Workload("job-1", 2, 0, START + 5 * S)))
    assert agent.sender.deliver_once()
    (verdict,) = service.verdicts.values()
    assert (verdict.rule, verdict.xid, verdict.at, verdict.health) == (
        "xid_hardware", 79, START + 7 * S, GpuHealth.UNHEALTHY,
    )  # fmt: skip
    assert [(each.job_id, each.attempt) for each in verdict.holders] == [("job-1", 2)]
    row = service.rows[GPU]
    assert (row.serial, row.health, row.proven) == ("S1", GpuHealth.UNHEALTHY, False)


def test_holders_are_those_who_were_there_at_that_time_also_on_mig_devices(
    tmp_path: Path, service: Service
) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0)

    def past(job: str, since_ms: int, until_ms: int, gpu: str = GPU) -> PastWorkload:
        return PastWorkload(gpu, job, 1, 0, START + since_ms, START + until_ms)

    later = Workload("job-later", 1, 0, START + 8 * S)
    agent.read(
        10 * S,
        a_gpu(xids={79: 7 * S}, workload=later),
        a_gpu("MIG-1", parent_uuid=GPU),
        past=(
            past("job-long-ago", 0, 1 * S),
            past("job-died", 0, 6 * S),
            past("job-slice", 3 * S, 9 * S, "MIG-1"),
            past("job-elsewhere", 0, 9 * S, "GPU-2"),
        ),
    )
    agent.sender.deliver_once()
    (verdict,) = service.verdicts.values()
    assert [each.job_id for each in verdict.holders] == ["job-died", "job-slice"]
    assert set(service.rows) == {GPU}, "a MIG device has no row of its own"


def test_a_storm_of_one_xid_is_one_verdict_and_one_for_each_attempt_that_it_hits(
    tmp_path: Path, service: Service
) -> None:
    agent = Agent(tmp_path, service)
    for at in range(30):
        job = Workload("job-a" if at < 15 else "job-b", 1, 0, START)
        agent.read(at * 10 * S, a_gpu(xids={94: at * 10 * S}, workload=job))
    agent.sender.deliver_once()
    assert [[each.job_id for each in verdict.holders] for verdict in service.verdicts.values()] == [
        ["job-a"], ["job-b"],
    ]  # fmt: skip


def test_recovery_is_told_with_a_row_that_is_proven(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0)
    agent.watch(10 * S, 11 * MINUTE, xids={79: 10 * S})
    agent.sender.deliver_once()
    rules = [(verdict.rule, verdict.health.value) for verdict in service.verdicts.values()]
    assert rules == [("xid_hardware", "unhealthy"), ("recovered", "healthy")]
    assert (service.rows[GPU].health, service.rows[GPU].proven) == (GpuHealth.HEALTHY, True)


def test_a_gpu_that_is_no_longer_told_of_has_no_row(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0, a_gpu(), a_gpu("GPU-2"))
    agent.read(10 * S, a_gpu())
    agent.sender.deliver_once()
    assert set(service.rows) == {GPU}
    samples = {
        (sample.labels["gpu_uuid"], sample.labels["state"]): sample.value
        for family in health_families(agent.counts)
        for sample in family.samples
        if sample.name == "hub_gpu_health"
    }
    assert samples == {
        (GPU, "healthy"): 1, (GPU, "degraded"): 0, (GPU, "unhealthy"): 0, (GPU, "lost"): 0,
    }  # fmt: skip


def test_a_reader_that_tells_no_details_has_no_health(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0, GpuReading(GPU, "h100", "NVIDIA H100"))
    assert agent.sender.deliver_once()
    assert service.asked == 0


# --- what dies, is lost, comes late or twice; see the module texts of `health_file` and `verdicts` ---


class Died(BaseException):
    """The process was killed here."""


def _die(*_: object) -> None:
    raise Died


def _strike_and_send(agent: Agent) -> None:
    agent.read(10 * S, a_gpu(xids={48: 9 * S}, recovery_action=1))
    agent.sender.deliver_once()


@pytest.mark.parametrize(
    "where", ["before the write", "before the send", "after the send", "after the reply"]
)
def test_death_at_any_step_loses_no_stored_verdict_and_tells_none_twice(
    tmp_path: Path, service: Service, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0)
    with monkeypatch.context() as dying:
        if where == "before the write":
            dying.setattr(Path, "replace", _die)
        elif where == "after the reply":
            dying.setattr(agent.verdicts, "sent", _die)
        service.before = _die if where == "before the send" else service.before
        service.after = _die if where == "after the send" else service.after
        with pytest.raises(Died):
            _strike_and_send(agent)
    service.before = service.after = lambda report: None
    again = Agent(tmp_path, service)
    again.read(70 * S, a_gpu(recovery_action=1))
    assert again.sender.deliver_once()
    told = sorted(verdict.rule for verdict in service.verdicts.values())
    lost_event = where == "before the write"
    assert told == (["recovery_action"] if lost_event else ["recovery_action", "xid_hardware"])
    assert service.rows[GPU].health is GpuHealth.UNHEALTHY
    third = Agent(tmp_path, service)
    third.read(140 * S, a_gpu(recovery_action=1))
    third.sender.deliver_once()
    assert len(service.verdicts) == len(told), "what lasts and was told is told once"


def test_after_a_restart_nobody_is_called_well_before_the_hold_down(tmp_path: Path, service: Service) -> None:
    for remembers in (True, False):
        agent = Agent(tmp_path, service)
        agent.read(0)
        agent.read(10 * S, a_gpu(xids={79: 9 * S}))
        if not remembers:
            agent.file.path.unlink()
        again = Agent(tmp_path, service)
        again.watch(20 * S, 9 * MINUTE)
        again.sender.deliver_once()
        assert not service.rows[GPU].proven
        again.watch(9 * MINUTE, 12 * MINUTE)
        again.sender.deliver_once()
        assert (service.rows[GPU].proven, service.rows[GPU].health) == (True, GpuHealth.HEALTHY)
        service.rows.clear()


def test_a_full_disk_keeps_nobody_from_being_told(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tmp_path, service)
    agent.read(0)
    with monkeypatch.context() as full:
        full.setattr(
            Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        agent.read(10 * S, a_gpu(xids={79: 9 * S}))
        agent.sender.deliver_once()
    assert len(service.verdicts) == 1
    agent.read(20 * S, a_gpu(xids={79: 9 * S}))
    assert Agent(tmp_path, service).file.read().memories[GPU].health is GpuHealth.UNHEALTHY


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format":2}', b'{"format":1,"gpus":{"a":{}},"unsent":[]}']
)
def test_a_file_that_cannot_be_understood_is_a_new_beginning(
    tmp_path: Path, service: Service, content: bytes
) -> None:
    (tmp_path / "agent.health.json").write_bytes(content)
    agent = Agent(tmp_path, service)
    agent.read(0)
    assert agent.sender.deliver_once()


def test_a_service_that_is_away_gets_everything_later(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)

    def away(report: GpuReport) -> None:
        raise ServiceUnavailable("away")

    service.before = away
    agent.read(0)
    for at in range(1, 4):
        agent.read(at * 10 * S, a_gpu(xids={xid: at * 10 * S - 1 for xid in (48, 79, 95)[:at]}))
        assert not agent.sender.deliver_once()
    assert (agent.counts.unsent, agent.counts.failed) == (3, 3)
    service.before = lambda report: None
    assert agent.sender.deliver_once()
    assert ([verdict.xid for verdict in service.verdicts.values()], agent.counts.unsent) == ([48, 79, 95], 0)


def test_a_refused_verdict_stands_in_nobodys_way(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)

    def picky(report: GpuReport) -> None:
        if any(verdict.xid == 79 for verdict in report.verdicts):
            raise refused(422)

    service.before = picky
    agent.read(0)
    agent.read(10 * S, a_gpu(xids={48: 9 * S, 79: 9 * S, 95: 9 * S}))
    assert agent.sender.deliver_once()
    assert sorted(verdict.xid or 0 for verdict in service.verdicts.values()) == [48, 95]
    assert (agent.counts.refused, agent.counts.unsent) == (1, 0)


def test_a_token_that_may_not_is_an_error_and_everything_waits(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)

    def forbids(report: GpuReport) -> None:
        raise refused(403)

    service.before = forbids
    agent.read(0)
    agent.read(10 * S, a_gpu(xids={48: 9 * S}))
    assert not agent.sender.deliver_once()
    assert agent.counts.unsent == 1


def test_the_thread_sends_at_once_and_for_the_last_time_at_its_end(tmp_path: Path, service: Service) -> None:
    agent = Agent(tmp_path, service)
    agent.sender.start()
    agent.read(0)
    agent.read(10 * S, a_gpu(xids={48: 9 * S}))
    assert agent.sender.stop(20.0)
    assert [verdict.xid for verdict in service.verdicts.values()] == [48]


def test_a_gpu_that_hangs_beside_others_names_who_holds_it(tmp_path: Path) -> None:
    """Nothing of a MIG device of its own speaks for the driver; another GPU does."""
    agent = Agent(tmp_path, Service())
    work = Workload("job-1", 1, 0, START)
    part = replace(a_gpu("MIG-1"), detail=GpuDetail(parent_uuid=GPU))
    for at_ms in range(0, 11 * MINUTE, 10 * S):
        agent.read(at_ms, a_gpu(up=at_ms == 0, workload=work), part)
    assert [verdict.rule for verdict in agent.verdicts.to_send()[1]] == ["unreadable"]
    for at_ms in range(11 * MINUTE, 22 * MINUTE, 10 * S):
        agent.read(at_ms, a_gpu(up=False, workload=work), a_gpu("GPU-2"))
    made = agent.verdicts.to_send()[1]
    assert [(each.rule, each.health, each.fault) for each in made[1:]] == [
        ("hangs", GpuHealth.UNHEALTHY, True)
    ]
    assert [(holder.job_id, holder.attempt) for holder in made[1].holders] == [("job-1", 1)]
