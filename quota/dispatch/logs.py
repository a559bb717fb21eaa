"""Logs of jobs: found in the database, asked of the scheduler that leads, and passed on within bounds.

The database is read before and written before the reply begins; while a log is passed on, no session is held.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from threading import Event
from typing import Any, NoReturn

import httpx2
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.types import Receive, Scope, Send

from quota.addresses import is_encrypted
from quota.audit import reading
from quota.db import Database
from quota.dispatch.lease import Leader, read_leader
from quota.errors import (
    BadRequest,
    ClusterUnreachable,
    LogsGone,
    LogsNotStarted,
    NoLeader,
    NotFound,
    TooManyLogs,
    filled,
)
from quota.i18n import Language, text
from quota.identity import service as identity
from quota.jobs.tables import attempts, jobs
from quota.schemas.identity import Caller
from quota.settings import Settings

MEDIA_TYPE = "text/plain"
RETRY_S = 5
"""When it may work again after a take-over, or a moment's trouble of the cluster."""
CONNECT_S = 3.0
OPEN_S = 15.0
"""How long the leader may take to open a log: it asks the cluster, and the cluster its node."""
GLANCE_S = 0.25
"""How often a silent log looks whether its time is over or the service is asked to stop."""
SLACK_S = 10.0
"""How much longer the leader would read than the service does."""
CUT = (
    "[gpuhub] cut: {limit_bytes} bytes are the most that one request answers; ask for fewer lines, or since_s"
)
OVER = "[gpuhub] over: one request reads for {limit_s} s at most; ask again to go on"
BROKEN = "[gpuhub] broken off: the scheduler or the cluster stopped answering; ask again"
STOPPING = "[gpuhub] broken off: the service is being restarted; ask again"
LAST_LINES = (CUT, OVER, BROKEN, STOPPING)
"""What stands under a log that has more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of which pod's log, and how it is called on its cluster."""

    job_id: str
    attempt: int
    cluster: str
    pod: int
    tail_lines: int
    since_s: int | None
    follow: bool
    timestamps: bool


def find(
    database: Database,
    caller: Caller,
    job_id: str,
    attempt: int | None,
    pod: int,
    *,
    tail_lines: int,
    since_s: int | None,
    follow: bool,
    timestamps: bool,
) -> tuple[Wanted, Leader]:
    """What to ask, and whom. Another organization's job is as unknown as none. Blocks.

    Raises NotFound, BadRequest, LogsNotStarted, NoLeader.
    """
    with database.read() as connection:
        job = connection.execute(
            select(jobs.c.organization_id, jobs.c.attempt, jobs.c.pods).where(jobs.c.id == job_id)
        ).one_or_none()
        if job is None or not identity.sees(caller, job.organization_id):
            raise NotFound("there is no job {job_id}", job_id=job_id)
        if pod >= job.pods:
            raise BadRequest("the job has {pods} pods, the first is 0", field="pod", pods=job.pods)
        number = job.attempt if attempt is None else attempt
        if number > job.attempt:
            raise NotFound("job {job_id} has no attempt {attempt}", job_id=job_id, attempt=number)
        if number == 0:
            raise LogsNotStarted()
        cluster = connection.execute(
            select(attempts.c.cluster).where(attempts.c.job_id == job_id, attempts.c.attempt == number)
        ).scalar_one()
        leader = read_leader(connection)
    if leader is None:
        _nobody_leads()
    return Wanted(job_id, number, cluster, pod, tail_lines, since_s, follow, timestamps), leader


def record_read(database: Database, caller: Caller, wanted: Wanted) -> None:
    """A log may hold anything, personal data too, so whoever reads one is in the audit trail. Blocks."""
    query: dict[str, object] = {
        "job_id": wanted.job_id,
        "attempt": wanted.attempt,
        "pod": wanted.pod,
        "tail_lines": wanted.tail_lines,
        "since_s": wanted.since_s,
        "follow": wanted.follow or None,
    }
    reading.record_read(database, caller, "job.logs", query, 1)


class Log:
    """A log that the leader has opened; `close` it."""

    def __init__(self, client: httpx2.AsyncClient, answer: httpx2.Response) -> None:
        self._client = client
        self._answer = answer

    def chunks(self) -> AsyncIterator[bytes]:
        """The log as it comes. Raises RequestError where it breaks off."""
        return self._answer.aiter_raw()

    async def close(self) -> None:
        """Let the leader know that nobody reads any more."""
        await self._answer.aclose()
        await self._client.aclose()


async def open_log(leader: Leader, wanted: Wanted, settings: Settings) -> Log:
    """Ask the leader. Raises LogsNotStarted, LogsGone, TooManyLogs, NoLeader, ClusterUnreachable."""
    params = {
        "cluster": wanted.cluster,
        "object": f"{wanted.job_id}-{wanted.attempt}",
        "pod": str(wanted.pod),
        "tail_lines": str(wanted.tail_lines),
        "follow": str(wanted.follow).lower(),
        "timestamps": str(wanted.timestamps).lower(),
        # one more than is passed on, so that a log of just this size is not taken for a longer one
        "limit_bytes": str(settings.log_limit_bytes + 1),
        "limit_s": str(settings.log_limit_s + SLACK_S),
        **({} if wanted.since_s is None else {"since_s": str(wanted.since_s)}),
    }
    # one client for each log: its only connection ends with it, and no event loop has another's
    client = httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {leader.secret}"},
        timeout=httpx2.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        verify=is_encrypted(leader.url),
    )
    answer = None
    try:
        async with asyncio.timeout(OPEN_S):
            answer = await client.send(
                client.build_request("GET", f"{leader.url}/-/logs", params=params), stream=True
            )
            if answer.status_code != 200:
                await answer.aread()
                _refused(answer, wanted)
    except BaseException as error:
        if answer is not None:
            await answer.aclose()
        await client.aclose()
        if isinstance(error, httpx2.RequestError | httpx2.InvalidURL | TimeoutError):
            _nobody_leads()
        raise
    return Log(client, answer)


def _refused(answer: httpx2.Response, wanted: Wanted) -> NoReturn:
    match _code(answer):
        case "not_started":
            raise LogsNotStarted()
        case "gone":
            raise LogsGone()
        case "too_many":
            raise TooManyLogs(
                "the scheduler reads as many logs as it may; try again in {retry_after_s} s",
                retry_after_s=RETRY_S,
            )
        case "unavailable":
            raise ClusterUnreachable(
                "cluster {cluster} does not answer; try again in {retry_after_s} s",
                cluster=wanted.cluster,
                retry_after_s=RETRY_S,
            )
        case _:  # 401: it does not lead any more
            _nobody_leads()


def _code(answer: httpx2.Response) -> str:
    try:
        content = json.loads(answer.content)
    except ValueError:
        return ""
    return str(content.get("code", "")) if isinstance(content, dict) else ""


def _nobody_leads() -> NoReturn:
    raise NoLeader(
        "no scheduler that leads can be reached; try again in {retry_after_s} s", retry_after_s=RETRY_S
    )


class LogAnswer(StreamingResponse):
    """Passes a log on until it ends, is cut, or nobody reads it any more; then nothing of it is left."""

    def __init__(
        self, log: Log, settings: Settings, stopping: Event, language: Language, done: Callable[[], None]
    ) -> None:
        """`done` is called once, whatever happens."""
        super().__init__((), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
        self._log = log
        self._settings = settings
        self._stopping = stopping
        self._language = language
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        passing = asyncio.ensure_future(self._pass_on(send))
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            # whoever takes nothing is let go of a little later than whoever reads
            limit_s = self._settings.log_limit_s + SLACK_S
            await asyncio.wait({passing, leaving}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (passing, leaving):
                task.cancel()
            await asyncio.gather(passing, leaving, return_exceptions=True)
            await asyncio.shield(self._close())
        if not passing.cancelled() and (trouble := passing.exception()) is not None:
            raise trouble

    async def _close(self) -> None:
        try:
            await self._log.close()
        finally:
            self._done()

    async def _pass_on(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        try:
            async for part in self._parts():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            return  # the reader has left

    async def _parts(self) -> AsyncIterator[bytes]:
        """The log within its bounds, and where it does not end by itself a last line that says so."""
        left, ends_line, last = self._settings.log_limit_bytes, True, ""
        until_s = time.monotonic() + self._settings.log_limit_s
        try:
            async for chunk in self._chunks_and_silences():
                if part := chunk[:left]:
                    yield part
                    left, ends_line = left - len(part), part.endswith(b"\n")
                if last := self._why_no_more(len(chunk) > len(part), until_s):
                    break
            else:
                return
        except httpx2.RequestError:
            last = self._say(BROKEN)
        yield f"{'' if ends_line else chr(10)}{last}\n".encode()

    def _why_no_more(self, is_cut: bool, until_s: float) -> str:
        if is_cut:
            return self._say(CUT, limit_bytes=self._settings.log_limit_bytes)
        if self._stopping.is_set():
            return self._say(STOPPING)
        return (
            "" if time.monotonic() < until_s else self._say(OVER, limit_s=f"{self._settings.log_limit_s:g}")
        )

    async def _chunks_and_silences(self) -> AsyncIterator[bytes]:
        """Chunks as they come, and nothing (b"") now and then while none comes."""
        chunks = self._log.chunks()
        coming = asyncio.ensure_future(_next(chunks))
        try:
            while True:
                await asyncio.wait({coming}, timeout=GLANCE_S)
                if not coming.done():
                    yield b""
                    continue
                chunk = coming.result()
                if chunk is None:
                    return
                yield chunk
                coming = asyncio.ensure_future(_next(chunks))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    def _say(self, template: str, **values: object) -> str:
        return filled(text(self._language, "details", template) or template, values)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _until_left(receive: Receive) -> None:
    message: Any = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
