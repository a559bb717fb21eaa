"""What-if questions: the state is read here, and played by the scheduler that leads; nothing of the hub changes.

The database is read before the leader is asked; while it plays, no session is held.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from threading import Event
from typing import Any, NoReturn

import httpx2
from pydantic import ValidationError

from quota.addresses import is_encrypted
from quota.db import Database
from quota.dispatch.lease import Leader, read_leader
from quota.dispatch.snapshots import take_state
from quota.errors import BadRequest, NoLeader, QuestionFailed, QuestionTooLong, TooManyQuestions
from quota.schemas.what_if import WhatIfReply, WhatIfRequest

RETRY_S = 5
CONNECT_S = 3.0
SLACK_S = 15.0
"""How much longer than the limit the leader's answer is waited for: it takes in the state and answers."""
GLANCE_S = 0.25
"""How often a question looks whether its asker has left or the service is asked to stop."""

IsGone = Callable[[], Coroutine[Any, Any, bool]]


def prepare(database: Database, clock_speed: int, question: WhatIfRequest) -> tuple[Leader, bytes]:
    """Whom to ask, and the question with the state of this moment. Blocks. Raises NoLeader."""
    with database.read() as connection:
        leader = read_leader(connection)
    if leader is None:
        nobody_leads()
    state = json.dumps(take_state(database, clock_speed), separators=(",", ":"), ensure_ascii=False)
    return leader, f'{{"request":{question.model_dump_json(exclude_unset=True)},"state":{state}}}'.encode()


async def ask(leader: Leader, question: bytes, limit_s: int, stopping: Event, is_gone: IsGone) -> WhatIfReply:
    """What the leader answers. Whoever leaves meanwhile ends the question, too.

    Raises BadRequest, TooManyQuestions, QuestionTooLong, QuestionFailed, NoLeader.
    """
    asking = asyncio.ensure_future(_post(leader, question, limit_s))
    try:
        while not (await asyncio.wait({asking}, timeout=GLANCE_S))[0]:
            if stopping.is_set() or await is_gone():
                nobody_leads()
        answer = asking.result()
    except (httpx2.RequestError, httpx2.InvalidURL):
        nobody_leads()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    if answer.status_code != 200:
        _refused(answer.status_code, limit_s)
    return _played(answer)


async def _post(leader: Leader, question: bytes, limit_s: int) -> httpx2.Response:
    async with httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {leader.secret}", "Content-Type": "application/json"},
        timeout=httpx2.Timeout(limit_s + SLACK_S, connect=CONNECT_S),
        trust_env=False,
        verify=is_encrypted(leader.url),
    ) as client:
        url = f"{leader.url}/-/what-if"
        return await client.post(url, params={"limit_s": str(limit_s)}, content=question)


def _refused(status: int, limit_s: int) -> NoReturn:
    match status:
        case 429:
            busy()
        case 504:
            raise QuestionTooLong(
                "it was not played within {limit_s} s: ask for fewer hours, or save the state and play it elsewhere",
                field="horizon_h",
                limit_s=limit_s,
            )
        case 413 | 500:
            _failed()
    nobody_leads()  # 401: it does not lead any more


def _played(answer: httpx2.Response) -> WhatIfReply:
    try:
        content = json.loads(answer.content)
        if "error" not in content:
            return WhatIfReply.model_validate(content)
        wrong = content["error"]
        field, why = str(wrong["field"]), str(wrong["detail"])
    except (ValueError, TypeError, KeyError, ValidationError):
        _failed()
    raise BadRequest("the hub cannot be changed so: {why}", field=field or "changes", why=why)


def busy() -> NoReturn:
    """Raise TooManyQuestions."""
    raise TooManyQuestions(
        "another what-if question is being played; try again in {retry_after_s} s", retry_after_s=RETRY_S
    )


def nobody_leads() -> NoReturn:
    """Raise NoLeader."""
    raise NoLeader(
        "no scheduler that leads can be reached; try again in {retry_after_s} s", retry_after_s=RETRY_S
    )


def _failed() -> NoReturn:
    raise QuestionFailed(
        "the scheduler could not play it, and its log says why; try again in {retry_after_s} s",
        retry_after_s=RETRY_S,
    )
