"""A year's books checked by plain SQL and the standard library: shares no code with the service that wrote them.

`load(url)` reads the tables once, `faults(books, diary)` answers every disagreement as one line that opens with the
rule's name. The diary is what the test itself asked for and what its cluster lived: budgets, hours given, the true
times of every attempt. Statements are judged as the bytes that were answered.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any

HOUR_MS = 3_600_000
TABLES = {
    "accounts": "id, kind, parent_id, program_id, grant_id, granted_gpu_us, held_gpu_us, used_gpu_us,"
    " overdraft_thousandths",
    "transfers": "id, seq, position, type, amount_gpu_us, job_id, attempt, hold_id, slice_id, refund_of, refund_kind,"
    " starts_at_ms, ends_at_ms, gpus, rate_id",
    "transfer_legs": "transfer_id, account_id, seq, d_granted, d_held, d_used",
    "holds": "id, job_id, attempt, amount_gpu_us, settled_gpu_us, released_gpu_us, refunded_gpu_us, platform_gpu_us,"
    " resolved, gpus, rate_id",
    "hold_accounts": "hold_id, account_id",
    "slices": "id, job_id, attempt, starts_at_ms, ends_at_ms, payer, gpus, rate_thousandths, amount_gpu_us",
    "attempts": "job_id, attempt, walltime_ms, stop_at_ms, stop_grace_ms, settled, settled_through_ms",
    "rates": "id, rate_thousandths, price_krw",
    "grants": "id, account_id, program_id, ends_at_ms, expired_at_ms",
    "statements": "account_id, seal, since_seal, format, language, sha256",
}

Row = dict[str, Any]
Span = tuple[int, int]


@dataclass
class Ran:
    """What an attempt really was: times in ms; `first` None if nothing of it ever ran; `end` None while it runs."""

    gpus: int
    rate_thousandths: int
    first: int | None = None
    last: int | None = None
    end: int | None = None
    seen: int | None = None
    """Of one that was lost from sight: when it was last seen. What it ran after that is not its grant's."""


@dataclass
class Diary:
    """The test's own record, in GPU-microseconds."""

    budgets: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By programme: what was deposited at first."""
    adjusted: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By programme: what corrections of its budget came to."""
    given: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By grant: awards, top-ups, cuts, moves, corrections and carry-overs, all but expiry."""
    carried: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By programme: expired hours that were given out again."""
    ran: dict[tuple[str, int], Ran] = field(default_factory=dict)


@dataclass
class Books:
    """The tables, and what several checks need of them."""

    tables: dict[str, list[Row]]
    transfers: dict[str, Row] = field(default_factory=dict)
    legs: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    on_account: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    kinds: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.transfers = {row["id"]: row for row in self.tables["transfers"]}
        for leg in self.tables["transfer_legs"]:
            self.legs[leg["transfer_id"]].append(leg)
            self.on_account[leg["account_id"]].append(leg)
        self.kinds = {row["id"]: row["kind"] for row in self.tables["accounts"]}

    def of_kind(self, *kinds: str) -> Iterator[Row]:
        """Accounts of these kinds."""
        return (row for row in self.tables["accounts"] if row["kind"] in kinds)

    def granted(self, account_id: str) -> int:
        """What an account was granted, from its legs."""
        return sum(leg["d_granted"] for leg in self.on_account[account_id])


def load(url: str) -> Books:
    """Read everything in one snapshot, without the service."""
    if url.startswith("postgresql"):
        import psycopg

        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return Books({name: _read(connection, name) for name in TABLES})
    file = sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True)
    try:
        file.execute("BEGIN")
        return Books({name: _read(file, name) for name in TABLES})
    finally:
        file.close()


def _read(connection: Any, table: str) -> list[Row]:
    names = [name.strip() for name in TABLES[table].split(",")]
    rows = connection.execute(f"SELECT {', '.join(names)} FROM {table}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def faults(books: Books, diary: Diary) -> list[str]:
    """Everything that is wrong."""
    checks = (_sums, _moved, _budgets, _given, _never_over, _holds, _slices, _refunds, _occupied)
    return [f"{check.__name__[1:]}: {line}" for check in checks for line in check(books, diary)]


# --- granted time ---------------------------------------------------------------------------------


def _sums(books: Books, _diary: Diary) -> Iterator[str]:
    """What an account stores is the sum of its legs, and granted = used + held + free."""
    for row in books.tables["accounts"]:
        legs = books.on_account[row["id"]]
        for name in ("granted", "held", "used"):
            made = sum(leg[f"d_{name}"] for leg in legs)
            if made != row[f"{name}_gpu_us"]:
                yield f"{row['id']} stores {name} {row[f'{name}_gpu_us']}, its legs make {made}"


def _moved(books: Books, _diary: Diary) -> Iterator[str]:
    """A transfer moves granted time and makes none, has legs, and says the amount that it moves."""
    for name, row in books.transfers.items():
        legs = books.legs[name]
        if not legs:
            yield f"{name} has no legs"
            continue
        whole = [leg for leg in legs if books.kinds[leg["account_id"]] not in ("share", "tranche")]
        if sum(leg["d_granted"] for leg in whole):
            yield f"{name} makes granted time"
        most = max(
            max(abs(leg["d_granted"]), abs(leg["d_held"]), abs(leg["d_used"])) for leg in (whole or legs)
        )
        if row["type"] != "transfer" and most != row["amount_gpu_us"]:
            yield f"{name} says {row['amount_gpu_us']} and moves {most}"


def _budgets(books: Books, diary: Diary) -> Iterator[str]:
    """Budget = what grants have now + what is left + what expired - what corrections added."""
    parts: dict[str, int] = defaultdict(int)
    for row in books.of_kind("program", "grant", "expired"):
        parts[row["program_id"]] += books.granted(row["id"])
    for program, budget in diary.budgets.items():
        has = parts[program] - diary.adjusted[program]
        if has != budget:
            yield f"{program} was given {budget}, and has {has} without its corrections"


def _given(books: Books, diary: Diary) -> Iterator[str]:
    """Every grant has what the diary gave it less what expired; expired hours are where they belong."""
    expired: dict[str, int] = defaultdict(int)
    for name, row in books.transfers.items():
        if row["type"] == "expire":
            for leg in books.legs[name]:
                expired[leg["account_id"]] += leg["d_granted"]
    for grant in books.tables["grants"]:
        account, due = grant["account_id"], diary.given[grant["id"]] + expired[grant["account_id"]]
        if books.granted(account) != due:
            yield f"{account} has {books.granted(account)}, was given {due} with {expired[account]} expired"
    for row in books.of_kind("expired"):
        due = expired[row["id"]] - diary.carried[row["program_id"]]
        if books.granted(row["id"]) != due:
            yield f"{row['id']} has {books.granted(row['id'])}, {due} expired and were not carried over"


def _never_over(books: Books, _diary: Diary) -> Iterator[str]:
    """After every single transaction of the year: nothing below zero, held + used within granted + overdraft.

    EXPIRE leaves exactly nothing free, and nothing is free for long on a grant that was seen to end.
    """
    expired = {row["account_id"] for row in books.tables["grants"] if row["expired_at_ms"] is not None}
    for row in books.of_kind("program", "grant", "share", "tranche", "expired"):
        granted = held = used = 0
        expires = False
        legs = sorted(books.on_account[row["id"]], key=lambda leg: int(leg["seq"]))
        for leg, following in pairwise([*legs, {"seq": None}]):
            granted, held, used = granted + leg["d_granted"], held + leg["d_held"], used + leg["d_used"]
            expires |= books.transfers[leg["transfer_id"]]["type"] == "expire" and row["kind"] == "grant"
            if leg["seq"] == following["seq"]:
                continue
            most = granted + granted * row["overdraft_thousandths"] // 1000
            if min(granted, held, used) < 0 or held + used > most:
                yield f"{row['id']} at {leg['seq']}: granted {granted}, held {held}, used {used}"
                break
            if expires and granted != held + used:
                yield f"{row['id']} at {leg['seq']} expired and has {granted - held - used} left"
            expires = False
        if row["id"] in expired and granted > held + used:
            yield f"{row['id']} has ended and {granted - held - used} are free"


# --- charges --------------------------------------------------------------------------------------


def _holds(books: Books, _diary: Diary) -> Iterator[str]:
    """A hold stands on its whole path alike, and is settled and released to nothing when it is resolved."""
    paths: dict[str, set[str]] = defaultdict(set)
    for row in books.tables["hold_accounts"]:
        paths[row["hold_id"]].add(row["account_id"])
    open_on: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, row in books.transfers.items():
        for leg in books.legs[name] if row["hold_id"] else ():
            open_on[row["hold_id"]][leg["account_id"]] += leg["d_held"]
    back = _given_back(books)
    for row in books.tables["holds"]:
        stored, made = (row["refunded_gpu_us"], row["platform_gpu_us"]), back[row["job_id"], row["attempt"]]
        if stored != made:
            yield f"{row['id']}: (refunded, platform) is stored as {stored}, its transfers make {made}"
        rest = row["amount_gpu_us"] - row["settled_gpu_us"] - row["released_gpu_us"]
        if row["resolved"] and rest:
            yield f"{row['id']} is resolved and holds {rest}"
        if open_on[row["id"]] != dict.fromkeys(paths[row["id"]], rest):
            yield f"{row['id']} holds {dict(open_on[row['id']])}, {rest} is open on {sorted(paths[row['id']])}"


def _given_back(books: Books) -> dict[tuple[str, int], tuple[int, int]]:
    """By attempt: what refunds gave back to the grant, and what all charges and refunds left on the platform."""
    found: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, row in books.transfers.items():
        if row["type"] not in ("settle", "refund"):
            continue
        legs = {leg["account_id"]: leg["d_used"] for leg in books.legs[name]}
        to_platform = legs.pop("platform", 0)
        to_grant = row["amount_gpu_us"] if row["type"] == "refund" and legs else 0
        before = found[row["job_id"], row["attempt"]]
        found[row["job_id"], row["attempt"]] = (before[0] + to_grant, before[1] + to_platform)
    return found


def _slices(books: Books, diary: Diary) -> Iterator[str]:
    """Slices follow each other from the first start, lie within an hour, and are charged once, whole, at their rate."""
    rates = {row["id"]: row["rate_thousandths"] for row in books.tables["rates"]}
    pinned = {(row["job_id"], row["attempt"]): row for row in books.tables["holds"]}
    through = {(row["job_id"], row["attempt"]): row["settled_through_ms"] for row in books.tables["attempts"]}
    for key, parts in _by_attempt(books.tables["slices"]).items():
        parts.sort(key=lambda part: int(part["starts_at_ms"]))
        ran = diary.ran.get(key)
        if ran is None or parts[0]["starts_at_ms"] != ran.first:
            yield f"{key} is charged from {parts[0]['starts_at_ms']}, it ran as {ran}"
            continue
        if parts[-1]["ends_at_ms"] < through[key]:
            yield f"{key} is settled through {through[key]}, its last slice ends at {parts[-1]['ends_at_ms']}"
        for part, following in pairwise(parts):
            if part["ends_at_ms"] != following["starts_at_ms"]:
                yield f"{part['id']} ends at {part['ends_at_ms']}, the next begins at {following['starts_at_ms']}"
        for part in parts:
            yield from _slice(books, part, ran, pinned[key]["rate_id"], rates[pinned[key]["rate_id"]])


def _slice(books: Books, part: Row, ran: Ran, rate_id: str, pinned: int) -> Iterator[str]:
    begin, end = part["starts_at_ms"], part["ends_at_ms"]
    amount = (end - begin) * ran.gpus * ran.rate_thousandths
    if (part["gpus"], part["rate_thousandths"], pinned) != (ran.gpus, ran.rate_thousandths, pinned):
        yield f"{part['id']} is charged at {part['rate_thousandths']} x {part['gpus']}, it ran as {ran}"
    if pinned != ran.rate_thousandths or part["amount_gpu_us"] != amount:
        yield f"{part['id']} costs {part['amount_gpu_us']}, {amount} is its time"
    if begin // HOUR_MS != (end - 1) // HOUR_MS:
        yield f"{part['id']} crosses an hour"
    row = books.transfers.get(part["id"])
    names = ("type", "starts_at_ms", "ends_at_ms", "amount_gpu_us", "rate_id")
    told = None if row is None else tuple(row[name] for name in names)
    if told != ("settle", begin, end, amount, rate_id):
        yield f"{part['id']} of {amount} is charged by {told}"
        return
    used = {leg["account_id"]: leg["d_used"] for leg in books.legs[part["id"]]}
    if set(used.values()) != {amount} or (part["payer"] == "platform") != (set(used) == {"platform"}):
        yield f"{part['id']} of {amount}, paid by {part['payer']}, is used on {used}"


def _refunds(books: Books, _diary: Diary) -> Iterator[str]:
    """A refund gives back time of one slice at its rate; a millisecond is corrected once, and moved once."""
    slices = {row["id"]: row for row in books.tables["slices"]}
    spans: dict[tuple[str, bool], list[Span]] = defaultdict(list)
    for name, row in books.transfers.items():
        if row["type"] != "refund":
            continue
        part, span = slices.get(row["refund_of"]), (row["starts_at_ms"], row["ends_at_ms"])
        if part is None:
            yield f"{name} gives back a slice that there is not"
            continue
        if not part["starts_at_ms"] <= span[0] < span[1] <= part["ends_at_ms"]:
            yield f"{name} gives back {span}, outside of its slice"
        amount = (span[1] - span[0]) * part["gpus"] * part["rate_thousandths"]
        used = {leg["account_id"]: leg["d_used"] for leg in books.legs[name]}
        corrected, on_platform = row["refund_kind"] == "correction", used.pop("platform", 0)
        good = set(used.values()) == {-amount} and on_platform == (0 if corrected else amount)
        if row["amount_gpu_us"] != amount or not (
            good or (corrected and not used and on_platform == -amount)
        ):
            yield f"{name} of {amount} gives back {used} and {on_platform} on the platform"
        spans[row["refund_of"], corrected].append(span)
    for (slice_id, _corrected), given in spans.items():
        if any(left[1] > right[0] for left, right in pairwise(sorted(given))):
            yield f"{slice_id} is given back twice: {sorted(given)}"


def _occupied(books: Books, diary: Diary) -> Iterator[str]:
    """SETTLE - corrections = occupied time x GPUs x rate, of grants and platform together; and who pays how much."""
    totals: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, row in books.transfers.items():
        if row["type"] not in ("settle", "refund"):
            continue
        key = (row["job_id"], row["attempt"])
        whole = [leg for leg in books.legs[name] if books.kinds[leg["account_id"]] in ("grant", "platform")]
        totals[key]["occupied"] += sum(leg["d_used"] for leg in whole)
        if row["type"] == "settle":
            totals[key]["charged"] += sum(leg["d_used"] for leg in whole if leg["account_id"] != "platform")
    uncharged = _corrected_of_grants(books)
    for row in books.tables["attempts"]:
        key = (row["job_id"], row["attempt"])
        ran = diary.ran[key]
        if not row["settled"] or ran.end is None:
            continue
        weight = ran.gpus * ran.rate_thousandths
        occupied = 0 if ran.first is None else (ran.end - ran.first) * weight
        if totals[key]["occupied"] != occupied:
            yield f"{key} occupied {occupied}, the ledger says {totals[key]['occupied']}"
        bounds = [ran.end, ran.seen, ran.last and ran.last + row["walltime_ms"]]
        bounds.append(row["stop_at_ms"] and row["stop_at_ms"] + row["stop_grace_ms"])
        until = min(bound for bound in bounds if bound)
        due = 0 if ran.last is None or ran.last > until else (until - ran.last) * weight
        charged = totals[key]["charged"] - uncharged[key] * weight
        if charged != due:
            yield f"{key} should be charged {due}, is charged {charged}"


def _corrected_of_grants(books: Books) -> dict[tuple[str, int], int]:
    """By attempt: milliseconds of slices on grants that were never occupied, whoever paid them in the end."""
    payers = {row["id"]: row["payer"] for row in books.tables["slices"]}
    found: dict[tuple[str, int], int] = defaultdict(int)
    for row in books.tables["transfers"]:
        if row["refund_kind"] == "correction" and payers.get(row["refund_of"]) == "grant":
            found[row["job_id"], row["attempt"]] += row["ends_at_ms"] - row["starts_at_ms"]
    return found


def _by_attempt(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["job_id"], row["attempt"]].append(row)
    return found


# --- statements -----------------------------------------------------------------------------------


def won(milliseconds: int, gpus: int, price_krw: int) -> int:
    """GPU hours x price, rounded half up, by decimal arithmetic."""
    exact = Decimal(milliseconds) * gpus * price_krw / HOUR_MS
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def statement_faults(books: Books, content: bytes) -> list[str]:
    """What a JSON statement says against the transfers: every line, every won, and what they add up to."""
    told = json.loads(content)
    account, after = told["account_id"], told["since"]["through_seq"] if told["since"] else 0
    legs = sorted(
        books.on_account[account],
        key=lambda leg: (leg["seq"], books.transfers[leg["transfer_id"]]["position"]),
    )
    begin, end = (bisect_right(legs, seq, key=lambda leg: int(leg["seq"])) for seq in (after, told["seq"]))
    found, total = [], 0
    prices = {row["id"]: row["price_krw"] for row in books.tables["rates"]}
    if [line["transfer_id"] for line in told["lines"]] != [leg["transfer_id"] for leg in legs[begin:end]]:
        return [f"{account}: {len(told['lines'])} lines are not the {end - begin} transfers"]
    for line, leg in zip(told["lines"], legs[begin:end], strict=True):
        row, krw = books.transfers[leg["transfer_id"]], 0
        if row["starts_at_ms"] is not None:
            krw = won(row["ends_at_ms"] - row["starts_at_ms"], row["gpus"], prices[row["rate_id"]])
            krw = -krw if leg["d_used"] < 0 else krw
        total += krw
        said = (line["krw"], *(int(line[f"{name}_gpu_us"]) for name in ("granted", "held", "used")))
        if said != (krw, leg["d_granted"], leg["d_held"], leg["d_used"]):
            found.append(f"{line['transfer_id']} says {said}, {krw} won and {leg} are due")
    if told["total_krw"] != total:
        found.append(f"{account}: the total is {told['total_krw']} won, the transfers come to {total}")
    for name in ("granted", "held", "used"):
        opening, closing = (sum(leg[f"d_{name}"] for leg in part) for part in (legs[:begin], legs[:end]))
        said = (told["opening"][f"{name}_gpu_us"], told[f"{name}_gpu_us"])
        if said != (str(opening), str(closing)):
            found.append(
                f"{account}: {name} from {said[0]} to {said[1]}, the legs make {opening} and {closing}"
            )
    return found


def period_faults(months: list[bytes], whole: bytes) -> list[str]:
    """Statements of one account, month after month, against the one of the whole time."""
    parts, all_of_it = [json.loads(month) for month in months], json.loads(whole)
    found = []
    if [line for part in parts for line in part["lines"]] != all_of_it["lines"]:
        # what is left after a line is counted from the opening balance, which stands in both
        found.append(f"{all_of_it['account_id']}: the months' lines are not the year's")
    if sum(part["total_krw"] for part in parts) != all_of_it["total_krw"]:
        found.append(f"{all_of_it['account_id']}: the months' won are not the year's")
    for before, after in pairwise(parts):
        found += [
            f"{all_of_it['account_id']}: {name} does not open as it closed"
            for name in ("granted", "held", "used")
            if before[f"{name}_gpu_us"] != after["opening"][f"{name}_gpu_us"]
        ]
        if before["seal"]["number"] != after["since"]["number"]:
            found.append(f"{all_of_it['account_id']}: a month does not begin at the seal before it")
    return found


def usage_by_period(books: Books, bounds: list[int]) -> tuple[list[int], int]:
    """GPU milliseconds of slices in each period [bound, next bound), and of all. A slice lies in one period."""
    periods, total = [0] * (len(bounds) - 1), 0
    for row in books.tables["slices"]:
        place = bisect_right(bounds, row["starts_at_ms"]) - 1
        weight = (row["ends_at_ms"] - row["starts_at_ms"]) * row["gpus"]
        total += weight
        assert row["ends_at_ms"] <= bounds[place + 1], f"{row['id']} straddles the end of a period"
        periods[place] += weight
    return periods, total
