"""Batches in sequence: each stream takes its next number only, and answers its last one again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import bindparam, select, update

from quota.db import Tx
from quota.dispatch.tables import streams
from quota.errors import StaleSequence
from quota.prepared import Prepared

R = TypeVar("R", bound=BaseModel)

_THIS = streams.c.stream == bindparam("which")
_LAST = Prepared(select(streams.c.last_seq, streams.c.body_sha256).where(_THIS).with_for_update())
_REPLY = Prepared(select(streams.c.reply).where(_THIS))
_FIRST = Prepared.insert(streams, ("stream", "last_seq", "body_sha256", "reply"))
_NEXT = Prepared(
    update(streams)
    .where(_THIS)
    .values(last_seq=bindparam("number"), body_sha256=bindparam("digest"), reply=bindparam("answer"))
)


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """A batch's reply, and its JSON as it is stored and sent: written once, so repeating it gives the same bytes."""

    reply: R
    text: str


def replayed(tx: Tx, stream: str, seq: int, body: bytes, reply: type[R]) -> Answer[R] | None:
    """The stored reply if this is the stream's last batch again, None if it is its next one.

    Raises StaleSequence for anything else, another body under the last number included.
    """
    row = _LAST.one_or_none(tx.connection, {"which": stream})
    last = 0 if row is None else row.last_seq
    if seq == last + 1:
        return None
    if row is not None and seq == last:
        if row.body_sha256 != _digest(body):
            raise StaleSequence("batch {seq} of {stream} was another one", seq=seq, stream=stream, last=last)
        text: str = _REPLY.one(tx.connection, {"which": stream}).reply
        return Answer(reply.model_validate_json(text), text)
    raise StaleSequence(
        "{stream} stands at batch {last}; {seq} is not the next", stream=stream, last=last, seq=seq
    )


def remember(tx: Tx, stream: str, seq: int, body: bytes, reply: R) -> Answer[R]:
    """Store a batch's reply beside its number, and answer it."""
    digest, answer = _digest(body), reply.model_dump_json()
    if seq == 1:
        row = {"stream": stream, "last_seq": seq, "body_sha256": digest, "reply": answer}
        _FIRST.change(tx.connection, row)
    else:
        _NEXT.change(tx.connection, {"which": stream, "number": seq, "digest": digest, "answer": answer})
    return Answer(reply, answer)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
