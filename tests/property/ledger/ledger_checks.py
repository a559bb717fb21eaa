"""The ledger's invariants in plain SQL and integers: shares no code with the ledger it judges.

`violations(connection)` answers every broken invariant by name; the tests beside this file also plant one corruption
per invariant and see it found.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, text

UNLIMITED = ("treasury", "platform")


def violations(connection: Connection) -> list[str]:
    """All broken invariants, each line opening with the invariant's name."""
    found: list[str] = []
    for check in (_i01, _i02, _i03, _i04, _i05, _i06, _i07, _i09, _i13, _i14):
        name = check.__name__.removeprefix("_").upper()
        found.extend(f"{name}: {line}" for line in check(connection))
    return found


def rebuilt_balances(connection: Connection) -> dict[str, tuple[int, int, int]]:
    """Every account's (granted, held, used) from its legs alone."""
    totals: dict[str, list[int]] = {row.id: [0, 0, 0] for row in _rows(connection, "SELECT id FROM accounts")}
    for leg in _rows(connection, "SELECT account_id, d_granted, d_held, d_used FROM transfer_legs"):
        total = totals[leg.account_id]
        total[0] += leg.d_granted
        total[1] += leg.d_held
        total[2] += leg.d_used
    return {account: (total[0], total[1], total[2]) for account, total in totals.items()}


def stored_balances(connection: Connection) -> dict[str, tuple[int, int, int]]:
    rows = _rows(connection, "SELECT id, granted_gpu_us, held_gpu_us, used_gpu_us FROM accounts")
    return {row.id: (row.granted_gpu_us, row.held_gpu_us, row.used_gpu_us) for row in rows}


def occupied_gpu_us(connection: Connection, job_id: str, attempt: int) -> int:
    """Sum SETTLE - sum REFUND + platform of an attempt, from transfers and legs alone."""
    own = [
        row
        for row in _rows(connection, "SELECT id, type, job_id, attempt FROM transfers")
        if (row.job_id, row.attempt) == (job_id, attempt)
    ]
    kinds = {row.id: row.type for row in own}
    legs = [
        leg
        for leg in _rows(connection, "SELECT transfer_id, account_id, d_used FROM transfer_legs")
        if leg.transfer_id in kinds
    ]
    paths: dict[str, list[str]] = defaultdict(list)
    for leg in legs:
        if leg.account_id != "platform":
            paths[leg.transfer_id].append(leg.account_id)
    total = 0
    for leg in legs:
        # every account of a path carries the whole amount: count one of them, and the platform beside it
        if leg.account_id == "platform" or leg.account_id == min(paths[leg.transfer_id]):
            total += leg.d_used
    return total


def _i01(connection: Connection) -> list[str]:
    rebuilt, stored = rebuilt_balances(connection), stored_balances(connection)
    return [
        f"{account} stores {stored[account]}, its transfers make {rebuilt[account]}"
        for account in stored
        if stored[account] != rebuilt[account]
    ]


def _i02(connection: Connection) -> list[str]:
    rows = _rows(connection, "SELECT * FROM accounts")
    over = [
        f"{row.id}: held {row.held_gpu_us} + used {row.used_gpu_us} > {row.granted_gpu_us} + {row.overdraft_gpu_us}"
        for row in rows
        if row.kind not in UNLIMITED
        and row.held_gpu_us + row.used_gpu_us > row.granted_gpu_us + row.overdraft_gpu_us
    ]
    below = [
        f"{row.id} holds or uses less than nothing"
        for row in rows
        if min(row.held_gpu_us, row.used_gpu_us) < 0
    ]
    return over + below


def _i03(connection: Connection) -> list[str]:
    found = []
    spans: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for row in _rows(connection, "SELECT job_id, attempt, starts_at_ms, ends_at_ms FROM slices"):
        spans[(row.job_id, row.attempt)].append((row.starts_at_ms, row.ends_at_ms))
    for attempt, parts in spans.items():
        found += [
            f"{attempt}: slices {left} and {right} overlap"
            for left, right in pairwise(sorted(parts))
            if right[0] < left[1]
        ]
    settles: dict[str, int] = defaultdict(int)
    for row in _rows(connection, "SELECT slice_id FROM transfers WHERE type = 'settle'"):
        settles[row.slice_id] += 1
    known = {row.id for row in _rows(connection, "SELECT id FROM slices")}
    found += [f"slice {name} is charged {times} times" for name, times in settles.items() if times != 1]
    found += [f"slice {name} and its transfer do not meet" for name in known ^ settles.keys()]
    return found


def _i04(connection: Connection) -> list[str]:
    found = []
    held: dict[tuple[str, str], int] = defaultdict(int)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    statement = (
        "SELECT t.id, t.type, t.hold_id, l.account_id, l.d_held FROM transfers t "
        "JOIN transfer_legs l ON l.transfer_id = t.id WHERE t.hold_id IS NOT NULL"
    )
    seen = set()
    for leg in _rows(connection, statement):
        held[(leg.hold_id, leg.account_id)] += leg.d_held
        if leg.id not in seen:
            seen.add(leg.id)
            counts[(leg.hold_id, leg.type)] += 1
    for row in _rows(connection, "SELECT * FROM holds"):
        rest = row.amount_gpu_us - row.settled_gpu_us - row.released_gpu_us
        if counts[(row.id, "hold")] != 1 or counts[(row.id, "release")] > 1:
            found.append(f"{row.id} is held or released more than once")
        if bool(row.resolved) and rest:
            found.append(f"{row.id} is resolved and still holds {rest}")
        for (hold_id, account), amount in held.items():
            if hold_id == row.id and amount != rest:
                found.append(f"{row.id}: {account} holds {amount}, {rest} is open")
    return found


def _i05(connection: Connection) -> list[str]:
    return [
        f"{row.id}: charged {row.settled_gpu_us} of a hold of {row.amount_gpu_us}"
        for row in _rows(connection, "SELECT * FROM holds")
        if row.settled_gpu_us > row.amount_gpu_us
    ]


def _i06(connection: Connection) -> list[str]:
    """Each millisecond is given back by whoever pays it then; a fault moves it from the grant to the platform."""
    found = []
    parts = {row.id: row for row in _rows(connection, "SELECT * FROM slices")}
    payers = {name: [(part.starts_at_ms, part.ends_at_ms, part.payer)] for name, part in parts.items()}
    legs: dict[str, dict[str, int]] = defaultdict(dict)
    statement = (
        "SELECT l.transfer_id, l.account_id, l.d_used FROM transfer_legs l "
        "JOIN transfers t ON t.id = l.transfer_id WHERE t.type = 'refund'"
    )
    for leg in _rows(connection, statement):
        legs[leg.transfer_id][leg.account_id] = leg.d_used
    for row in _rows(connection, "SELECT * FROM transfers WHERE type = 'refund' ORDER BY seq, position"):
        stretches = payers.get(row.refund_of, [])
        inside = [span for span in stretches if span[0] < row.ends_at_ms and row.starts_at_ms < span[1]]
        whole = sum(min(span[1], row.ends_at_ms) - max(span[0], row.starts_at_ms) for span in inside)
        paying = {span[2] for span in inside}
        if whole != row.ends_at_ms - row.starts_at_ms or len(paying) != 1:
            found.append(f"{row.id} gives back time that {sorted(paying)} paid {whole} ms of")
            continue
        payer = paying.pop()
        on_platform = legs[row.id].pop("platform", 0)
        of_grant = set(legs[row.id].values())
        correction = row.refund_kind == "correction"
        if payer == "grant":
            good = of_grant == {-row.amount_gpu_us} and on_platform == (
                0 if correction else row.amount_gpu_us
            )
        else:
            good = payer == "platform" and correction and not of_grant and on_platform == -row.amount_gpu_us
        if not good:
            found.append(
                f"{row.id}: grant {sorted(of_grant)}, platform {on_platform} of {row.amount_gpu_us} paid by {payer}"
            )
        left = [span for span in stretches if span not in inside]
        left += [(span[0], row.starts_at_ms, span[2]) for span in inside if span[0] < row.starts_at_ms]
        left += [(row.ends_at_ms, span[1], span[2]) for span in inside if row.ends_at_ms < span[1]]
        if not correction:
            left.append((row.starts_at_ms, row.ends_at_ms, "platform"))
        payers[row.refund_of] = left
    return found


def _i07(connection: Connection) -> list[str]:
    statement = (
        "SELECT t.id, t.rate_id, t.amount_gpu_us, t.starts_at_ms, t.ends_at_ms, t.gpus, h.rate_id AS pinned, "
        "h.rate_thousandths, h.gpus AS held_gpus FROM transfers t "
        "LEFT JOIN holds h ON h.job_id = t.job_id AND h.attempt = t.attempt WHERE t.type IN ('settle', 'refund')"
    )
    placed = (
        "SELECT p.job_id, p.gpu_class, r.gpu_class AS paid_class FROM placements p "
        "JOIN holds h ON h.job_id = p.job_id AND h.attempt = p.attempt JOIN rates r ON r.id = h.rate_id"
    )
    found = [
        f"{row.job_id} is on {row.gpu_class} at the rate of {row.paid_class}"
        for row in _rows(connection, placed)
        if row.gpu_class != row.paid_class
    ]
    for row in _rows(connection, statement):
        if row.rate_id is None or row.rate_id != row.pinned or row.gpus != row.held_gpus:
            found.append(
                f"{row.id} was charged at {row.rate_id} x {row.gpus}, held at {row.pinned} x {row.held_gpus}"
            )
        elif row.amount_gpu_us != (row.ends_at_ms - row.starts_at_ms) * row.gpus * row.rate_thousandths:
            found.append(f"{row.id}: {row.amount_gpu_us} is not milliseconds x GPUs x rate")
    return found


def _i09(connection: Connection) -> list[str]:
    """Conservation: granted time only moves; what all accounts got sums to nothing.

    What shares and tranches are granted is laid over their grant's hours and is no time of its own.
    """
    sums: dict[str, int] = defaultdict(int)
    statement = (
        "SELECT l.transfer_id, l.d_granted FROM transfer_legs l JOIN accounts a ON a.id = l.account_id "
        "WHERE a.kind NOT IN ('share', 'tranche')"
    )
    for leg in _rows(connection, statement):
        sums[leg.transfer_id] += leg.d_granted
    return [f"{transfer} makes {amount} of granted time" for transfer, amount in sums.items() if amount]


def _i13(connection: Connection) -> list[str]:
    taken: dict[tuple[str, str, str], int] = defaultdict(int)
    statement = (
        "SELECT p.cluster, p.node, p.gpu_class, p.gpus, a.capacity_held FROM placements p "
        "JOIN attempts a ON a.job_id = p.job_id AND a.attempt = p.attempt"
    )
    for row in _rows(connection, statement):
        if row.capacity_held:
            taken[(row.cluster, row.node, row.gpu_class)] += row.gpus
    found = []
    for row in _rows(connection, "SELECT * FROM node_capacity"):
        spot = (row.cluster, row.node, row.gpu_class)
        if row.used != taken[spot]:
            found.append(f"{spot} counts {row.used} used, {taken[spot]} are placed")
    return found


def _i14(connection: Connection) -> list[str]:
    """A hold and each of its extensions stand on every account of the path; together they are the amount."""
    legs: dict[str, dict[str, int]] = defaultdict(dict)
    asked: dict[str, dict[str, int]] = defaultdict(dict)
    statement = (
        "SELECT t.id, t.hold_id, t.amount_gpu_us, l.account_id, l.d_held FROM transfers t "
        "JOIN transfer_legs l ON l.transfer_id = t.id WHERE t.type IN ('hold', 'extend')"
    )
    for leg in _rows(connection, statement):
        legs[leg.id][leg.account_id] = leg.d_held
        asked[leg.hold_id][leg.id] = leg.amount_gpu_us
    paths: dict[str, set[str]] = defaultdict(set)
    for row in _rows(connection, "SELECT hold_id, account_id FROM hold_accounts"):
        paths[row.hold_id].add(row.account_id)
    found = []
    for row in _rows(connection, "SELECT id, job_id, attempt, amount_gpu_us, extensions FROM holds"):
        path, own = paths[row.id], asked[row.id]
        numbered = {f"{row.job_id}:{row.attempt}:extend:{n + 1}" for n in range(row.extensions)}
        if own.keys() != {row.id} | numbered or sum(own.values()) != row.amount_gpu_us:
            found.append(
                f"{row.id} of {row.amount_gpu_us}, {row.extensions} times extended, is made of {own}"
            )
        found += [
            f"{transfer} of {amount} has legs {legs[transfer]} on the path {sorted(path)}"
            for transfer, amount in own.items()
            if legs[transfer] != dict.fromkeys(path, amount) or not path
        ]
    return found


def _rows(connection: Connection, statement: str) -> list[Any]:
    return list(connection.execute(text(statement)).all())
