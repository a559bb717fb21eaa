"""The ledger: deposit, hold, settle, release, pull back, refund. The only writer of balances.

Every function runs inside the caller's transaction. A transfer is identified by its own id: asking twice
for the same transfer answers without doing it again, asking for another content under the same id is an
error. Accounts are changed by one conditional UPDATE each, in the order of their ids, so that two
transactions never wait for each other in a circle; what one account refuses undoes all (the caller's
transaction or savepoint rolls back).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Row, bindparam, insert, or_, select, update

from quota.db import Tx
from quota.errors import InsufficientBalance, TransferMismatch
from quota.fleet.rules import Rate
from quota.ledger.tables import accounts, hold_accounts, holds, slices, transfer_legs, transfers
from quota.schemas.ledger import RefundKind, TransferType

TREASURY = "treasury"
PLATFORM = "platform"

# Statements that every job needs are built once: building one takes longer than SQLite takes to run it.
_ADD = {
    "granted_gpu_us": accounts.c.granted_gpu_us + bindparam("d_granted"),
    "held_gpu_us": accounts.c.held_gpu_us + bindparam("d_held"),
    "used_gpu_us": accounts.c.used_gpu_us + bindparam("d_used"),
}
_GIVE = update(accounts).where(accounts.c.id == bindparam("account")).values(_ADD)
_ROOM = (
    accounts.c.granted_gpu_us
    + accounts.c.overdraft_gpu_us
    - accounts.c.held_gpu_us
    - accounts.c.used_gpu_us
    - bindparam("needed", type_=BigInteger)
)
_TAKE = _GIVE.where(or_(_ROOM >= 0, accounts.c.kind.in_((TREASURY, PLATFORM))))
_KNOWN = select(transfers).where(transfers.c.id == bindparam("transfer"))
_KNOWN_LEGS = select(transfer_legs).where(transfer_legs.c.transfer_id == bindparam("transfer"))
_HOLDS = (
    select(holds)
    .where(holds.c.id.in_(bindparam("holds", expanding=True)))
    .order_by(holds.c.id)
    .with_for_update()
)
_HOLD_PATHS = select(hold_accounts).where(hold_accounts.c.hold_id.in_(bindparam("holds", expanding=True)))
_NEW_HOLD = insert(holds)
_NEW_HOLD_ACCOUNTS = insert(hold_accounts)
_SETTLE = (
    update(holds)
    .where(holds.c.id == bindparam("hold"))
    .values(
        settled_gpu_us=holds.c.settled_gpu_us + bindparam("charged"),
        platform_gpu_us=holds.c.platform_gpu_us + bindparam("booked"),
    )
)
_REFUND = (
    update(holds)
    .where(holds.c.id == bindparam("hold"))
    .values(
        refunded_gpu_us=holds.c.refunded_gpu_us + bindparam("to_grant"),
        platform_gpu_us=holds.c.platform_gpu_us + bindparam("to_platform"),
    )
)
_FROM_PLATFORM = (
    select(transfer_legs.c.transfer_id)
    .where(
        transfer_legs.c.transfer_id == transfers.c.id,
        transfer_legs.c.account_id == PLATFORM,
        transfer_legs.c.d_used < 0,
    )
    .correlate(transfers)
    .exists()
)
_REFUNDS = (
    select(
        transfers.c.refund_of,
        transfers.c.refund_kind,
        transfers.c.starts_at_ms,
        transfers.c.ends_at_ms,
        _FROM_PLATFORM.label("from_platform"),
    )
    .where(
        transfers.c.job_id == bindparam("job"),
        transfers.c.attempt == bindparam("number"),
        transfers.c.refund_of.is_not(None),
    )
    .order_by(transfers.c.seq, transfers.c.position)
)
_RESOLVE = (
    update(holds)
    .where(holds.c.id == bindparam("hold"), holds.c.resolved.is_(False))
    .values(resolved=True, released_gpu_us=holds.c.released_gpu_us + bindparam("rest"))
)


@dataclass(frozen=True, slots=True)
class Leg:
    """What one transfer changes on one account."""

    account_id: str
    d_granted: int = 0
    d_held: int = 0
    d_used: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as stored: `amount = settled + released + what is still held`."""

    id: str
    job_id: str
    attempt: int
    grant_id: str
    path: tuple[str, ...]
    amount_gpu_us: int
    settled_gpu_us: int
    resolved: bool
    gpus: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of one attempt's occupied time and who pays for it."""

    starts_at_ms: int
    ends_at_ms: int
    payer: str


def open_account(
    tx: Tx,
    account_id: str,
    kind: str,
    *,
    parent_id: str | None = None,
    program_id: str | None = None,
    organization_id: str | None = None,
    grant_id: str | None = None,
) -> None:
    """Make an empty account."""
    tx.connection.execute(
        insert(accounts),
        {
            "id": account_id,
            "kind": kind,
            "parent_id": parent_id,
            "program_id": program_id,
            "organization_id": organization_id,
            "grant_id": grant_id,
            "released": True,
            "granted_gpu_us": 0,
            "held_gpu_us": 0,
            "used_gpu_us": 0,
            "overdraft_gpu_us": 0,
        },
    )


def deposit(
    tx: Tx, transfer_id: str, source: str, target: str, amount_gpu_us: int, *, actor: str, reason: str
) -> bool:
    """Move granted time from `source` (treasury or programme) to `target`. False if it was done before.

    Raises InsufficientBalance when the source has less that is neither held nor used.
    """
    legs = (Leg(source, d_granted=-amount_gpu_us), Leg(target, d_granted=amount_gpu_us))
    return _transfer(tx, transfer_id, TransferType.DEPOSIT, amount_gpu_us, legs, actor=actor, reason=reason)


def pull_back(
    tx: Tx, transfer_id: str, source: str, target: str, amount_gpu_us: int, *, actor: str, reason: str
) -> bool:
    """Take granted time of a grant back to its programme: at most min(granted - used - held, granted - children)."""
    row = tx.connection.execute(select(accounts).where(accounts.c.id == source).with_for_update()).one()
    children = tx.connection.execute(
        select(accounts.c.granted_gpu_us).where(accounts.c.parent_id == source)
    ).scalars()
    possible = min(row.granted_gpu_us - row.used_gpu_us - row.held_gpu_us, row.granted_gpu_us - sum(children))
    known = tx.connection.execute(_KNOWN, {"transfer": transfer_id}).first() is not None
    if amount_gpu_us > possible and not known:
        raise InsufficientBalance(
            f"at most {possible} GPU-us can be taken back from {source}, {amount_gpu_us} were asked for",
            account=source,
            needed_gpu_us=amount_gpu_us,
            left_gpu_us=possible,
        )
    legs = (Leg(source, d_granted=-amount_gpu_us), Leg(target, d_granted=amount_gpu_us))
    return _transfer(tx, transfer_id, TransferType.PULLBACK, amount_gpu_us, legs, actor=actor, reason=reason)


def hold(
    tx: Tx,
    job_id: str,
    attempt: int,
    grant_id: str,
    path: Sequence[str],
    amount_gpu_us: int,
    gpus: int,
    rate: Rate,
    *,
    actor: str,
) -> str:
    """Hold an attempt's whole cost on every account of `path`, or on none. Answers the hold's id.

    Raises InsufficientBalance with what is left and what was needed.
    """
    hold_id = f"{job_id}:{attempt}:hold"
    legs = tuple(Leg(account_id, d_held=amount_gpu_us) for account_id in path)
    done = _transfer(
        tx,
        hold_id,
        TransferType.HOLD,
        amount_gpu_us,
        legs,
        actor=actor,
        reason="attempt started",
        job_id=job_id,
        attempt=attempt,
        hold_id=hold_id,
        gpus=gpus,
        rate_id=rate.id,
    )
    if not done:
        return hold_id
    tx.connection.execute(
        _NEW_HOLD,
        {
            "id": hold_id,
            "job_id": job_id,
            "attempt": attempt,
            "grant_id": grant_id,
            "amount_gpu_us": amount_gpu_us,
            "settled_gpu_us": 0,
            "released_gpu_us": 0,
            "refunded_gpu_us": 0,
            "platform_gpu_us": 0,
            "resolved": False,
            "gpu_class": rate.gpu_class,
            "gpus": gpus,
            "rate_id": rate.id,
            "rate_thousandths": rate.rate_thousandths,
            "price_krw": rate.price_krw,
        },
    )
    tx.connection.execute(
        _NEW_HOLD_ACCOUNTS, [{"hold_id": hold_id, "account_id": account_id} for account_id in path]
    )
    return hold_id


def read_hold(tx: Tx, hold_id: str) -> Hold:
    """A hold with its path, locked until the transaction ends."""
    return read_holds(tx, [hold_id])[hold_id]


def read_holds(tx: Tx, hold_ids: Sequence[str]) -> dict[str, Hold]:
    """Holds with their paths by id, locked in the order of ids until the transaction ends."""
    found: dict[str, Hold] = {}
    ordered = sorted(hold_ids)
    for start in range(0, len(ordered), 500):
        part = ordered[start : start + 500]
        paths: dict[str, list[str]] = defaultdict(list)
        for row in tx.connection.execute(_HOLD_PATHS, {"holds": part}):
            paths[row.hold_id].append(row.account_id)
        for row in tx.connection.execute(_HOLDS, {"holds": part}):
            rate = Rate(row.rate_id, row.gpu_class, row.rate_thousandths, row.price_krw)
            found[row.id] = Hold(
                id=row.id,
                job_id=row.job_id,
                attempt=row.attempt,
                grant_id=row.grant_id,
                path=tuple(sorted(paths[row.id])),
                amount_gpu_us=row.amount_gpu_us,
                settled_gpu_us=row.settled_gpu_us,
                resolved=row.resolved,
                gpus=row.gpus,
                rate=rate,
            )
    return found


def settle(tx: Tx, held: Hold, parts: Sequence[Slice], *, actor: str) -> int:
    """Charge slices to the hold's path, or book them on the platform. Answers what the path was charged.

    Each slice is its own transfer and row, unique by (job, attempt, start).
    """
    charged = booked = 0
    for part in parts:
        amount = (part.ends_at_ms - part.starts_at_ms) * held.gpus * held.rate.rate_thousandths
        slice_id = f"{held.job_id}:{held.attempt}:slice:{part.starts_at_ms}"
        if part.payer == "grant":
            charged += amount
        else:
            booked += amount
        _queue(
            tx,
            slice_id,
            TransferType.SETTLE,
            amount,
            _slice_legs(held, part, amount),
            actor=actor,
            reason="occupied time" if part.payer == "grant" else "occupied time that the grant does not pay",
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id if part.payer == "grant" else None,
            slice_id=slice_id,
            starts_at_ms=part.starts_at_ms,
            ends_at_ms=part.ends_at_ms,
            gpus=held.gpus,
            rate_id=held.rate.id,
        )
        tx.defer(slices, _slice_row(slice_id, held, part, amount))
    assert held.settled_gpu_us + charged <= held.amount_gpu_us, "a charge never passes its hold"
    legs = [Leg(account_id, d_held=-charged, d_used=charged) for account_id in held.path if charged]
    if booked:
        legs.append(Leg(PLATFORM, d_used=booked))
    for leg in sorted(legs, key=lambda leg: leg.account_id):
        _change(tx, leg)
    if legs:
        tx.connection.execute(_SETTLE, {"hold": held.id, "charged": charged, "booked": booked})
    return charged


def release(tx: Tx, held: Hold, settled_gpu_us: int, *, actor: str, reason: str) -> None:
    """Resolve a hold: give back what was not charged. Once and for all; repeating it does nothing."""
    if held.resolved:
        return
    rest = held.amount_gpu_us - settled_gpu_us
    assert rest >= 0, "a charge never passes its hold"
    if rest:
        _transfer(
            tx,
            f"{held.job_id}:{held.attempt}:release",
            TransferType.RELEASE,
            rest,
            tuple(Leg(account_id, d_held=-rest) for account_id in held.path),
            actor=actor,
            reason=reason,
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id,
        )
    tx.connection.execute(_RESOLVE, {"hold": held.id, "rest": rest})


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A stretch of one slice that was refunded, and who got it back."""

    slice_id: str
    starts_at_ms: int
    ends_at_ms: int
    kind: RefundKind
    payer: str


def given_back(tx: Tx, held: Hold) -> tuple[GivenBack, ...]:
    """Every refund of an attempt, those of this transaction included."""
    return tx.once(("given back", held.id), lambda: _stored_refunds(tx, held))


def refund(
    tx: Tx,
    held: Hold,
    part: Slice,
    starts_at_ms: int,
    ends_at_ms: int,
    kind: RefundKind,
    *,
    actor: str,
    reason: str,
) -> int:
    """Give back the part [starts, ends) of one slice. Answers the amount that its payer got.

    A `correction` says that the time was never occupied; `fault` and `preempted` book it on the platform. Time
    that the platform pays, from the start or since such a refund, can only be corrected.
    """
    assert part.starts_at_ms <= starts_at_ms < ends_at_ms <= part.ends_at_ms
    slice_id = f"{held.job_id}:{held.attempt}:slice:{part.starts_at_ms}"
    known = [entry for entry in given_back(tx, held) if entry.slice_id == slice_id]
    for place, entry in enumerate(known):
        if (entry.kind, entry.starts_at_ms) == (kind, starts_at_ms):
            known = known[:place]  # asked again: judged, and named, as it was the first time
            break
    payer = part.payer
    for entry in known:
        within = entry.starts_at_ms <= starts_at_ms and ends_at_ms <= entry.ends_at_ms
        if within and entry.kind is not RefundKind.CORRECTION:
            payer = "platform"
    for entry in known:
        apart = ends_at_ms <= entry.starts_at_ms or entry.ends_at_ms <= starts_at_ms
        assert apart or entry.payer != payer, "nothing is given back twice"
    amount = (ends_at_ms - starts_at_ms) * held.gpus * held.rate.rate_thousandths
    if payer == "grant":
        legs = [Leg(account_id, d_used=-amount) for account_id in held.path]
        if kind is not RefundKind.CORRECTION:
            legs.append(Leg(PLATFORM, d_used=amount))
    else:
        assert kind is RefundKind.CORRECTION, "the platform cannot owe itself"
        legs = [Leg(PLATFORM, d_used=-amount)]
    first = not any(entry.kind is kind for entry in known)
    done = _transfer(
        tx,
        f"{slice_id}:{kind.value}" if first else f"{slice_id}:{kind.value}:{starts_at_ms}",
        TransferType.REFUND,
        amount,
        tuple(legs),
        actor=actor,
        reason=reason,
        job_id=held.job_id,
        attempt=held.attempt,
        slice_id=slice_id,
        refund_of=slice_id,
        refund_kind=kind.value,
        starts_at_ms=starts_at_ms,
        ends_at_ms=ends_at_ms,
        gpus=held.gpus,
        rate_id=held.rate.id,
    )
    if not done:
        return 0
    entry = GivenBack(slice_id, starts_at_ms, ends_at_ms, kind, payer)
    tx.memo[("given back", held.id)] = (*given_back(tx, held), entry)
    to_platform = -amount if payer == "platform" else (amount if kind is not RefundKind.CORRECTION else 0)
    to_grant = amount if payer == "grant" else 0
    tx.connection.execute(_REFUND, {"hold": held.id, "to_grant": to_grant, "to_platform": to_platform})
    return to_grant


def _stored_refunds(tx: Tx, held: Hold) -> tuple[GivenBack, ...]:
    rows = tx.connection.execute(_REFUNDS, {"job": held.job_id, "number": held.attempt})
    found: list[GivenBack] = []
    for row in rows:
        kind = RefundKind(row.refund_kind)
        payer = "platform" if row.from_platform else "grant"
        found.append(GivenBack(row.refund_of, row.starts_at_ms, row.ends_at_ms, kind, payer))
    return tuple(found)


# --- one transfer, one account ---------------------------------------------------------------------


def _transfer(
    tx: Tx,
    transfer_id: str,
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    *,
    actor: str,
    reason: str,
    **columns: Any,
) -> bool:
    known = tx.connection.execute(_KNOWN, {"transfer": transfer_id}).one_or_none()
    if known is not None:
        _check_same(tx, known, kind, amount_gpu_us, legs, columns)
        return False
    for leg in sorted(legs, key=lambda leg: leg.account_id):
        _change(tx, leg)
    _queue(tx, transfer_id, kind, amount_gpu_us, legs, actor=actor, reason=reason, **columns)
    return True


def _check_same(
    tx: Tx,
    known: Row[Any],
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    columns: dict[str, Any],
) -> None:
    """Raise TransferMismatch unless the stored transfer is the one asked for: amount, accounts, time, rate."""
    stored = {
        Leg(row.account_id, row.d_granted, row.d_held, row.d_used)
        for row in tx.connection.execute(_KNOWN_LEGS, {"transfer": known.id})
    }
    differs = [name for name, value in columns.items() if getattr(known, name) != value]
    if (known.type, known.amount_gpu_us, stored) == (kind.value, amount_gpu_us, set(legs)) and not differs:
        return
    raise TransferMismatch(
        f"transfer {known.id} exists as {known.type} of {known.amount_gpu_us} GPU-us "
        f"on {', '.join(sorted(leg.account_id for leg in stored))}; "
        f"{kind.value} of {amount_gpu_us} on {', '.join(sorted(leg.account_id for leg in legs))} is another one"
    )


def _queue(
    tx: Tx,
    transfer_id: str,
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    *,
    actor: str,
    reason: str,
    **columns: Any,
) -> None:
    empty = dict.fromkeys(
        ("job_id", "attempt", "hold_id", "slice_id", "refund_of", "refund_kind", "starts_at_ms", "ends_at_ms")
    ) | {"gpus": None, "rate_id": None}
    row = {
        "id": transfer_id,
        "type": kind.value,
        "at_ms": tx.now_ms,
        "actor": actor,
        "reason": reason,
        "amount_gpu_us": amount_gpu_us,
    }
    tx.defer(transfers, empty | row | columns)
    for leg in legs:
        tx.defer(
            transfer_legs,
            {
                "transfer_id": transfer_id,
                "account_id": leg.account_id,
                "d_granted": leg.d_granted,
                "d_held": leg.d_held,
                "d_used": leg.d_used,
            },
        )


def _change(tx: Tx, leg: Leg) -> None:
    """One conditional UPDATE; more held or used, or less granted, needs room on a limit account."""
    needed = leg.d_held + leg.d_used - leg.d_granted
    values: dict[str, Any] = {
        "account": leg.account_id,
        "d_granted": leg.d_granted,
        "d_held": leg.d_held,
        "d_used": leg.d_used,
    }
    takes = leg.d_held + leg.d_used > 0 or leg.d_granted < 0
    statement, values = (_TAKE, values | {"needed": needed}) if takes else (_GIVE, values)
    changed = tx.connection.execute(statement, values).rowcount
    if changed != 1:
        row = _account(tx, leg.account_id)
        left = row.granted_gpu_us + row.overdraft_gpu_us - row.held_gpu_us - row.used_gpu_us
        raise InsufficientBalance(
            f"{leg.account_id} has {left} GPU-us left, {needed} are needed",
            account=leg.account_id,
            needed_gpu_us=needed,
            left_gpu_us=left,
        )


def _account(tx: Tx, account_id: str) -> Row[Any]:
    return tx.connection.execute(select(accounts).where(accounts.c.id == account_id)).one()


def _slice_legs(held: Hold, part: Slice, amount: int) -> tuple[Leg, ...]:
    if part.payer == "platform":
        return (Leg(PLATFORM, d_used=amount),)
    return tuple(Leg(account_id, d_held=-amount, d_used=amount) for account_id in held.path)


def _slice_row(slice_id: str, held: Hold, part: Slice, amount: int) -> dict[str, Any]:
    return {
        "id": slice_id,
        "job_id": held.job_id,
        "attempt": held.attempt,
        "starts_at_ms": part.starts_at_ms,
        "ends_at_ms": part.ends_at_ms,
        "payer": part.payer,
        "gpus": held.gpus,
        "gpu_class": held.rate.gpu_class,
        "rate_id": held.rate.id,
        "rate_thousandths": held.rate.rate_thousandths,
        "price_krw": held.rate.price_krw,
        "amount_gpu_us": amount,
    }
