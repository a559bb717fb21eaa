"""Hours moved between the limit accounts of one grant: its shares, its tranches. The grant's own balance stays.

A limit account's `granted` is an earmark laid over the grant's hours, so these transfers create and destroy nothing:
conservation counts the grant's account alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from quota.db import Tx
from quota.ledger.posting import post
from quota.ledger.rules import Leg
from quota.schemas.ledger import TransferType

KINDS = ("share:", "tranche:")


def earmark(
    tx: Tx,
    transfer_id: str,
    changes: Mapping[str, int],
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
) -> bool:
    """Change what limit accounts are granted, by account id in GPU-microseconds. False if it was done before.

    Raises InsufficientBalance when an account has less that is neither held nor used than is taken.
    """
    legs = tuple(Leg(account_id, d_granted=change) for account_id, change in changes.items() if change)
    assert legs, "a transfer changes something"
    assert all(leg.account_id.startswith(KINDS) for leg in legs), (
        "a grant's own hours move by other transfers"
    )
    given = sum(leg.d_granted for leg in legs if leg.d_granted > 0)
    taken = -sum(leg.d_granted for leg in legs if leg.d_granted < 0)
    return post(
        tx,
        transfer_id,
        TransferType.TRANSFER,
        max(given, taken),
        legs,
        actor=actor,
        reason=reason,
        evidence=evidence,
    )
