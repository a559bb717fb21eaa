"""Batches in sequence: each stream takes its next number only, and answers its last one again."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy import insert, select, update

from quota.db import Tx
from quota.dispatch.tables import streams
from quota.errors import StaleSequence

R = TypeVar("R", bound=BaseModel)


def replayed(tx: Tx, stream: str, seq: int, body: bytes, reply: type[R]) -> R | None:
    """The stored reply if this is the stream's last batch again, None if it is its next one.

    Raises StaleSequence for anything else, another body under the last number included.
    """
    row = tx.connection.execute(
        select(streams).where(streams.c.stream == stream).with_for_update()
    ).one_or_none()
    last = 0 if row is None else row.last_seq
    if seq == last + 1:
        return None
    if row is not None and seq == last:
        if row.body_sha256 != _digest(body):
            raise StaleSequence("batch {seq} of {stream} was another one", seq=seq, stream=stream, last=last)
        return reply.model_validate_json(row.reply)
    raise StaleSequence(
        "{stream} stands at batch {last}; {seq} is not the next", stream=stream, last=last, seq=seq
    )


def remember(tx: Tx, stream: str, seq: int, body: bytes, reply: BaseModel) -> None:
    """Store a batch's reply beside its number."""
    values = {"last_seq": seq, "body_sha256": _digest(body), "reply": reply.model_dump_json()}
    if seq == 1:
        tx.connection.execute(insert(streams), values | {"stream": stream})
    else:
        tx.connection.execute(update(streams).where(streams.c.stream == stream).values(**values))


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
