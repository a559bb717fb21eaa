"""The same Idempotency-Key answers the same reply: stored in the transaction that did the work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import Row, bindparam, delete, insert, select

from quota.clock import wall_ms
from quota.db import Tx
from quota.errors import BadRequest, IdempotencyMismatch, SecretAlreadyShown
from quota.identity.tables import idempotency
from quota.schemas.identity import Caller

R = TypeVar("R", bound=BaseModel)

_KNOWN = select(idempotency).where(
    idempotency.c.principal == bindparam("who"), idempotency.c.key == bindparam("which")
)
_NEW = insert(idempotency)

SECRET_SHOWN = 409
"""Stored as the status of a reply that held a secret; its `body` has only the names that `keep` gave."""
KEPT_MS = 24 * 3_600_000
"""Wall time: repeating a request is a matter of the network, not of the hub's clock."""


def once(
    tx: Tx,
    caller: Caller,
    key: str | None,
    operation: str,
    body: BaseModel | None,
    reply: type[R],
    work: Callable[[], R],
    *,
    keep: Callable[[R], Mapping[str, str]] | None = None,
) -> R:
    """Do `work` once per (caller, key); again with the same body answers the stored reply.

    `operation` names the route and the ids in its path. A reply with a secret is not stored: `keep` says which
    names of it are (`{"token_id": …}`), and the repeat raises SecretAlreadyShown with them. What `work` raises is
    not kept: the request may be sent again under its key.

    Two requests at the same moment: the second's INSERT fails on the primary key and it is run again.
    Raises IdempotencyMismatch for another body or operation under the same key.
    """
    if key is None:
        return work()
    if not 1 <= len(key) <= 200:
        raise BadRequest("an Idempotency-Key has 1 to 200 characters", field="Idempotency-Key")
    fingerprint = hashlib.sha256(f"{operation}\n{_canonical(body)}".encode()).hexdigest()
    known = tx.connection.execute(_KNOWN, {"who": caller.token_id, "which": key}).one_or_none()
    if known is not None:
        return _repeated(known, key, fingerprint, reply)
    result = work()
    _store(tx, caller, key, fingerprint, result, None if keep is None else keep(result))
    return result


def _repeated(known: Row[Any], key: str, fingerprint: str, reply: type[R]) -> R:
    if known.fingerprint != fingerprint:
        raise IdempotencyMismatch(
            "Idempotency-Key {key} was used with another request", field="Idempotency-Key", key=key
        )
    if known.status == SECRET_SHOWN:
        raise SecretAlreadyShown(**json.loads(known.body))
    return reply.model_validate_json(known.body)


def _store(
    tx: Tx, caller: Caller, key: str, fingerprint: str, result: BaseModel, kept: Mapping[str, str] | None
) -> None:
    tx.connection.execute(
        _NEW,
        {
            "principal": caller.token_id,
            "key": key,
            "fingerprint": fingerprint,
            "status": 201 if kept is None else SECRET_SHOWN,
            "body": result.model_dump_json() if kept is None else json.dumps(dict(kept), sort_keys=True),
            "created_at_ms": wall_ms(),
        },
    )


def _canonical(body: BaseModel | None) -> str:
    return "" if body is None else json.dumps(body.model_dump(mode="json"), sort_keys=True)


def forget_old(tx: Tx, wall_now_ms: int | None = None) -> int:
    """Drop keys older than a day of wall time. Answers how many."""
    now = wall_ms() if wall_now_ms is None else wall_now_ms
    return tx.connection.execute(
        delete(idempotency).where(idempotency.c.created_at_ms < now - KEPT_MS)
    ).rowcount
