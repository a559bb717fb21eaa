"""The agent's own two calls come to what `QuotaClient`'s come to: at the real service, and where it is none."""

from __future__ import annotations

import gzip
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.quota_door import QuotaDoor
from deploy.controlplane.credentials import prepare_credentials
from quota.client import QuotaClient
from quota.clock import HOUR_MS
from quota.refusals import ServiceProblem, ServiceUnavailable
from quota.schemas.gpus import GpuHealth, GpuReport, GpuRow
from quota.schemas.identity import NewToken, Role
from quota.schemas.usage import EvidenceBatch, EvidenceRow
from quota.usage.tables import evidence
from tests import databases
from tests.builders import Api, an_api

NODE = "n0"
A_ROW = EvidenceRow(
    job_id="job-0",
    attempt=1,
    gpu_uuid="GPU-0",
    gpu_class="h100",
    node=NODE,
    hour=0,
    agent_epoch="0123456789abcdef",
    seq=1,
    busy_ms=1,
    observed_ms=2,
)
A_BATCH = EvidenceBatch(rows=(A_ROW,))
Doors = Callable[..., QuotaDoor]
KINDS = pytest.mark.parametrize("kind", [QuotaDoor, QuotaClient])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path_factory.mktemp("hub"))) as made:
        yield made


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Makes doors of a kind, and closes those that have something to close."""
    with ExitStack() as closing:

        def a_door(kind: type[QuotaDoor], *arguments: object) -> QuotaDoor:
            made = kind(*arguments)
            return closing.enter_context(made) if isinstance(made, QuotaClient) else made

        yield a_door


@pytest.fixture(scope="module")
def token(api: Api) -> str:
    return api.operator.create_token(NewToken(role=Role.AGENT, node=NODE)).secret


def a_batch(api: Api, job_id: str, epoch: str) -> EvidenceBatch:
    hour_ms = api.hub.clock.now_ms() // HOUR_MS * HOUR_MS
    row = A_ROW.model_copy(update={"job_id": job_id, "hour": hour_ms, "agent_epoch": epoch})
    return EvidenceBatch(rows=(row,))


def a_report(api: Api, gpu_uuid: str, node: str = NODE) -> GpuReport:
    row = GpuRow(
        gpu_uuid=gpu_uuid,
        node=node,
        gpu_class="h100",
        model="서울 H100",
        health=GpuHealth.HEALTHY,
        proven=False,
        observed_at=api.hub.clock.now_ms(),
    )
    return GpuReport(gpus=(row,))


@KINDS
def test_evidence_and_reports_arrive(api: Api, token: str, kind: type[QuotaDoor], doors: Doors) -> None:
    grant = api.hub.award(hours="10")
    job = api.hub.submit(grant_id=grant.id)
    api.hub.run(job, grant, NODE)
    door = doors(kind, f"{api.base_url}/", token)
    assert door.deliver_evidence(a_batch(api, job.id, kind.__name__.lower())).unknown == 0
    assert door.deliver_evidence(a_batch(api, "job-nobody", kind.__name__.lower())).unknown == 1
    (row,) = api.hub.rows(evidence, job_id=job.id)
    assert (row.gpu_uuid, row.busy_ms, row.observed_ms) == ("GPU-0", 1, 2)
    assert door.report_gpus(a_report(api, f"GPU-{kind.__name__}")).gpus == 1
    assert api.operator.read_gpu(f"GPU-{kind.__name__}").gpu.model == "서울 H100"
    api.hub.finish(job)


@KINDS
def test_what_the_service_refuses_is_a_problem_with_its_code(
    api: Api, token: str, kind: type[QuotaDoor], doors: Doors
) -> None:
    stranger = doors(kind, api.base_url, "ghub_nobody")
    with pytest.raises(ServiceProblem) as unknown:
        stranger.deliver_evidence(A_BATCH)
    assert (unknown.value.status, unknown.value.code) == (401, "unauthenticated")
    with pytest.raises(ServiceProblem) as foreign:
        doors(kind, api.base_url, token).report_gpus(a_report(api, "GPU-0", "n1"))
    assert foreign.value.status == 403
    assert foreign.value.detail
    nowhere = doors(kind, f"{api.base_url}/elsewhere", token)
    with pytest.raises(ServiceProblem) as missing:
        nowhere.deliver_evidence(A_BATCH)
    assert missing.value.status == 404


@KINDS
def test_a_service_that_is_gone_is_unavailable(kind: type[QuotaDoor], doors: Doors) -> None:
    with pytest.raises(ServiceUnavailable, match="POST /v1/usage/evidence"):
        doors(kind, "http://127.0.0.1:1", "token", 2.0).deliver_evidence(A_BATCH)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"hello\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
@KINDS
def test_what_is_no_answer_leaves_the_outcome_unknown(
    answer: bytes, kind: type[QuotaDoor], doors: Doors
) -> None:
    with answering(lambda connection: connection.sendall(answer)) as url, pytest.raises(ServiceUnavailable):
        doors(kind, url, "token", 10.0).deliver_evidence(A_BATCH)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 307 There\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_who_answers_but_is_not_the_service_leaves_the_outcome_unknown(answer: bytes) -> None:
    with answering(lambda connection: connection.sendall(answer)) as url, pytest.raises(ServiceUnavailable):
        QuotaDoor(url, "token", 10.0).deliver_evidence(A_BATCH)


def test_a_refusal_that_is_no_document_is_told_all_the_same() -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge"
    with (
        answering(lambda connection: connection.sendall(answer)) as url,
        pytest.raises(ServiceProblem) as refused,
    ):
        QuotaDoor(url, "token", 10.0).deliver_evidence(A_BATCH)
    assert (refused.value.status, refused.value.code, refused.value.detail) == (413, "http_413", "large")


def test_a_refusal_before_all_was_sent_is_heard() -> None:
    def refuse_early(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_RD)
        time.sleep(0.2)

    rows = tuple(A_ROW.model_copy(update={"agent_epoch": secrets.token_hex(8)}) for _ in range(80_000))
    batch = EvidenceBatch.model_construct(rows=rows)
    assert len(gzip.compress(batch.model_dump_json().encode(), 1)) > 900_000, "more than the buffers take"
    with answering(refuse_early) as url, pytest.raises(ServiceProblem) as refused:
        QuotaDoor(url, "token", 10.0).deliver_evidence(batch)
    assert refused.value.status == 413


@KINDS
def test_waiting_ends_with_the_timeout(kind: type[QuotaDoor], doors: Doors) -> None:
    with answering(lambda connection: time.sleep(1.5)) as url:
        began_s = time.monotonic()
        with pytest.raises(ServiceUnavailable, match=r"(?i)time"):
            doors(kind, url, "token", 0.2).deliver_evidence(A_BATCH)
        assert time.monotonic() - began_s < 1.4


def test_https_is_believed_only_with_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    made = prepare_credentials(tmp_path / "certificates", datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server_certificate, made.server_key)
    body = b'{"accepted": 0, "unchanged": 0, "unknown": 0}'
    heard: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as safe:
            asked = b""
            while not _whole(asked):
                asked += safe.recv(1 << 16)
            heard.append(asked)
            safe.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with answering(answer, read=False) as url:
        address = url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(ServiceUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            QuotaDoor(address, "token", 10.0).deliver_evidence(A_BATCH)
        assert heard == []
    with answering(answer, read=False) as url:
        address = url.replace("http://127.0.0.1", "https://localhost")
        trusted = ssl.create_default_context(cafile=str(made.ca))
        assert QuotaDoor(address, "token", 10.0, trusted).deliver_evidence(A_BATCH).unknown == 0
        first, *headers = heard[0].split(b"\r\n")
        assert first == b"POST /v1/usage/evidence HTTP/1.1"
        assert b"Host: %s" % address.removeprefix("https://").encode() in headers


def _whole(asked: bytes) -> bool:
    """Whether that is a request with all of its body: what stays unread when a connection is closed resets it."""
    head, found, body = asked.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")
    ]
    return bool(found) and len(body) >= lengths[0]


@contextmanager
def answering(answer: Callable[[socket.socket], None], read: bool = True) -> Iterator[str]:
    """A server of one connection: reads the head of a request, then does as it is told; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                if read:
                    heard = b""
                    while b"\r\n\r\n" not in heard:
                        heard += connection.recv(1 << 16)
                try:
                    answer(connection)
                except OSError:
                    return  # who asked has gone away

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(30)
    assert not thread.is_alive()
