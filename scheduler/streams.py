"""One numbered stream of batches to the quota service: each batch takes effect once, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import BaseModel

from quota.client import ServiceProblem, ServiceUnavailable

ReplyT = TypeVar("ReplyT", bound=BaseModel)

MALFORMED = frozenset({400, 404, 413, 422})


class SteppedDown(Exception):
    """This scheduler may no longer speak for its epoch: drop everything and take over anew."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}".rstrip(": "))
        self.code = code
        """Code of the refusal; `stale_epoch` means that somebody else has taken over."""


class Stream(Generic[ReplyT]):
    """Numbers batches and keeps the bytes of the last one until its outcome is known."""

    def __init__(self, name: str, last_seq: int, send: Callable[[bytes], ReplyT]) -> None:
        self.name = name
        self._next_seq = last_seq + 1
        self._send = send
        self._pending: bytes | None = None

    def post(self, batch: Callable[[int], BaseModel]) -> ReplyT:
        """Send `batch(seq)` as the stream's next. ServiceUnavailable leaves it pending: resend it first."""
        assert self._pending is None, (
            "the outcome of the last batch is unknown: resend it before planning again"
        )
        self._pending = batch(self._next_seq).model_dump_json().encode()
        return self._deliver(self._pending)

    def resend(self) -> ReplyT | None:
        """Send the same bytes again if the last outcome is unknown."""
        return None if self._pending is None else self._deliver(self._pending)

    def _deliver(self, body: bytes) -> ReplyT:
        try:
            reply = self._send(body)
        except ServiceProblem as problem:
            if problem.status == 409 or problem.status in MALFORMED:
                # a gap, or a batch that is never accepted: a new epoch tells where the streams stand
                raise SteppedDown(problem.code, problem.detail) from problem
            raise ServiceUnavailable(f"{self.name}: {problem}") from problem
        self._pending = None
        self._next_seq += 1
        return reply
