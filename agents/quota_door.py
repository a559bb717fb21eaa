"""The agent's two calls to the quota service, over the standard library's HTTP.

`quota.client.QuotaClient` has both calls, too, with those of everybody else; with its HTTP library that takes 7.5 MiB.
Each call has a connection of its own: they are a minute apart, and the service closes one that is idle for 5 s.
"""

from __future__ import annotations

import gzip
import http.client
import socket
import ssl
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from quota.refusals import ServiceProblem, ServiceUnavailable, problem_told
from quota.schemas.gpus import GpuReport, GpuReportReply
from quota.schemas.usage import EvidenceBatch, EvidenceReply

T = TypeVar("T", bound=BaseModel)

LONGEST_CONNECT_S = 5.0


class QuotaDoor:
    """Calls one quota service with one token; thread-safe."""

    def __init__(
        self, base_url: str, token: str, timeout_s: float = 30.0, trusted: ssl.SSLContext | None = None
    ) -> None:
        """`timeout_s` bounds each wait for the other side; `trusted` is for https, by default the system's roots."""
        parts = urlsplit(base_url)
        assert parts.scheme in ("http", "https"), base_url
        assert parts.hostname, base_url
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._base_path = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {
            "Host": parts.netloc.rpartition("@")[2],
            "Authorization": f"Bearer {token}",
            "Accept-Language": "en",
            "Content-Type": "application/json",
        }
        self._told: Callable[[str], None] | None = None
        self._tls = (trusted or ssl.create_default_context()) if parts.scheme == "https" else None

    def when_sent(self, told: Callable[[str], None]) -> None:
        """Have `told` called, by the thread that asks, with the path of each request that is out and not yet answered.

        That is where a crash test ends the process.
        """
        self._told = told

    def deliver_evidence(self, body: EvidenceBatch) -> EvidenceReply:
        """Deliver cumulative evidence rows. Raises ServiceUnavailable, ServiceProblem."""
        packed = gzip.compress(body.model_dump_json().encode(), 1)
        return self._post("/v1/usage/evidence", packed, EvidenceReply, {"Content-Encoding": "gzip"})

    def report_gpus(self, body: GpuReport) -> GpuReportReply:
        """Deliver how GPUs are and verdicts on them. Raises ServiceUnavailable, ServiceProblem."""
        return self._post("/v1/gpu-reports", body.model_dump_json().encode(), GpuReportReply, {})

    def _post(self, path: str, content: bytes, reply: type[T], headers: dict[str, str]) -> T:
        connection = http.client.HTTPConnection(self._host, self._port)
        try:
            with closing(connection):
                connection.sock = self._connected()
                # who refuses a body need not have read all of it
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request("POST", self._base_path + path, content, self._headers | headers)
                if self._told is not None:
                    self._told(path)
                answer = connection.getresponse()
                told = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceUnavailable(f"POST {path}: {type(error).__name__} {error}".strip()) from error
        if 400 <= answer.status < 500:
            raise ServiceProblem(problem_told(answer.status, told))
        if not 200 <= answer.status < 300:
            raise ServiceUnavailable(f"POST {path}: answered {answer.status}")
        try:
            return reply.model_validate_json(told)
        except ValidationError as error:
            # somebody answered, but not the service: whether it ever got there is unknown
            raise ServiceUnavailable(f"POST {path}: answered {told[:80]!r}") from error

    def _connected(self) -> socket.socket:
        """A connection to the service, safe where it has to be. Raises OSError."""
        # A name as bytes is looked up as it is; for text the codec of international names is loaded.
        name = self._host.encode() if self._host.isascii() else self._host
        refused: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(
            name, self._port, type=socket.SOCK_STREAM
        ):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(min(LONGEST_CONNECT_S, self._timeout_s))
                made.connect(address)
                if self._tls is not None:
                    made = self._tls.wrap_socket(made, server_hostname=self._host)
                made.settimeout(self._timeout_s)
            except OSError as error:
                made.close()
                refused = error
            else:
                return made
        raise refused or OSError(f"{self._host} has no address")
